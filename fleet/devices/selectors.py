"""Reads of devices, their classes and the capability database. Always within one tenant."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db.models import Avg, Count, Min, Q, QuerySet
from django.utils import timezone

from fleet.devices import filters, tokens
from fleet.devices.errors import DeviceNotAccepted, TokenInvalid
from fleet.devices.models import (
    AcceleratorFigure,
    CapabilityReport,
    Device,
    DeviceClass,
    ProvisioningKey,
    SocDeclaration,
)
from fleet.errors import Missing
from quantize_worker.contract import Target, WorkerSpeed
from tenancy.models import Tenant

PROVISIONING_PREFIX = "pfk_"


def devices_of(
    tenant: Tenant,
    *,
    filter: str = "",
    class_name: str | None = None,
    state: str | None = None,
    search: str = "",
) -> QuerySet[Device]:
    """A tenant's devices, ordered by id for paging by key.

    Args:
        filter: text of the filter language.
        class_name: "" means in no class.
        search: part of a name, a SoC or an id.

    Raises:
        FilterError: ``invalid_filter``.
    """
    devices = Device.objects.filter(tenant=tenant).select_related("seen").order_by("id")
    if class_name is not None:
        devices = devices.filter(class_name=class_name)
    if state:
        devices = devices.filter(state=state)
    if search:
        wanted = Q(name__icontains=search) | Q(soc__icontains=search)
        devices = devices.filter(wanted | Q(pk=uuid_of(search)))
    if filter.strip():
        devices = devices.filter(pk__in=matching_ids(devices, filters.parse(filter)))
    return devices


def matching_ids(devices: QuerySet[Device], condition: filters.Filter) -> list[uuid.UUID]:
    """Ids of those devices that the filter means, in the order given."""
    if not condition.text:
        return list(devices.values_list("pk", flat=True))
    rows = devices.order_by("id").values("pk", *filters.COLUMNS)
    return [row["pk"] for row in rows.iterator() if condition.matches(filters.attributes_of(row))]


def device(tenant: Tenant, device_id: uuid.UUID | str) -> Device:
    """One device.

    Raises:
        Missing: ``device_not_found``, also when it is another tenant's.
    """
    found = _device_or_none(tenant, device_id)
    if found is None:
        raise Missing("There is no such device in this tenant. List them first.", code="device_not_found")
    return found


def _device_or_none(tenant: Tenant, device_id: uuid.UUID | str) -> Device | None:
    devices = Device.objects.filter(tenant=tenant, pk=uuid_of(device_id))
    return devices.select_related("seen", "tenant").first()


NIL = uuid.UUID(int=0)


def uuid_of(identifier: uuid.UUID | str) -> uuid.UUID:
    """``identifier`` as a UUID; the nil UUID, which no row has, where it is none."""
    if isinstance(identifier, uuid.UUID):
        return identifier
    try:
        return uuid.UUID(identifier)
    except ValueError:
        return NIL


def capabilities_of(device: Device) -> dict[str, Any] | None:
    """The device's current capability report as it sent it, None before the first."""
    reports = CapabilityReport.objects.filter(device=device, current=True)
    return reports.values_list("report", flat=True).first()


def attributes(device: Device) -> dict[str, Any]:
    """What the filter language sees of a device."""
    return filters.attributes_of({name: getattr(device, name) for name in filters.COLUMNS})


def classes_of(tenant: Tenant) -> QuerySet[DeviceClass]:
    """The current version of each class, in the order in which they are tried."""
    return DeviceClass.objects.filter(tenant=tenant, current=True).order_by("rank", "name")


def device_class(tenant: Tenant, name: str) -> DeviceClass:
    """The current version of a class.

    Raises:
        Missing: ``device_class_not_found``.
    """
    found = classes_of(tenant).filter(name=name).first()
    if found is None:
        raise Missing(f"There is no device class {name!r}. List them first.", code="device_class_not_found")
    return found


def classify(classes: Iterable[tuple[str, filters.Filter]], attributes: filters.Attributes) -> str:
    """Name of the first class whose filter matches, "" where none does."""
    return next((name for name, condition in classes if condition.matches(attributes)), "")


def class_filters(tenant: Tenant) -> list[tuple[str, filters.Filter]]:
    """Names and parsed filters of the current classes by rank: input of :func:`classify`."""
    return [(name, filters.parse(text)) for name, text in classes_of(tenant).values_list("name", "filter")]


def target_of(device_class: DeviceClass, *, speed: WorkerSpeed | None = None) -> Target:
    """The snapshot of a class that the registry stores and plans for.

    Args:
        speed: of its devices, as :func:`fleet.devices.speed.speeds_of` finds it.
    """
    return Target(
        name=device_class.name,
        version=device_class.version,
        accelerator=device_class.accelerator,  # type: ignore[arg-type]  # checked when stored
        execution_provider=device_class.execution_provider,
        emulated=device_class.emulated,
        precisions=list(device_class.precisions),
        memory_bytes=device_class.memory_bytes,
        storage_bytes=device_class.storage_bytes,
        quality_floor=device_class.quality_floor,
        latency_ms=device_class.latency_ms,
        energy_mwh=device_class.energy_mwh,
        objective=device_class.objective,  # type: ignore[arg-type]  # checked when stored
        active_power_mw=device_class.active_power_mw,
        speed=speed or WorkerSpeed(),
    )


def class_counts(tenant: Tenant) -> dict[str, int]:
    """Accepted devices per class name; "" counts those in no class, when there are any."""
    counted = (
        Device.objects.filter(tenant=tenant, state=Device.State.ACCEPTED)
        .values_list("class_name")
        .annotate(devices=Count("pk"))
    )
    return dict.fromkeys(classes_of(tenant).values_list("name", flat=True), 0) | dict(counted)


def classes_since(tenant: Tenant) -> dict[str, datetime]:
    """When each class was first saved, those out of use included."""
    saved = DeviceClass.objects.filter(tenant=tenant).values_list("name")
    return dict(saved.annotate(since=Min("created_at")))


def state_counts(tenant: Tenant) -> dict[str, int]:
    """Devices per state, all states named."""
    counted = Device.objects.filter(tenant=tenant).values_list("state").annotate(devices=Count("pk"))
    return dict.fromkeys(Device.State.values, 0) | dict(counted)


@dataclass(frozen=True, slots=True)
class CapabilityFigure:
    """One figure of one accelerator of a SoC: measured mean over devices beside the declared one.

    ``emulated`` figures come from a CPU that stands in for the accelerator; they are listed
    apart and never beside a declaration.
    """

    soc: str
    accelerator: str
    metric: str
    emulated: bool
    measured: float | None
    devices: int
    declared: float | None
    source: str


def capability_figures(tenant: Tenant) -> list[CapabilityFigure]:
    """The capability database: declared and measured figures side by side, in two queries."""
    measured = (
        AcceleratorFigure.objects.filter(tenant=tenant)
        .values("soc", "accelerator", "metric", "emulated")
        .annotate(value=Avg("value"), devices=Count("device", distinct=True))
    )
    declared = {
        (row.soc, row.accelerator, row.metric): row for row in SocDeclaration.objects.filter(tenant=tenant)
    }
    figures = []
    for row in measured:
        key = (row["soc"], row["accelerator"], row["metric"])
        word = None if row["emulated"] else declared.pop(key, None)
        figures.append(_figure(*key, row["emulated"], row["value"], row["devices"], word))
    figures += [_figure(*key, False, None, 0, word) for key, word in declared.items()]
    return sorted(figures, key=lambda f: (f.soc, f.accelerator, f.metric, f.emulated))


def declared_figures(tenant: Tenant, soc: str) -> dict[tuple[str, str], float]:
    """What data sheets say of one SoC, by accelerator and metric."""
    rows = SocDeclaration.objects.filter(tenant=tenant, soc=soc)
    return {(row.accelerator, row.metric): row.value for row in rows}


def _figure(
    soc: str,
    accelerator: str,
    metric: str,
    emulated: bool,
    measured: float | None,
    devices: int,
    word: SocDeclaration | None,
) -> CapabilityFigure:
    return CapabilityFigure(
        soc=soc,
        accelerator=accelerator,
        metric=metric,
        emulated=emulated,
        measured=measured,
        devices=devices,
        declared=word.value if word else None,
        source=word.source if word else "",
    )


def provisioning_keys_of(tenant: Tenant) -> QuerySet[ProvisioningKey]:
    return ProvisioningKey.objects.filter(tenant=tenant).order_by("-created_at")


def provisioning_key_for(plaintext: str, *, now: datetime) -> ProvisioningKey | None:
    """The valid key with this plaintext, looked up by digest, or None."""
    if not plaintext.startswith(PROVISIONING_PREFIX):
        return None
    unexpired = Q(expires_at__isnull=True) | Q(expires_at__gt=now)
    return (
        ProvisioningKey.objects.filter(unexpired, revoked_at__isnull=True)
        .filter(digest=secret_digest(plaintext))
        .select_related("tenant")
        .first()
    )


def secret_digest(plaintext: str) -> str:
    """What is stored of a key or nonce: its SHA-256. They are random, so no slow hash is needed."""
    return hashlib.sha256(plaintext.encode()).hexdigest()


def token_secret() -> bytes:
    """The key of device tokens, derived from the server's secret for this one purpose."""
    return hashlib.sha256(b"pocketfleet/device-token\0" + settings.SECRET_KEY.encode()).digest()


def device_for_token(token: str, now: datetime | None = None) -> Device:
    """The accepted device that a token speaks for, read anew so that revocation holds at once.

    Raises:
        TokenInvalid: ``token_invalid``, ``token_expired`` or ``token_revoked``.
        DeviceNotAccepted: ``device_pending``, ``device_rejected`` or ``device_decommissioned``.
    """
    moment = (now or timezone.now()).timestamp()
    claims = tokens.verify(token_secret(), token, now=moment, key_epoch=settings.TOKEN_KEY_EPOCH)
    found = (
        Device.objects.filter(pk=claims.device, tenant_id=claims.tenant)
        .select_related("seen", "tenant")
        .first()
    )
    if found is None:
        raise TokenInvalid("The token's device is gone. Enrol again.")
    require_accepted(found)
    if found.token_epoch != claims.token_epoch:
        raise TokenInvalid("The device's tokens were revoked. Ask for a new one.", code="token_revoked")
    return found


_NOT_ACCEPTED = {
    Device.State.PENDING: "An operator has not accepted this device yet. Ask again later.",
    Device.State.REJECTED: "An operator rejected this device. Ask the operator, then enrol again.",
    Device.State.DECOMMISSIONED: "This device was decommissioned. Make a new key and enrol again.",
}


def require_accepted(device: Device) -> None:
    """Raises DeviceNotAccepted (``device_<state>``) unless the device is accepted."""
    if device.state != Device.State.ACCEPTED:
        state = Device.State(device.state)
        raise DeviceNotAccepted(_NOT_ACCEPTED[state], code=f"device_{state.value}")
