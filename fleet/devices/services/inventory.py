"""What devices are: capability reports, last seen, and an operator's word on them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec
from django.db import transaction
from django.db.models import F

from device_agent.protocol.canonical import sha256_hex
from device_agent.protocol.messages import CapabilityReport as Report
from fleet.devices import lifecycle, selectors
from fleet.devices.errors import DeviceStateConflict, InvalidCapabilities
from fleet.devices.models import AcceleratorFigure, CapabilityReport, Device, DeviceSeen, SocDeclaration
from fleet.devices.signals import devices_changed
from fleet.errors import Refused
from tenancy.actor import Actor
from tenancy.audit import record
from tenancy.models import Tenant

SEEN_NOTED_EVERY = timedelta(seconds=10)
METRICS = ("fp32_gflops", "int8_gops", "bandwidth_gb_per_s", "session_start_ms")
MAX_FIGURE = 1e9
MAX_MB = 2**31 - 1
_TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def checked_tags(tags: Iterable[str]) -> list[str]:
    """Tags, sorted and without repetition.

    Raises:
        InvalidCapabilities: field ``tags``.
    """
    found = sorted(set(tags))
    if len(found) > 32 or not all(_TAG.fullmatch(tag) for tag in found):
        raise InvalidCapabilities(
            "Tags are at most 32 names of lower-case letters, digits, '.', '_' and '-'.", field="tags"
        )
    return found


@transaction.atomic
def store_capabilities(*, device: Device, report: Report) -> Device:
    """Store what a device says of itself, when it changed, and find the device's class anew.

    Attributes are promoted to columns of the device; measured figures go into the capability
    database, those of emulated accelerators flagged.

    Raises:
        InvalidCapabilities: ``invalid_capabilities`` with the ``field``.
    """
    _check(report)
    digest = sha256_hex(msgspec.json.encode(report, order="sorted"))
    device = Device.objects.select_for_update(of=("self",)).select_related("tenant").get(pk=device.pk)
    current = CapabilityReport.objects.filter(device=device, current=True)
    if current.filter(digest=digest).exists():
        return device
    current.update(current=False)
    CapabilityReport.objects.create(
        tenant=device.tenant, device=device, digest=digest, report=msgspec.to_builtins(report)
    )
    _store_figures(device, report)
    return _promote(device, report)


def _check(report: Report) -> None:
    for field in ("ram_mb", "storage_free_mb"):
        if getattr(report, field) > MAX_MB:
            raise InvalidCapabilities(f"{field} is above {MAX_MB}. Send it in megabytes.", field=field)
    checked_tags(report.tags)
    for accelerator in report.accelerators:
        for metric in METRICS:
            value = getattr(accelerator, metric)
            if value is not None and not 0 <= value <= MAX_FIGURE:
                raise InvalidCapabilities(
                    f"{metric} of {accelerator.name!r} is not between 0 and {MAX_FIGURE:g}.", field=metric
                )


def _promote(device: Device, report: Report) -> Device:
    """Attributes to columns, then the class; one UPDATE."""
    before = device.class_name
    for name in ("soc", "ram_mb", "storage_free_mb", "os", "os_version", "runtime_version", "agent_version"):
        setattr(device, name, getattr(report, name))
    device.time_zone = report.time_zone
    device.accelerators = sorted({accelerator.kind for accelerator in report.accelerators})
    device.emulated = any(accelerator.emulated for accelerator in report.accelerators)
    device.tags = sorted({*device.granted_tags, *report.tags})
    device.class_name = ""
    device.class_name = selectors.classify(
        selectors.class_filters(device.tenant), selectors.attributes(device)
    )
    device.save()
    if device.class_name != before:
        devices_changed.send(sender=Device, tenant=device.tenant)
    return device


def _store_figures(device: Device, report: Report) -> None:
    """Replace the device's figures. Of two accelerators of one kind and provider the first counts."""
    rows: dict[tuple[str, str, str], AcceleratorFigure] = {}
    for accelerator in report.accelerators:
        for metric in METRICS:
            value = getattr(accelerator, metric)
            key = (accelerator.kind, accelerator.execution_provider[:64], metric)
            if value is not None and key not in rows:
                rows[key] = AcceleratorFigure(
                    tenant=device.tenant,
                    device=device,
                    soc=report.soc,
                    accelerator=key[0],
                    execution_provider=key[1],
                    emulated=accelerator.emulated,
                    metric=metric,
                    value=value,
                )
    AcceleratorFigure.objects.filter(device=device).delete()
    AcceleratorFigure.objects.bulk_create(rows.values())


def note_seen(*, device: Device, now: datetime) -> None:
    """Remember that a device was heard of; at most one write per device in ten seconds.

    Args:
        device: with ``seen`` already selected, as :func:`selectors.device_for_token` gives it.
    """
    seen: DeviceSeen | None = getattr(device, "seen", None)
    if seen is not None:
        if now - seen.last_seen_at >= SEEN_NOTED_EVERY:
            DeviceSeen.objects.filter(pk=device.pk, last_seen_at__lt=now).update(last_seen_at=now)
        return
    DeviceSeen.objects.bulk_create(
        [DeviceSeen(tenant_id=device.tenant_id, device=device, last_seen_at=now)], ignore_conflicts=True
    )


def accept_device(*, device: Device, actor: Actor) -> Device:
    """Let a pending or rejected device in. Raises DeviceStateConflict."""
    return _change_state(device, "accept", actor)


def reject_device(*, device: Device, actor: Actor) -> Device:
    """Refuse a pending device. Raises DeviceStateConflict."""
    return _change_state(device, "reject", actor)


def decommission_device(*, device: Device, actor: Actor) -> Device:
    """Take a device out for good: its tokens end at once. Raises DeviceStateConflict."""
    return _change_state(device, "decommission", actor)


@transaction.atomic
def _change_state(device: Device, event: str, actor: Actor) -> Device:
    device.refresh_from_db(fields=["state"])
    before = device.state
    after = lifecycle.following(before, event)
    changed = after is not None and Device.objects.filter(pk=device.pk, state=before).update(
        state=after, token_epoch=F("token_epoch") + 1
    )
    device.refresh_from_db()
    if not changed:
        possible = " or ".join(lifecycle.possible_events(device.state)) or "nothing"
        raise DeviceStateConflict(f"The device is {device.state}: {event} is not possible, {possible} is.")
    record(
        tenant=device.tenant,
        actor=actor,
        action=f"device.{event}",
        subject_type="device",
        subject=device.pk,
        before={"state": before},
        after={"state": after},
    )
    devices_changed.send(sender=Device, tenant=device.tenant)
    return device


def declare_figure(
    *, tenant: Tenant, soc: str, accelerator: str, metric: str, value: float, source: str, actor: Actor
) -> SocDeclaration:
    """Store a data sheet's figure of a SoC, to stand beside what devices measure.

    Raises:
        Refused: ``invalid_declaration``.
    """
    if metric not in METRICS or accelerator not in ("cpu", "gpu", "npu") or not 0 <= value <= MAX_FIGURE:
        raise Refused(
            f"A declaration needs an accelerator (cpu, gpu, npu), a metric ({', '.join(METRICS)}) and a "
            "value that is not negative.",
            code="invalid_declaration",
        )
    if not (0 < len(soc) <= 100 and 0 < len(source) <= 300):
        raise Refused("Name the SoC and the source of the figure.", code="invalid_declaration")
    declaration, _ = SocDeclaration.objects.update_or_create(
        tenant=tenant,
        soc=soc,
        accelerator=accelerator,
        metric=metric,
        defaults={"value": value, "source": source},
    )
    record(
        tenant=tenant,
        actor=actor,
        action="soc.declare",
        subject_type="soc",
        subject=soc,
        after={"accelerator": accelerator, "metric": metric, "value": value, "source": source},
    )
    return declaration
