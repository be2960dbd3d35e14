"""What devices have reported of builds' latency, for planning anew."""

from __future__ import annotations

import statistics
import uuid
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from fleet.devices.models import DeviceClass
from fleet.rollouts.models import Assignment
from fleet.telemetry.selectors import class_latencies
from models_registry.models import ModelVersion

NEWEST = 5000  # self-tests looked at


def reported_latencies(version: ModelVersion, classes: Iterable[DeviceClass]) -> dict[str, dict[str, float]]:
    """p50 in ms by class and build id; builds that no device of a class has run are left out.

    The median of the devices' self-tests: one sample at a time, as builds are measured. Where there
    is none, that of the requests that were served. Figures of emulated accelerators count for
    emulated classes alone.
    """
    emulated = {row.name: row.emulated for row in classes}
    tests: dict[tuple[str, str], list[float]] = defaultdict(list)
    for name, build_id, test in _self_tests(version):
        if test and test.get("passed") and bool(test.get("emulated")) == emulated.get(name):
            tests[name, str(build_id)].append(float(test["latency_p50_ms"]))
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for (name, build), p50_ms in class_latencies(version, emulated).items():
        found[name][build] = p50_ms
    for (name, build), values in tests.items():
        found[name][build] = statistics.median(values)
    return dict(found)


def _self_tests(version: ModelVersion) -> Iterable[tuple[str, uuid.UUID, Any]]:
    tested = Assignment.objects.filter(
        tenant_id=version.tenant_id, version=version, self_test__isnull=False
    ).order_by("-changed_at")
    return tested.values_list("class_name", "build_id", "self_test")[:NEWEST]
