"""Rollouts driven through the services by many synthetic devices, which poll, install and report."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from device_agent.protocol.messages import AssignedModel, Assignment, SignedEnvelope
from fleet.devices import selectors as device_selectors
from fleet.devices import services as device_services
from fleet.devices.errors import FilterError
from fleet.devices.models import Device
from fleet.errors import Missing
from fleet.rollouts import selectors, services
from fleet.rollouts.errors import InvalidPolicy, RolloutConflict
from fleet.rollouts.models import Assignment as AssignmentRow
from fleet.rollouts.models import AssignmentEvent, Rollout, RolloutDecision, RolloutTrack
from fleet.rollouts.tasks import step as step_task
from models_registry.models import Release
from models_registry.services.signing import initialise_repository
from tenancy.models import App, AuditEntry, Tenant
from tests.factories import (
    ACTOR,
    capability_report,
    install_event,
    make_class,
    make_devices,
    make_release,
    seen,
    self_test,
)

pytestmark = pytest.mark.django_db(databases="__all__")

START = datetime(2026, 11, 22, 12, tzinfo=UTC)
LONG_AGO = START - timedelta(days=30)
POLICY = {"groups": [0.1, 0.5, 1.0], "device_timeout_s": 3600}


class Fleet:
    """Synthetic devices on a clock of their own: they act through the same services as real ones."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.now = START

    def wait(self, **duration: float) -> None:
        self.now += timedelta(**duration)

    def join(self, count: int, class_name: str, **columns: Any) -> list[Device]:
        columns.setdefault("enrolled_at", LONG_AGO)
        return make_devices(self.tenant, count, class_name=class_name, **columns)

    def assignment(self, device: Device) -> Assignment:
        device = Device.objects.select_related("tenant").get(pk=device.pk)
        envelope = services.signed_assignment_for(device=device, now=self.now)
        signed = msgspec.json.decode(envelope, type=SignedEnvelope).signed
        return msgspec.convert(signed, Assignment)

    def offers(self, device: Device) -> list[AssignedModel]:
        return self.assignment(device).models

    def report(self, device: Device, offer: AssignedModel, state: str, **fields: Any) -> services.Applied:
        self.wait(seconds=1)
        event = install_event(self.now, offer, state, **fields)
        return services.apply_install_events(device=device, events=[event], now=self.now)

    def install(self, device: Device, offer: AssignedModel, *, works: bool = True) -> None:
        self.report(device, offer, "downloading")
        self.report(device, offer, "testing", downloaded_bytes=1000)
        if works:
            self.report(device, offer, "active", self_test=self_test())
        else:
            self.report(device, offer, "failed", failure="output_mismatch", self_test=self_test(passed=False))

    def act(self, devices: Iterable[Device], *, broken: str = "") -> Counter[str]:
        """Every device polls and installs what it has not got; those of class ``broken`` fail."""
        installed: Counter[str] = Counter()
        for device in devices:
            for offer in self.offers(device):
                row = AssignmentRow.objects.get(device=device, rollout_id=offer.rollout)
                if row.state != "active":
                    self.install(device, offer, works=device.class_name != broken)
                    installed[device.class_name] += 1
        return installed

    def step(self) -> None:
        self.wait(seconds=1)
        services.step_rollouts(now=self.now)


@pytest.fixture
def fleet(tenant: Tenant) -> Fleet:
    initialise_repository(tenant=tenant)
    return Fleet(tenant)


def begin(release: Release, fleet: Fleet, **changes: Any) -> Rollout:
    fields: dict[str, Any] = {"name": "first", "policy": POLICY}
    rollout = services.create_rollout(release=release, actor=ACTOR, **fields | changes)
    return services.start_rollout(rollout=rollout, actor=ACTOR, now=fleet.now)


def track_of(rollout: Rollout, name: str) -> RolloutTrack:
    return RolloutTrack.objects.get(rollout=rollout, class_name=name)


def state_of(rollout: Rollout) -> str:
    rollout.refresh_from_db()
    return rollout.state


def test_groups_grow_until_everybody_has_it(app: App, fleet: Fleet) -> None:
    devices = fleet.join(40, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet)
    sizes = []
    for _ in POLICY["groups"]:  # type: ignore[attr-defined]
        sizes.append(fleet.act(devices)["entry"])
        fleet.step()
    assert sum(sizes) == 40
    assert all(size > 0 for size in sizes)
    assert sizes[0] < 15
    assert state_of(rollout) == "finished"
    assert track_of(rollout, "entry").reason == "40 of 40 devices are active."
    actions = list(RolloutDecision.objects.filter(class_name="entry").order_by("id"))
    assert [row.action for row in actions] == ["open", "advance", "advance", "finish"]
    assert actions[1].evidence["active"] == sizes[0]


def test_a_group_is_not_left_before_all_of_it_reported(app: App, fleet: Fleet) -> None:
    devices = fleet.join(40, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet)
    first, *others = [device for device in devices if fleet.offers(device)]
    assert fleet.act(others)["entry"] == len(others)
    fleet.step()
    track = track_of(rollout, "entry")
    assert (track.group_index, track.state) == (0, "running")
    assert f"{len(others)} of {len(others) + 1} devices have reported, 1 pending" in track.reason
    fleet.act([first])
    fleet.step()
    assert track_of(rollout, "entry").group_index == 1


def test_only_the_failing_class_pauses_and_says_why(app: App, fleet: Fleet) -> None:
    good, bad = fleet.join(10, "mid"), fleet.join(10, "entry")
    rollout = begin(make_release(app, ["mid", "entry"]), fleet, policy=POLICY | {"minimum_per_group": 3})
    before = services.desired_for(device=bad[0], now=fleet.now)[0]
    for _ in range(4):
        fleet.act([*good, *bad], broken="entry")
        fleet.step()
    entry = track_of(rollout, "entry")
    assert track_of(rollout, "mid").state == "finished"
    assert entry.state == "paused"
    failed = AssignmentRow.objects.filter(class_name="entry", state="failed").count()
    assert failed == 3
    assert entry.reason == (
        "3 of 3 devices of class entry failed their self-test (output_mismatch); threshold 20 %."
    )
    assert state_of(rollout) == "paused"
    assert rollout.reason == entry.reason
    assert all(not fleet.offers(device) for device in bad)
    late = fleet.join(1, "mid", enrolled_at=fleet.now)
    assert fleet.act(late)["mid"] == 1  # the class that works goes on working
    assert services.desired_for(device=bad[0], now=fleet.now)[0] > before


def test_a_resumed_class_tries_again(app: App, fleet: Fleet) -> None:
    devices = fleet.join(6, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet, policy={"groups": [0.5, 1.0]})
    fleet.act(devices, broken="entry")
    fleet.step()
    assert state_of(rollout) == "paused"
    failed = AssignmentRow.objects.filter(state="failed").count()
    track = services.resume_track(track=track_of(rollout, "entry"), actor=ACTOR, now=fleet.now)
    assert (track.state, state_of(rollout)) == ("running", "running")
    assert AssignmentRow.objects.filter(state="offered").count() == failed
    for _ in range(2):
        fleet.act(devices)
        fleet.step()
    assert state_of(rollout) == "finished"
    assert AssignmentRow.objects.filter(state="active").count() == 6


def test_resuming_the_rollout_resumes_what_held_it(app: App, fleet: Fleet) -> None:
    devices = fleet.join(3, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet)
    fleet.act(devices, broken="entry")
    fleet.step()
    services.resume_rollout(rollout=rollout, actor=ACTOR, now=fleet.now)
    assert (state_of(rollout), track_of(rollout, "entry").state) == ("running", "running")


def test_who_was_offered_but_is_not_active_loses_it_in_a_pause(app: App, fleet: Fleet) -> None:
    devices = fleet.join(4, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet, policy={"groups": [1.0]})
    active, underway, fresh = devices[:3]
    fleet.act([active])
    (offer,) = fleet.offers(underway)
    fleet.report(underway, offer, "downloading")
    services.pause_rollout(rollout=rollout, actor=ACTOR)
    assert [model.rollout for model in fleet.offers(active)] == [str(rollout.pk)]
    assert fleet.offers(underway) == fleet.offers(fresh) == []
    services.resume_rollout(rollout=rollout, actor=ACTOR, now=fleet.now)
    assert len(fleet.offers(underway)) == len(fleet.offers(fresh)) == 1


def test_an_operators_pause_holds_for_finished_classes_too(app: App, fleet: Fleet) -> None:
    good, slow = fleet.join(2, "mid"), fleet.join(2, "entry")
    rollout = begin(make_release(app, ["mid", "entry"]), fleet, policy={"groups": [1.0]})
    fleet.act(good)
    fleet.step()
    assert (track_of(rollout, "mid").state, track_of(rollout, "entry").state) == ("finished", "running")
    services.pause_rollout(rollout=rollout, actor=ACTOR)
    late = fleet.join(1, "mid", enrolled_at=fleet.now)[0]
    assert fleet.offers(late) == fleet.offers(slow[0]) == []
    assert selectors.why_not_yet(late)[0].reason == "The rollout is paused."
    services.resume_rollout(rollout=rollout, actor=ACTOR, now=fleet.now)
    assert len(fleet.offers(late)) == 1


def test_who_joins_late_gets_it_even_after_the_end(app: App, fleet: Fleet) -> None:
    devices = fleet.join(3, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet, policy={"groups": [1.0]})
    late = fleet.join(2, "entry", enrolled_at=START + timedelta(hours=1))
    fleet.act(devices)
    fleet.step()
    assert state_of(rollout) == "finished"  # not held up by those who came later
    assert fleet.act(late)["entry"] == 2
    (row,) = [row for row in selectors.progress(rollout, now=fleet.now) if row.class_name == "entry"]
    assert (row.active, row.eligible, row.state) == (5, 5, "finished")


def test_a_class_without_devices_finishes_and_waits_for_some(app: App, fleet: Fleet) -> None:
    rollout = begin(make_release(app, ["entry"]), fleet)
    assert state_of(rollout) == "finished"
    assert "No device of class entry matches" in track_of(rollout, "entry").reason
    assert rollout.reason == "No device matched yet; devices that join later get it."
    assert fleet.act(fleet.join(1, "entry", enrolled_at=fleet.now))["entry"] == 1
    services.step_touched(rollout_ids=[rollout.pk], now=fleet.now)
    rollout.refresh_from_db()
    assert rollout.reason == "Every class is finished."
    assert fleet.act(fleet.join(1, "entry", enrolled_at=fleet.now))["entry"] == 1


def test_the_newest_rollout_of_a_model_wins_and_models_coexist(app: App, fleet: Fleet) -> None:
    devices = fleet.join(4, "entry")
    everybody = {"groups": [1.0]}
    old = begin(make_release(app, ["entry"], number=1), fleet, policy=everybody)
    fleet.act(devices)
    fleet.step()
    other = begin(make_release(app, ["entry"], model="vision"), fleet, policy=everybody)
    new = begin(
        make_release(app, ["entry"], number=2), fleet, policy={"groups": [0.3, 1.0], "minimum_per_group": 2}
    )
    versions: Counter[str] = Counter()
    for device in devices:
        offers = fleet.offers(device)
        assert [offer.model for offer in offers] == ["minilm", "vision"]
        assert offers[1].rollout == str(other.pk)
        versions[offers[0].rollout] += 1
    assert versions[str(new.pk)] >= 2
    assert versions[str(old.pk)] == 4 - versions[str(new.pk)]


def test_an_unfinished_rollout_is_not_held_up_by_who_has_a_newer_one(app: App, fleet: Fleet) -> None:
    devices = fleet.join(4, "entry")
    old = begin(make_release(app, ["entry"], number=1), fleet, policy={"groups": [1.0]})
    fleet.act(devices[:1])
    begin(make_release(app, ["entry"], number=2), fleet, policy={"groups": [1.0]})
    fleet.step()
    assert state_of(old) == "finished"


def test_a_device_that_fails_the_new_version_stays_with_the_old_one(app: App, fleet: Fleet) -> None:
    (device,) = fleet.join(1, "entry")
    old = begin(make_release(app, ["entry"], number=1), fleet)
    fleet.act([device])
    fleet.step()
    new = begin(make_release(app, ["entry"], number=2), fleet)
    (offer,) = fleet.offers(device)
    assert offer.rollout == str(new.pk)
    fleet.report(device, offer, "rolled_back", failure="output_mismatch", self_test=self_test(passed=False))
    assert [model.rollout for model in fleet.offers(device)] == [str(old.pk)]
    fleet.step()
    assert state_of(new) == "paused"


def test_rolling_back_gives_the_old_version_back(app: App, fleet: Fleet) -> None:
    devices = fleet.join(2, "entry")
    old = begin(make_release(app, ["entry"], number=1), fleet, policy={"groups": [1.0]})
    fleet.act(devices)
    fleet.step()
    new = begin(make_release(app, ["entry"], number=2), fleet, policy={"groups": [1.0]})
    fleet.act(devices)
    fleet.step()
    services.roll_back_rollout(rollout=new, actor=ACTOR)
    assert state_of(new) == "rolled_back"
    assert {offer.rollout for device in devices for offer in fleet.offers(device)} == {str(old.pk)}


def test_cancelling_lets_nobody_new_in_and_takes_nothing_away(app: App, fleet: Fleet) -> None:
    has, has_not = fleet.join(2, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet, policy={"groups": [1.0]})
    fleet.act([has])
    services.cancel_rollout(rollout=rollout, actor=ACTOR)
    assert len(fleet.offers(has)) == 1
    assert fleet.offers(has_not) == []
    with pytest.raises(RolloutConflict, match="nothing is"):
        services.resume_rollout(rollout=rollout, actor=ACTOR)


def test_silence_times_out_and_does_not_read_as_health(app: App, fleet: Fleet) -> None:
    good, silent = fleet.join(2, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet, policy=POLICY | {"groups": [1.0]})
    fleet.act([good])
    (offer,) = fleet.offers(silent)
    fleet.report(silent, offer, "testing")
    fleet.step()
    assert "1 pending" in track_of(rollout, "entry").reason
    fleet.wait(seconds=3601)
    fleet.step()
    row = AssignmentRow.objects.get(device=silent)
    assert row.state == "expired"
    assert row.events.filter(state="expired").count() == 1
    track = track_of(rollout, "entry")
    assert track.state == "running"
    assert "1 of 2 devices are active (50 %), 95 % are needed: 0 failed, 1 silent" in track.reason
    fleet.report(silent, offer, "active", self_test=self_test())  # it comes back after all
    fleet.step()
    assert state_of(rollout) == "finished"


def test_absent_devices_do_not_hold_up_the_others(app: App, fleet: Fleet) -> None:
    devices = fleet.join(10, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet, policy=POLICY | {"groups": [1.0]})
    fleet.act(devices[:8])
    waiting = devices[8]
    fleet.report(waiting, fleet.offers(waiting)[0], "offered", waiting="charging")
    seen(devices[9], LONG_AGO)
    fleet.wait(seconds=3601)
    fleet.step()
    assert state_of(rollout) == "finished"
    assert track_of(rollout, "entry").reason == "8 of 10 devices are active, 0 silent, 2 absent."


def test_a_device_that_polls_and_never_comes_for_it_is_silent(app: App, fleet: Fleet) -> None:
    good, odd = fleet.join(2, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet, policy=POLICY | {"groups": [1.0]})
    fleet.act([good])
    fleet.wait(seconds=3601)
    seen(odd, fleet.now)
    fleet.step()
    assert "1 silent" in track_of(rollout, "entry").reason


def test_soak_time_is_kept(app: App, fleet: Fleet) -> None:
    devices = fleet.join(4, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet, policy={"groups": [1.0], "soak_s": 60})
    fleet.act(devices)
    fleet.step()
    track = track_of(rollout, "entry")
    assert (track.state, track.soaking_since) == ("soaking", fleet.now)
    fleet.wait(seconds=30)
    fleet.step()
    assert track_of(rollout, "entry").state == "soaking"
    fleet.wait(seconds=30)
    fleet.step()
    assert state_of(rollout) == "finished"


def test_a_filter_leaves_devices_out(app: App, fleet: Fleet) -> None:
    beta = fleet.join(2, "entry", tags=["beta"])
    others = fleet.join(3, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet, filter="tag:beta", policy={"groups": [1.0]})
    assert fleet.act([*beta, *others]) == {"entry": 2}
    fleet.step()
    assert state_of(rollout) == "finished"
    (standpoint,) = selectors.why_not_yet(others[0])
    assert standpoint.reason == "The rollout's filter does not match the device."


def test_reports_are_monotonic_and_repeats_harmless(app: App, fleet: Fleet) -> None:
    (device,) = fleet.join(1, "entry")
    begin(make_release(app, ["entry"]), fleet)
    (offer,) = fleet.offers(device)
    said: list[tuple[str, dict[str, Any]]] = [
        ("offered", {"waiting": "wifi"}),
        ("downloading", {}),
        ("verifying", {"downloaded_bytes": 5000, "reused_bytes": 10}),
        ("downloading", {}),  # a step that began again
        ("testing", {}),
        ("active", {"self_test": self_test()}),
    ]
    events = [
        install_event(fleet.now + timedelta(seconds=second), offer, state, **fields)
        for second, (state, fields) in enumerate(said)
    ]
    assert services.apply_install_events(device=device, events=events, now=fleet.now).ended
    row = AssignmentRow.objects.get(device=device)
    assert (row.state, row.waiting, row.downloaded_bytes, row.reused_bytes) == ("active", "", 5000, 10)
    assert row.self_test == msgspec.to_builtins(self_test())
    states = list(AssignmentEvent.objects.order_by("id").values_list("state", flat=True))
    assert states == ["offered", "offered", "downloading", "verifying", "testing", "active"]
    again = services.apply_install_events(device=device, events=events, now=fleet.now)
    assert not again.changed
    assert AssignmentEvent.objects.count() == len(states)


def test_a_repeated_old_report_does_not_undo_a_retry(app: App, fleet: Fleet) -> None:
    (device,) = fleet.join(1, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet)
    (offer,) = fleet.offers(device)
    failed = install_event(fleet.now, offer, "failed", failure="output_mismatch")
    services.apply_install_events(device=device, events=[failed], now=fleet.now)
    fleet.step()
    services.resume_track(track=track_of(rollout, "entry"), actor=ACTOR, now=fleet.now)
    services.apply_install_events(device=device, events=[failed], now=fleet.now)
    assert AssignmentRow.objects.get().state == "offered"


def test_events_of_strangers_change_nothing(
    app: App, other_app: App, fleet: Fleet, other_tenant: Tenant
) -> None:
    (device,) = fleet.join(1, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet)
    (offer,) = fleet.offers(device)
    (stranger,) = make_devices(other_tenant, 1, class_name="entry")
    event = install_event(fleet.now, offer, "failed")
    assert not services.apply_install_events(device=stranger, events=[event], now=fleet.now).changed
    unknown = [
        msgspec.structs.replace(event, rollout="0" * 36),
        msgspec.structs.replace(event, build=str(rollout.pk)),
        msgspec.structs.replace(event, rollout="-" * 36),
    ]
    assert not services.apply_install_events(device=device, events=unknown, now=fleet.now).changed
    assert AssignmentRow.objects.get().state == "offered"


def test_a_report_without_an_offer_makes_the_row(app: App, fleet: Fleet) -> None:
    (device,) = fleet.join(1, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet)
    track = track_of(rollout, "entry")
    offer = AssignedModel(
        model="minilm", version=1, rollout=str(rollout.pk), build=str(track.build_id),
        target="x", sha256="0" * 64, length=1,
    )  # fmt: skip
    fleet.report(device, offer, "active", self_test=self_test())
    assert AssignmentRow.objects.get().state == "active"


def test_the_assignment_is_signed_anew_only_when_it_changes(app: App, fleet: Fleet) -> None:
    (device,) = fleet.join(1, "entry")
    device = Device.objects.select_related("tenant").get(pk=device.pk)
    empty = fleet.assignment(device)
    assert (empty.sequence, empty.models, empty.device) == (1, [], str(device.pk))
    begin(make_release(app, ["entry"]), fleet)
    first = services.signed_assignment_for(device=device, now=fleet.now)
    fleet.wait(hours=1)
    assert services.signed_assignment_for(device=device, now=fleet.now) == first
    document = json.loads(first)["signed"]
    assert document["sequence"] == 2
    assert document["expires"] - document["issued"] == 7 * 86400
    fleet.wait(days=4)  # past half of its lifetime
    renewed = fleet.assignment(device)
    assert renewed.sequence == 3
    assert renewed.expires > document["expires"]


def test_desired_names_the_target_of_the_devices_class(app: App, fleet: Fleet) -> None:
    entry, mid = fleet.join(1, "entry")[0], fleet.join(1, "mid")[0]
    release = make_release(app, ["entry", "mid"])
    rollout = begin(release, fleet, policy={"groups": [1.0]})
    targets = {
        device.class_name: services.desired_for(device=device, now=fleet.now)[1].models[0].target
        for device in (entry, mid)
    }
    assert targets == dict(release.entries.values_list("class_name", "target_path"))
    generation, desired = services.desired_for(device=entry, now=fleet.now)
    assert desired.generation == generation
    assert desired.models[0].rollout == str(rollout.pk)


def test_a_device_that_changes_its_class_gets_the_other_build(app: App, fleet: Fleet) -> None:
    make_class(app.tenant, "entry")
    make_class(app.tenant, "mid", filter="ram_mb >= 4096")
    (device,) = fleet.join(1, "entry", ram_mb=3072)
    rollout = begin(make_release(app, ["entry", "mid"]), fleet, policy={"groups": [1.0]})
    fleet.act([device])
    before = services.desired_for(device=device, now=fleet.now)[0]
    device = device_services.store_capabilities(device=device, report=capability_report(ram_mb=6144))
    assert device.class_name == "mid"
    assert services.desired_for(device=device, now=fleet.now)[0] > before
    (offer,) = fleet.offers(device)
    assert offer.build == str(track_of(rollout, "mid").build_id)
    row = AssignmentRow.objects.get()
    assert (row.state, row.class_name) == ("offered", "mid")
    fleet.install(device, offer)
    assert AssignmentRow.objects.get().state == "active"


def test_who_runs_it_keeps_it_when_classes_or_attributes_change(app: App, fleet: Fleet) -> None:
    make_class(app.tenant, "entry")
    (device,) = fleet.join(1, "entry", ram_mb=3072, storage_free_mb=900)
    everybody = {"groups": [1.0]}
    rollout = begin(make_release(app, ["entry"]), fleet, filter="storage_free_mb > 800", policy=everybody)
    (offer,) = fleet.offers(device)
    Device.objects.update(storage_free_mb=700)  # what was downloaded takes room
    assert fleet.offers(device) == [offer]
    fleet.install(device, offer)
    device_services.delete_device_class(
        device_class=device_selectors.device_class(app.tenant, "entry"), actor=ACTOR
    )
    device.refresh_from_db()
    assert device.class_name == ""
    assert fleet.offers(device) == [offer]
    assert services.desired_for(device=device, now=fleet.now)[1].models[0].target == offer.target
    services.roll_back_rollout(rollout=rollout, actor=ACTOR)
    assert fleet.offers(device) == []


def test_nobody_is_dropped_silently(app: App, fleet: Fleet) -> None:
    make_class(app.tenant, "forgotten", filter="ram_mb > 9500")
    release = make_release(app, ["entry"])
    make_class(app.tenant, "newer", filter="ram_mb > 9000")
    make_class(app.tenant, "forgotten", filter="ram_mb > 9500", title="edited")  # makes no class new
    release.entries.create(tenant=app.tenant, class_name="watch", reason="needs 60 MB, has 40 MB")
    fleet.join(1, "entry")
    stray, newer, watch, _ = (fleet.join(1, name)[0] for name in ("", "newer", "watch", "forgotten"))
    rollout = begin(release, fleet)
    rows = {row.class_name: row for row in selectors.progress(rollout, now=fleet.now)}
    assert rows[""].reason.startswith("These devices are in no class")
    assert rows["newer"].reason.startswith("The class is newer than the release")
    assert rows["forgotten"].reason == (
        "No build of minilm v1 was requested for this class: request one, then make a new release."
    )
    assert rows["watch"].reason == "needs 60 MB, has 40 MB"
    assert {rows[name].state for name in ("", "newer", "watch", "forgotten")} == {"excluded"}
    assert all(rows[name].eligible == 1 for name in rows)
    assert "in no class" in selectors.why_not_yet(stray)[0].reason
    for device in (newer, watch):
        assert "has no build for class" in selectors.why_not_yet(device)[0].reason


def test_why_not_yet(app: App, fleet: Fleet) -> None:
    devices = fleet.join(30, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet)
    inside = next(device for device in devices if selectors.offers_for(device))
    outside = next(device for device in devices if not selectors.offers_for(device))

    def reason(device: Device) -> str:
        return selectors.why_not_yet(device)[0].reason

    share = RolloutTrack.objects.get(rollout=rollout).threshold  # 10 %, or what one device needs
    assert reason(outside) == f"Not its group yet: {share:.0%} of class entry are in."
    assert reason(inside) == "Offered; the device has not come for it yet."
    (offer,) = fleet.offers(inside)
    fleet.report(inside, offer, "offered", waiting="wifi")
    assert reason(inside) == "It waits for: wifi."
    fleet.report(inside, offer, "verifying")
    assert reason(inside) == "Under way: verifying."
    fleet.report(inside, offer, "failed", failure="internal")
    assert "failed" in reason(inside)
    fleet.step()
    assert reason(outside).startswith("Class entry is paused: 1 of 1 devices of class entry failed")
    services.roll_back_rollout(rollout=rollout, actor=ACTOR)
    assert selectors.why_not_yet(outside) == []


def test_stepping_twice_at_once_moves_once(app: App, fleet: Fleet) -> None:
    devices = fleet.join(20, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet)
    fleet.act(devices)
    stale = track_of(rollout, "entry")
    fleet.step()
    decisions = RolloutDecision.objects.count()
    policy = services.stepping.parse_policy(rollout.policy)
    assert services.stepping._step_track(rollout, stale, policy, fleet.now) == 0
    assert RolloutDecision.objects.count() == decisions


def test_only_a_draft_can_be_started_or_deleted(app: App, fleet: Fleet) -> None:
    rollout = begin(make_release(app, ["entry"]), fleet)
    with pytest.raises(RolloutConflict) as caught:
        services.start_rollout(rollout=rollout, actor=ACTOR)
    assert caught.value.code == "rollout_state"
    with pytest.raises(RolloutConflict, match="delete is not possible"):
        services.delete_rollout(rollout=rollout, actor=ACTOR)
    draft = services.create_rollout(release=rollout.release, name="second", actor=ACTOR)
    services.delete_rollout(rollout=draft, actor=ACTOR)
    assert not Rollout.objects.filter(pk=draft.pk).exists()
    actions = AuditEntry.objects.order_by("id").values_list("action", flat=True)
    assert [action for action in actions if action.startswith("rollout.")] == [
        "rollout.create",
        "rollout.start",
        "rollout.create",
        "rollout.delete",
    ]


def test_what_could_not_be_followed_is_refused_when_stored(app: App, fleet: Fleet) -> None:
    release = make_release(app, ["entry"])
    with pytest.raises(InvalidPolicy) as caught:
        services.create_rollout(release=release, name="x", policy={"groups": [0.5]}, actor=ACTOR)
    assert caught.value.field == "groups"
    with pytest.raises(FilterError):
        services.create_rollout(release=release, name="x", filter="colour == 1", actor=ACTOR)
    with pytest.raises(RolloutConflict, match="no class") as conflict:
        services.create_rollout(release=make_release(app, [], number=2), name="x", actor=ACTOR)
    assert conflict.value.code == "release_has_no_build"
    assert Rollout.objects.count() == 0


def test_an_unpublished_release_does_not_start(app: App, fleet: Fleet) -> None:
    release = make_release(app, ["entry"])
    Release.objects.update(state="signing")
    rollout = services.create_rollout(release=release, name="x", actor=ACTOR)
    with pytest.raises(RolloutConflict) as caught:
        services.start_rollout(rollout=rollout, actor=ACTOR)
    assert caught.value.code == "release_not_published"
    assert state_of(rollout) == "draft"


def test_one_rollout_that_cannot_be_stepped_does_not_hold_up_the_others(app: App, fleet: Fleet) -> None:
    devices = fleet.join(2, "entry")
    broken = begin(make_release(app, ["entry"], model="vision"), fleet)
    rollout = begin(make_release(app, ["entry"]), fleet, policy={"groups": [1.0]})
    Rollout.objects.filter(pk=broken.pk).update(policy={"groups": "none"})
    for device in devices:
        offer = next(offer for offer in fleet.offers(device) if offer.model == "minilm")
        fleet.install(device, offer)
    fleet.step()
    assert (state_of(rollout), state_of(broken)) == ("finished", "running")
    services.step_touched(rollout_ids=[broken.pk], now=fleet.now)  # nor does a report fail for it


def test_the_periodic_task_steps(app: App, fleet: Fleet) -> None:
    rollout = services.create_rollout(release=make_release(app, ["entry"]), name="x", actor=ACTOR)
    Rollout.objects.update(state="running")
    step_task()
    assert state_of(rollout) == "finished"


def test_direct_steps_take_a_share_of_the_time_only() -> None:
    now = [0.0]
    pace = services.stepping.Pace(lambda: now[0], share=0.1)
    key, other = uuid.uuid4(), uuid.uuid4()

    def slow() -> None:
        now[0] += 2.0

    assert pace.run(key, slow)
    assert not pace.run(key, slow)
    assert pace.run(other, slow)
    now[0] = 21.9
    assert not pace.run(key, slow)
    now[0] = 22.0
    assert pace.run(key, slow)


def test_reads_stay_within_the_tenant(app: App, fleet: Fleet, other_tenant: Tenant) -> None:
    fleet.join(2, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet)
    assert list(selectors.rollouts_of(app.tenant)) == [selectors.rollout(app.tenant, str(rollout.pk))]
    assert list(selectors.rollouts_of(app.tenant, state="draft")) == []
    assert not selectors.rollouts_of(other_tenant).exists()
    assert not selectors.tracks_of(other_tenant).exists()
    for tenant, identifier in ((other_tenant, rollout.pk), (app.tenant, "x")):
        with pytest.raises(Missing) as caught:
            selectors.rollout(tenant, identifier)
        assert caught.value.code == "rollout_not_found"


def test_what_a_device_took_part_in(app: App, fleet: Fleet) -> None:
    (device,) = fleet.join(1, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet)
    fleet.act([device])
    (row,) = selectors.assignments_of_device(device)
    assert [event.state for event in row.events.order_by("id")] == [
        "offered",
        "downloading",
        "testing",
        "active",
    ]
    assert list(selectors.assignments_of(rollout, class_name="entry", state="active")) == [row]
    assert not selectors.assignments_of(rollout, class_name="mid").exists()
    assert [decision.action for decision in selectors.decisions_of(rollout)] == ["open", "start"]


def test_query_counts_do_not_grow_with_devices(
    app: App, fleet: Fleet, django_assert_num_queries: Any
) -> None:
    fleet.join(5, "entry")
    rollout = begin(make_release(app, ["entry"]), fleet)
    track = track_of(rollout, "entry")
    policy = services.stepping.parse_policy(rollout.policy)
    for more in (0, 50):
        fleet.join(more, "entry")
        with django_assert_num_queries(5):
            selectors.standing_of(rollout, track, policy, now=fleet.now)
