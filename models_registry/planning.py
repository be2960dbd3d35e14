"""What the planner needs of a version, and what it answers, with the time that it took."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import msgspec

from models_registry.models import Build, ModelVersion
from quantize_worker.contract import (
    MeasuredBuild,
    ModelFacts,
    ParetoPoint,
    Recipe,
    TailorPlan,
    Target,
    WorkerSpeed,
    digest,
)
from quantize_worker.formats import FORMATS
from quantize_worker.plan import PlanOutcome, consider, describe, pareto

FRONT_POINTS = 50
MEASURED_STATES = (Build.State.READY, Build.State.REJECTED)


class Planned(msgspec.Struct, kw_only=True, frozen=True):
    """A plan for one class, what making it took, and each candidate's mix of formats in words."""

    target: Target
    outcome: PlanOutcome
    took_ms: float
    descriptions: list[str]


def facts_of(version: ModelVersion) -> ModelFacts:
    """The facts of a version that is ready."""
    return msgspec.convert(version.facts, ModelFacts)


def plan(
    facts: ModelFacts, target: Target, measured: Sequence[MeasuredBuild] = (), *, learned: bool = False
) -> Planned:
    """Plan one class: candidates, what was left out, and the nearest budget where nothing fits.

    Args:
        learned: have the rounding of INT4 weights learned by distillation: slower, and closer.
    """
    began = time.perf_counter()
    outcome = consider(facts, target, measured)
    if learned:
        candidates = [_learned(candidate) for candidate in outcome.candidates]
        outcome = msgspec.structs.replace(outcome, candidates=candidates)
    took_ms = 1000 * (time.perf_counter() - began)
    descriptions = [describe(candidate.recipe, facts) for candidate in outcome.candidates]
    return Planned(target=target, outcome=outcome, took_ms=took_ms, descriptions=descriptions)


def _learned(plan: TailorPlan) -> TailorPlan:
    if not any(FORMATS[name].bits == 4 for name in plan.recipe.layers.values()):
        return plan
    return msgspec.structs.replace(plan, recipe=msgspec.structs.replace(plan.recipe, learned=True))


def front(facts: ModelFacts, target: Target) -> list[ParetoPoint]:
    """The best that can be had at each size, for one class."""
    return pareto(facts, target, points=FRONT_POINTS)


def measured_builds(
    version: ModelVersion, latencies: Mapping[str, float] | None = None
) -> list[MeasuredBuild]:
    """What has been measured on builds of this version, in a fixed order.

    Args:
        latencies: p50 in ms that devices of the class reported, by build id.
    """
    builds = Build.objects.filter(version=version, state__in=MEASURED_STATES, quality__isnull=False)
    return [
        MeasuredBuild(
            recipe=msgspec.convert(build.plan["recipe"], Recipe),
            quality=build.quality["value"],
            cosine=build.quality["cosine"],
            latency_ms=(latencies or {}).get(str(build.pk)),
        )
        for build in builds.order_by("recipe_digest")
        if build.quality is not None and "recipe" in build.plan
    ]


def digest_of(target: Target) -> str:
    """Changes when the class is edited, not when one more of its devices reports its speed."""
    return digest(msgspec.structs.replace(target, speed=WorkerSpeed()))
