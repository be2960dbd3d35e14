"""Pareto fronts: what a class could have at each size. Drawn by the sweep, soon after planning."""

from __future__ import annotations

import logging
import time
from itertools import groupby

import msgspec
from django.db.models import QuerySet

from models_registry import planning
from models_registry.models import ModelVersion, Tailoring
from quantize_worker.contract import ModelFacts, Target

log = logging.getLogger(__name__)

AT_ONCE = 50
SWEEP_S = 2.0  # a sweep has more to do than to draw


def draw_fronts(*, budget_s: float = SWEEP_S) -> int:
    """Draw fronts that are missing, one version after the other, for about ``budget_s`` seconds."""
    ends = time.monotonic() + budget_s
    missing = Tailoring.objects.filter(front__isnull=True, version__facts__isnull=False)
    drawn = 0
    for version_id, tailorings in groupby(_first(missing), key=lambda each: each.version_id):
        facts = planning.facts_of(ModelVersion.objects.only("facts").get(pk=version_id))
        for tailoring in tailorings:
            drawn += _draw(tailoring, facts)
            if time.monotonic() > ends:
                return drawn
    return drawn


def _first(missing: QuerySet[Tailoring]) -> list[Tailoring]:
    rows = missing.order_by("version_id", "class_name")
    return list(rows.only("version_id", "target", "target_digest")[:AT_ONCE])


def _draw(tailoring: Tailoring, facts: ModelFacts) -> bool:
    """Store one front, unless the class was planned anew meanwhile."""
    try:
        points = planning.front(facts, msgspec.convert(tailoring.target, Target))
    except Exception:  # one class's front must not hold up the others', nor be tried for ever
        log.exception("tailoring %s: no front", tailoring.pk)
        points = []
    undrawn = Tailoring.objects.filter(
        pk=tailoring.pk, target_digest=tailoring.target_digest, front__isnull=True
    )
    return bool(undrawn.update(front=msgspec.to_builtins(points)))
