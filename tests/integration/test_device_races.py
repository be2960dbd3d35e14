"""Two at once: what must happen once happens once, on SQLite and on PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier
from typing import Any

import msgspec
import pytest
from django.db import connections

from device_agent.protocol.messages import EnrollRequest, Report
from fleet.devices import services as devices
from fleet.devices.errors import DeviceStateConflict, EnrolmentRefused
from fleet.devices.models import Device, DeviceClass
from fleet.rollouts import services as rollouts
from fleet.rollouts.models import Assignment, AssignmentEvent, RolloutDecision, SignedAssignment
from fleet.telemetry import services as telemetry
from fleet.telemetry.models import InferenceRow, TelemetryBatch
from models_registry.services.signing import initialise_repository
from tenancy.models import App, Tenant
from tests.factories import ACTOR, DeviceKey, inference, install_event, make_class, make_devices, make_release

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
AT_ONCE = 4


def at_once(work: Callable[[int], Any]) -> list[Any]:
    """Run ``work`` in several threads that start together; results, or the errors they ended with."""
    barrier = Barrier(AT_ONCE)

    def run(index: int) -> Any:
        try:
            barrier.wait(timeout=10)
            return work(index)
        except Exception as error:
            return error
        finally:
            connections.close_all()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(run, range(AT_ONCE)))


def test_a_nonce_is_used_by_one(tenant: Tenant, settings: Any) -> None:
    _, plaintext = devices.create_provisioning_key(tenant=tenant, name="x", actor=ACTOR)
    nonce = devices.issue_nonce(now=NOW)
    keys = [DeviceKey() for _ in range(AT_ONCE)]

    def enroll(index: int) -> Device:
        message = keys[index].enrolment(nonce, provisioning_key=plaintext, server=settings.PUBLIC_URL)
        return devices.enroll(request=msgspec.convert(message, EnrollRequest), now=NOW)

    results = at_once(enroll)
    assert sum(isinstance(result, Device) for result in results) == 1
    assert sum(isinstance(result, EnrolmentRefused) for result in results) == AT_ONCE - 1
    assert Device.objects.count() == 1


def test_one_key_enrols_one_device(tenant: Tenant, settings: Any) -> None:
    _, plaintext = devices.create_provisioning_key(tenant=tenant, name="x", actor=ACTOR)
    key = DeviceKey()
    nonces = [devices.issue_nonce(now=NOW) for _ in range(AT_ONCE)]

    def enroll(index: int) -> uuid.UUID:
        message = key.enrolment(nonces[index], provisioning_key=plaintext, server=settings.PUBLIC_URL)
        return devices.enroll(request=msgspec.convert(message, EnrollRequest), now=NOW).pk

    assert len(set(at_once(enroll))) == 1
    assert Device.objects.count() == 1


def test_a_batch_is_stored_once(tenant: Tenant) -> None:
    (device,) = make_devices(tenant, 1, class_name="entry")
    events = [inference(uuid.uuid4(), NOW, latency_ms=7) for _ in range(20)]
    report = Report(boot=str(uuid.uuid4()), first_sequence=0, events=[*events])

    results = at_once(lambda _: telemetry.ingest(device=device, report=report, received_at=NOW)[0])
    assert results == [19] * AT_ONCE
    assert (TelemetryBatch.objects.count(), InferenceRow.objects.count()) == (1, 20)


def test_a_class_gets_one_version_per_save(tenant: Tenant) -> None:
    make_class(tenant, "entry")
    results = at_once(lambda index: make_class(tenant, "entry", memory_bytes=1000 + index))
    saved = [result for result in results if isinstance(result, DeviceClass)]
    assert all(isinstance(result, DeviceClass | DeviceStateConflict) for result in results), results
    assert sorted(row.version for row in saved) == list(range(2, 2 + len(saved)))
    assert DeviceClass.objects.filter(current=True).count() == 1


def test_a_group_opens_once(app: App) -> None:
    device_rows = make_devices(app.tenant, 12, class_name="entry")
    rollout = rollouts.create_rollout(
        release=make_release(app, ["entry"]), name="x", policy={"groups": [0.3, 1.0]}, actor=ACTOR
    )
    rollouts.start_rollout(rollout=rollout, actor=ACTOR, now=NOW)
    (track,) = rollout.tracks.all()
    for device in device_rows:
        Assignment.objects.create(
            tenant=app.tenant, device=device, rollout=rollout, class_name="entry", state="active",
            version=rollout.release.version, build=track.build, changed_at=NOW,
        )  # fmt: skip
    results = at_once(lambda _: rollouts.step_rollouts(now=NOW))
    assert sum(results) == 2  # advance, finish
    assert list(
        RolloutDecision.objects.exclude(class_name="").order_by("id").values_list("action", flat=True)
    ) == [
        "open",
        "advance",
        "finish",
    ]


def test_starting_at_once_gives_each_rollout_its_own_order(app: App) -> None:
    drafts = [
        rollouts.create_rollout(release=make_release(app, ["entry"], number=n), name=str(n), actor=ACTOR)
        for n in range(AT_ONCE)
    ]
    results = at_once(lambda index: rollouts.start_rollout(rollout=drafts[index], actor=ACTOR, now=NOW).order)
    assert sorted(results) == list(range(1, AT_ONCE + 1))


def test_one_assignment_and_one_row_per_device(app: App) -> None:
    initialise_repository(tenant=app.tenant)
    (row,) = make_devices(app.tenant, 1, class_name="entry")
    device = Device.objects.select_related("tenant").get(pk=row.pk)
    rollout = rollouts.create_rollout(
        release=make_release(app, ["entry"]), name="x", policy={"groups": [1.0]}, actor=ACTOR
    )
    rollouts.start_rollout(rollout=rollout, actor=ACTOR, now=NOW)
    envelopes = at_once(lambda _: rollouts.signed_assignment_for(device=device, now=NOW))
    assert len(set(envelopes)) == 1
    assert SignedAssignment.objects.get().sequence == 1
    offer = msgspec.json.decode(envelopes[0])["signed"]["models"][0]

    class Offer:
        rollout, build, model, version = offer["rollout"], offer["build"], "minilm", 1

    event = install_event(NOW, Offer, "active")
    results = at_once(lambda _: rollouts.apply_install_events(device=device, events=[event], now=NOW))
    assert sum(bool(result.changed) for result in results) == 1
    assert AssignmentEvent.objects.filter(state="active").count() == 1
