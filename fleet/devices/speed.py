"""How fast a class's devices are, by their own micro-benchmarks: the median device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from django.db.models import Count, F, Window
from django.db.models.functions import RowNumber

from fleet.devices.models import AcceleratorFigure, Device, DeviceClass
from quantize_worker.contract import WorkerSpeed
from tenancy.models import Tenant

FIELD_OF = {
    "fp32_gflops": "fp32_gflops",
    "int8_gops": "int8_gops",
    "bandwidth_gb_per_s": "memory_gb_s",
}
_KEY = ("device__class_name", "accelerator", "execution_provider", "emulated", "metric")


def speeds_of(tenant: Tenant, classes: Iterable[DeviceClass]) -> dict[str, WorkerSpeed]:
    """Per class the median over its accepted devices that have reported, in one query.

    Only figures of the class's own accelerator and execution provider count. Those of an emulated
    accelerator are the CPU's: they count for an emulated class alone.
    """
    medians = _medians(tenant)
    return {row.name: _speed(row, medians) for row in classes}


def _speed(row: DeviceClass, medians: dict[tuple[object, ...], float]) -> WorkerSpeed:
    mine = (row.name, row.accelerator, row.execution_provider, row.emulated)
    return WorkerSpeed(**{field: medians.get((*mine, metric), 0.0) for metric, field in FIELD_OF.items()})


def _medians(tenant: Tenant) -> dict[tuple[object, ...], float]:
    partition = [F(name) for name in _KEY]
    figures = AcceleratorFigure.objects.filter(
        tenant=tenant, metric__in=FIELD_OF, value__gt=0, device__state=Device.State.ACCEPTED
    ).annotate(
        place=Window(RowNumber(), partition_by=partition, order_by="value"),
        devices=Window(Count("pk"), partition_by=partition),
    )
    # the one in the middle, or the two: places (n + 1) / 2 and n / 2 + 1, rounded down
    middle = figures.filter(place__gte=(F("devices") + 1) / 2, place__lte=F("devices") / 2 + 1)
    values: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for *key, value in middle.values_list(*_KEY, "value"):
        values[tuple(key)].append(value)
    return {key: fmean(found) for key, found in values.items()}
