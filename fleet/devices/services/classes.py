"""Device classes: checked when stored, versioned, and devices sorted into them anew."""

from __future__ import annotations

import math
from typing import Any, get_args

from django.core.validators import validate_slug
from django.db import IntegrityError, transaction
from django.db.models import Max

from device_agent.protocol.messages import AcceleratorKind
from fleet.devices import filters, selectors
from fleet.devices.errors import DeviceStateConflict, InvalidDeviceClass
from fleet.devices.models import Device, DeviceClass
from fleet.devices.signals import devices_changed
from quantize_worker.contract import PRECISIONS, Objective
from tenancy.actor import Actor
from tenancy.audit import record
from tenancy.models import Tenant

UPDATE_CHUNK = 1000  # ids per UPDATE


def save_device_class(
    *,
    tenant: Tenant,
    name: str,
    filter: str,
    accelerator: str,
    execution_provider: str,
    precisions: list[str],
    memory_bytes: int,
    storage_bytes: int,
    quality_floor: float,
    title: str = "",
    rank: int | None = None,
    emulated: bool = False,
    latency_ms: float | None = None,
    energy_mwh: float | None = None,
    objective: str = "size",
    active_power_mw: float | None = None,
    actor: Actor,
) -> DeviceClass:
    """Make a class, or a new version of it, and sort the tenant's devices anew.

    Saving what is already stored changes nothing and returns the current version.

    Args:
        filter: text of the filter language; it may not name classes.
        precisions: those the accelerator accepts, the preferred one first.
        quality_floor: share of the source's quality, in [0, 1].
        rank: the lowest is tried first; by default the class's own, or the end.
        latency_ms, energy_mwh: budgets per inference, or None.
        objective: what is best among what holds floor and budgets: size, latency or quality.
        active_power_mw: of the accelerator at work; with a latency it gives the energy.

    Raises:
        InvalidDeviceClass: ``invalid_device_class`` with the ``field``.
        FilterError: ``invalid_filter``.
        DeviceStateConflict: ``device_class_changed``, when someone else saved it meanwhile.
    """
    fields: dict[str, Any] = {
        "title": title,
        "filter": filter.strip(),
        "accelerator": accelerator,
        "execution_provider": execution_provider,
        "emulated": emulated,
        "precisions": list(precisions),
        "memory_bytes": memory_bytes,
        "storage_bytes": storage_bytes,
        "quality_floor": quality_floor,
        "latency_ms": latency_ms,
        "energy_mwh": energy_mwh,
        "objective": objective,
        "active_power_mw": active_power_mw,
    }
    _check(name, rank, fields)
    try:
        return _save(tenant, name, rank, fields, actor)
    except IntegrityError:
        raise DeviceStateConflict(
            f"Someone else saved the class {name!r} at the same moment. Look at it and save again.",
            code="device_class_changed",
        ) from None


def draft_device_class(*, tenant: Tenant, name: str, fields: dict[str, Any]) -> DeviceClass:
    """A class that is not stored, checked as if it were: for planning what it would get.

    Args:
        fields: as :func:`save_device_class` takes them, without filter, title and rank.

    Raises:
        InvalidDeviceClass: ``invalid_device_class`` with the ``field``.
    """
    known: dict[str, Any] = {"title": "", "filter": "", "latency_ms": None, "energy_mwh": None}
    known |= {"objective": "size", "active_power_mw": None, "emulated": False} | fields
    _check(name, None, known)
    return DeviceClass(tenant=tenant, name=name, rank=0, **known)


@transaction.atomic
def _save(tenant: Tenant, name: str, rank: int | None, fields: dict[str, Any], actor: Actor) -> DeviceClass:
    versions = DeviceClass.objects.filter(tenant=tenant, name=name)
    current = versions.filter(current=True).first()
    fields["rank"] = rank if rank is not None else _default_rank(tenant, current)
    if current is not None:
        before = {field: getattr(current, field) for field in fields}
        if before == fields:
            return current
        versions.filter(pk=current.pk, current=True).update(current=False)
    latest = versions.aggregate(latest=Max("version"))["latest"] or 0
    saved = DeviceClass.objects.create(tenant=tenant, name=name, version=latest + 1, **fields)
    record(
        tenant=tenant,
        actor=actor,
        action="device_class.save",
        subject_type="device_class",
        subject=name,
        before=before if current else None,
        after={**fields, "version": saved.version},
    )
    reclassify(tenant=tenant)
    return saved


def _default_rank(tenant: Tenant, current: DeviceClass | None) -> int:
    if current is not None:
        return current.rank
    highest = selectors.classes_of(tenant).aggregate(highest=Max("rank"))["highest"]
    return 0 if highest is None else highest + 10


@transaction.atomic
def delete_device_class(*, device_class: DeviceClass, actor: Actor) -> None:
    """Take a class out of use; its versions stay for the record, its devices are sorted anew."""
    tenant = device_class.tenant
    removed = DeviceClass.objects.filter(tenant=tenant, name=device_class.name, current=True).update(
        current=False
    )
    if not removed:
        raise DeviceStateConflict(f"The class {device_class.name!r} is not in use any more.")
    record(
        tenant=tenant,
        actor=actor,
        action="device_class.delete",
        subject_type="device_class",
        subject=device_class.name,
        before={"version": device_class.version},
    )
    reclassify(tenant=tenant)


@transaction.atomic
def reclassify(*, tenant: Tenant) -> int:
    """Sort all devices of a tenant into its current classes; returns how many moved."""
    classes = selectors.class_filters(tenant)
    devices = Device.objects.filter(tenant=tenant).exclude(state=Device.State.DECOMMISSIONED)
    moved: dict[str, list[Any]] = {}
    for row in devices.values("pk", *filters.COLUMNS).iterator():
        name = selectors.classify(classes, filters.attributes_of(row))
        if name != row["class_name"]:
            moved.setdefault(name, []).append(row["pk"])
    for name, ids in moved.items():
        for start in range(0, len(ids), UPDATE_CHUNK):
            Device.objects.filter(pk__in=ids[start : start + UPDATE_CHUNK]).update(class_name=name)
    if moved:
        devices_changed.send(sender=Device, tenant=tenant)
    return sum(len(ids) for ids in moved.values())


def _check(name: str, rank: int | None, fields: dict[str, Any]) -> None:
    """Refuse what could only fail later; each refusal names its field."""
    if not 0 < len(name) <= 63 or not _is_slug(name):
        raise _invalid("name", "A class's name is 1 to 63 letters, digits, hyphens or underscores.")
    if rank is not None and not 0 <= rank < 2**31:
        raise _invalid("rank", "The rank is a whole number from 0 on.")
    if len(fields["title"]) > 100:
        raise _invalid("title", "The title has at most 100 characters.")
    if filters.parse(fields["filter"]).classes:
        raise _invalid("filter", "A class's filter may not name classes. Use attributes and tags.")
    if fields["accelerator"] not in get_args(AcceleratorKind):
        raise _invalid("accelerator", f"The accelerator is one of {', '.join(get_args(AcceleratorKind))}.")
    if not 0 < len(fields["execution_provider"]) <= 64:
        raise _invalid("execution_provider", "Name the execution provider, e.g. CPUExecutionProvider.")
    _check_precisions(fields["precisions"])
    _check_budgets(fields)


def _is_slug(name: str) -> bool:
    return validate_slug.regex.search(name) is not None  # type: ignore[union-attr]


def _check_precisions(precisions: list[str]) -> None:
    unknown = [precision for precision in precisions if precision not in PRECISIONS]
    if not precisions or unknown or len(set(precisions)) != len(precisions):
        raise _invalid(
            "precisions",
            f"List the accepted precisions once each, the preferred one first: {', '.join(PRECISIONS)}.",
        )


def _check_budgets(fields: dict[str, Any]) -> None:
    for field in ("memory_bytes", "storage_bytes"):
        if not 0 < fields[field] < 2**63:
            raise _invalid(field, f"{field} is a budget in bytes, above 0.")
    if not 0 <= fields["quality_floor"] <= 1:
        raise _invalid("quality_floor", "The quality floor is a share of the source's quality, 0 to 1.")
    for field in ("latency_ms", "energy_mwh", "active_power_mw"):
        value = fields[field]
        if value is not None and not (math.isfinite(value) and value > 0):
            raise _invalid(field, f"{field} is a figure above 0, or left out.")
    if fields["objective"] not in get_args(Objective):
        raise _invalid("objective", f"The objective is one of {', '.join(get_args(Objective))}.")


def _invalid(field: str, detail: str) -> InvalidDeviceClass:
    return InvalidDeviceClass(detail, field=field)
