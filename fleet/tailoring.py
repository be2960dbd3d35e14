"""Tailoring a version to device classes: what the registry needs to know of classes and devices.

The registry keys nothing into fleet: it gets a snapshot of each class, with the speed that its
devices have measured and the latencies that they have reported by now.
"""

from __future__ import annotations

from collections.abc import Sequence

from fleet.devices.models import DeviceClass
from fleet.devices.selectors import classes_of, target_of
from fleet.devices.speed import speeds_of
from fleet.rollouts.selectors import reported_latencies
from models_registry import planning
from models_registry.errors import WrongState
from models_registry.models import ModelVersion, Tailoring
from models_registry.planning import Planned
from models_registry.services.builds import request_builds
from quantize_worker.contract import Target
from tenancy.actor import Actor
from tenancy.errors import Conflict, NotFound
from tenancy.models import Tenant


def classes_named(tenant: Tenant, names: Sequence[str] = ()) -> list[DeviceClass]:
    """The current classes of these names by rank; without names all.

    Raises:
        NotFound: ``unknown_class``.
        Conflict: ``no_classes``.
    """
    classes = {row.name: row for row in classes_of(tenant)}
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise NotFound(f"There is no device class {', '.join(unknown)}.", code="unknown_class")
    if not classes:
        raise Conflict("There is no device class yet; create one first.", code="no_classes")
    return [row for name, row in classes.items() if not names or name in names]


def targets_of(tenant: Tenant, classes: Sequence[DeviceClass]) -> list[Target]:
    """Snapshots of classes, stored or not, with the speed of their devices by now."""
    speeds = speeds_of(tenant, classes)
    return [target_of(row, speed=speeds[row.name]) for row in classes]


def tailor(
    *,
    version: ModelVersion,
    names: Sequence[str] = (),
    replan: bool = False,
    learned: bool | None = None,
    actor: Actor,
) -> list[Tailoring]:
    """Have a version built for classes: see :func:`models_registry.services.builds.request_builds`.

    Args:
        names: of classes; empty: all.
        replan: plan unchanged classes anew, with what devices have measured since.
        learned: have the rounding of INT4 weights learned; None: as before.

    Raises:
        NotFound: ``unknown_class``.
        Conflict: ``no_classes``.
        WrongState: if the version is not ready.
    """
    tenant = version.tenant
    classes = classes_named(tenant, names)
    return request_builds(
        version=version,
        targets=targets_of(tenant, classes),
        latencies=reported_latencies(version, classes),
        replan=replan,
        learned=learned,
        actor=actor,
    )


def preview(*, version: ModelVersion, classes: Sequence[DeviceClass]) -> list[Planned]:
    """Plan classes, stored or not, without building or storing anything.

    Raises:
        WrongState: if the version is not ready.
    """
    if version.state != ModelVersion.State.READY:
        raise WrongState(
            f"{version} is {version.state}; only a version that is ready can be planned.",
            state=version.state,
        )
    facts = planning.facts_of(version)
    latencies = reported_latencies(version, classes)
    return [
        planning.plan(facts, target, planning.measured_builds(version, latencies.get(target.name)))
        for target in targets_of(version.tenant, classes)
    ]
