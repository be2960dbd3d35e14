"""Device classes, inventory and provisioning keys: refused when stored, versioned, per tenant."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from fleet.devices import selectors, services
from fleet.devices.errors import DeviceStateConflict, FilterError, InvalidDeviceClass
from fleet.devices.models import Device, DeviceClass
from fleet.errors import Missing, Refused
from fleet.rollouts.models import DesiredGeneration
from tenancy.models import AuditEntry, Tenant
from tests.factories import ACTOR, make_class, make_devices, seen

pytestmark = pytest.mark.django_db(databases="__all__")


def classes(tenant: Tenant) -> dict[str, str]:
    return dict(Device.objects.filter(tenant=tenant).values_list("name", "class_name"))


def test_a_class_gathers_the_devices_that_its_filter_means(tenant: Tenant, other_tenant: Tenant) -> None:
    make_devices(tenant, 2, class_name="", ram_mb=3000)
    make_devices(tenant, 1, class_name="x", ram_mb=8000)
    make_devices(other_tenant, 1, class_name="", ram_mb=3000)
    make_class(tenant, "entry")
    assert classes(tenant) == {"-0": "entry", "-1": "entry", "x-0": ""}
    assert classes(other_tenant) == {"-0": ""}
    assert selectors.class_counts(tenant) == {"entry": 2, "": 1}
    assert selectors.class_counts(other_tenant) == {"": 1}


def test_the_first_class_by_rank_wins_and_a_new_version_moves_devices(tenant: Tenant) -> None:
    (device,) = make_devices(tenant, 1, class_name="", ram_mb=3000)
    make_class(tenant, "any", filter="", rank=5)
    make_class(tenant, "entry", rank=3)
    assert classes(tenant)[device.name] == "entry"
    changed = make_class(tenant, "entry", filter="ram_mb < 2000")
    assert (changed.version, changed.rank, changed.current) == (2, 3, True)
    assert classes(tenant)[device.name] == "any"
    assert DeviceClass.objects.filter(name="entry", current=True).count() == 1
    services.delete_device_class(device_class=selectors.device_class(tenant, "any"), actor=ACTOR)
    assert classes(tenant)[device.name] == ""
    assert [row.name for row in selectors.classes_of(tenant)] == ["entry"]
    with pytest.raises(DeviceStateConflict, match="not in use"):
        services.delete_device_class(device_class=DeviceClass.objects.get(name="any"), actor=ACTOR)
    assert make_class(tenant, "any", filter="").version == 2


def test_saving_the_same_again_makes_no_version(tenant: Tenant) -> None:
    first = make_class(tenant, "entry")
    assert make_class(tenant, "entry") == first
    assert make_class(tenant, "mid").rank > first.rank
    assert AuditEntry.objects.filter(action="device_class.save").count() == 2


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "x" * 64}, "name"),
        ({"rank": -1}, "rank"),
        ({"title": "x" * 101}, "title"),
        ({"filter": "class:mid"}, "filter"),
        ({"accelerator": "tpu"}, "accelerator"),
        ({"execution_provider": ""}, "execution_provider"),
        ({"precisions": []}, "precisions"),
        ({"precisions": ["int3"]}, "precisions"),
        ({"precisions": ["int4", "int4"]}, "precisions"),
        ({"memory_bytes": 0}, "memory_bytes"),
        ({"storage_bytes": 2**63}, "storage_bytes"),
        ({"quality_floor": 1.01}, "quality_floor"),
        ({"quality_floor": float("nan")}, "quality_floor"),
        ({"latency_ms": 0}, "latency_ms"),
        ({"energy_mwh": float("inf")}, "energy_mwh"),
    ],
)
def test_an_invalid_class_is_refused_naming_the_field(
    tenant: Tenant, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidDeviceClass) as caught:
        make_class(tenant, **{"name": "entry"} | change)
    assert caught.value.as_problem()["field"] == field
    assert not DeviceClass.objects.exists()


def test_an_invalid_filter_is_refused_with_its_column(tenant: Tenant) -> None:
    with pytest.raises(FilterError) as caught:
        make_class(tenant, filter="ram_mb >= lots")
    assert caught.value.column == 11


def test_a_target_is_a_snapshot_of_the_class(tenant: Tenant) -> None:
    target = selectors.target_of(make_class(tenant, "npu", accelerator="npu", emulated=True, latency_ms=20.0))
    assert (target.name, target.version, target.accelerator, target.emulated) == ("npu", 1, "npu", True)
    assert (target.precisions, target.latency_ms, target.energy_mwh) == (["int4", "int8-dynamic"], 20.0, None)


def test_only_moving_devices_raises_the_generation(tenant: Tenant) -> None:
    make_devices(tenant, 1, class_name="", ram_mb=3000)
    make_class(tenant, "none", filter="ram_mb > 90000")
    assert not DesiredGeneration.objects.exists()
    make_class(tenant, "entry")
    assert DesiredGeneration.objects.get(tenant=tenant).generation == 2


def test_a_state_changes_only_as_the_lifecycle_says(tenant: Tenant) -> None:
    (device,) = make_devices(tenant, 1, class_name="entry")
    with pytest.raises(DeviceStateConflict, match="accepted: accept is not possible, decommission is"):
        services.accept_device(device=device, actor=ACTOR)
    stale = Device.objects.get(pk=device.pk)
    services.decommission_device(device=device, actor=ACTOR)
    with pytest.raises(DeviceStateConflict, match="nothing is"):
        services.decommission_device(device=stale, actor=ACTOR)
    assert device.token_epoch == 2
    (entry,) = AuditEntry.objects.filter(action="device.decommission")
    assert (entry.before, entry.after) == ({"state": "accepted"}, {"state": "decommissioned"})


def test_devices_are_found_by_filter_class_state_and_text(tenant: Tenant, other_tenant: Tenant) -> None:
    first, second = make_devices(tenant, 2, class_name="entry", ram_mb=3000, tags=["beta"])
    (big,) = make_devices(tenant, 1, class_name="mid", ram_mb=8000, soc="sm8650")
    make_devices(other_tenant, 1, class_name="mid", ram_mb=8000, soc="sm8650")
    services.decommission_device(device=second, actor=ACTOR)

    def found(**criteria: Any) -> set[uuid.UUID]:
        return set(selectors.devices_of(tenant, **criteria).values_list("pk", flat=True))

    assert found() == {first.pk, second.pk, big.pk}
    assert found(filter="ram_mb > 4000") == found(class_name="mid") == found(search="SM86") == {big.pk}
    assert found(filter="tag:beta and class:entry", state="accepted") == {first.pk}
    assert found(search=str(first.pk)) == {first.pk}
    assert found(search="entry-") == {first.pk, second.pk}
    assert found(class_name="") == found(search="nothing like it") == set()
    assert selectors.state_counts(tenant) == {
        "accepted": 2,
        "pending": 0,
        "rejected": 0,
        "decommissioned": 1,
    }


@pytest.mark.parametrize("identifier", ["", "x", str(uuid.uuid4()), "\0"])
def test_a_device_that_is_not_there(tenant: Tenant, identifier: str) -> None:
    with pytest.raises(Missing) as caught:
        selectors.device(tenant, identifier)
    assert caught.value.code == "device_not_found"


def test_another_tenants_device_is_not_there(tenant: Tenant, other_tenant: Tenant) -> None:
    (device,) = make_devices(other_tenant, 1, class_name="entry")
    with pytest.raises(Missing):
        selectors.device(tenant, device.pk)
    assert selectors.device(other_tenant, str(device.pk)) == device


def test_last_seen_is_written_at_most_every_ten_seconds(
    tenant: Tenant, django_assert_num_queries: Any
) -> None:
    (device,) = make_devices(tenant, 1, class_name="entry")
    now = timezone.now()

    def fresh() -> Device:
        return Device.objects.select_related("seen").get(pk=device.pk)

    services.note_seen(device=fresh(), now=now)
    assert fresh().seen.last_seen_at == now
    row = fresh()
    with django_assert_num_queries(0):
        services.note_seen(device=row, now=now + timedelta(seconds=9))
    services.note_seen(device=fresh(), now=now + timedelta(seconds=10))
    assert fresh().seen.last_seen_at == now + timedelta(seconds=10)
    seen(device, now + timedelta(seconds=60))  # by another process, meanwhile
    services.note_seen(device=row, now=now + timedelta(seconds=30))
    assert fresh().seen.last_seen_at == now + timedelta(seconds=60)


def test_a_provisioning_key_is_shown_once_and_kept_as_a_digest(tenant: Tenant) -> None:
    key, plaintext = services.create_provisioning_key(
        tenant=tenant, name="demo", tags=["b", "a", "b"], actor=ACTOR
    )
    assert plaintext.startswith(f"pfk_{key.prefix}_")
    assert key.tags == ["a", "b"]
    assert plaintext not in {str(value) for value in vars(key).values()}
    now = timezone.now()
    assert selectors.provisioning_key_for(plaintext, now=now) == key
    services.revoke_provisioning_key(key=key, actor=ACTOR)
    services.revoke_provisioning_key(key=key, actor=ACTOR)
    assert selectors.provisioning_key_for(plaintext, now=now) is None
    assert AuditEntry.objects.filter(action="provisioning_key.revoke").count() == 1
    assert plaintext not in str(list(AuditEntry.objects.values()))


@pytest.mark.parametrize(
    ("change", "code"),
    [({"name": ""}, "invalid_name"), ({"tags": ["Not A Tag"]}, "invalid_tags")],
)
def test_an_invalid_provisioning_key_is_refused(tenant: Tenant, change: dict[str, Any], code: str) -> None:
    with pytest.raises(Refused) as caught:
        services.create_provisioning_key(tenant=tenant, actor=ACTOR, **{"name": "x"} | change)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "change", [{"metric": "tops"}, {"accelerator": "tpu"}, {"value": -1.0}, {"soc": ""}, {"source": ""}]
)
def test_an_invalid_declaration_is_refused(tenant: Tenant, change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "soc": "sm8650",
        "accelerator": "npu",
        "metric": "int8_gops",
        "value": 1.0,
        "source": "data sheet",
    }
    with pytest.raises(Refused) as caught:
        services.declare_figure(tenant=tenant, actor=ACTOR, **fields | change)
    assert caught.value.code == "invalid_declaration"
