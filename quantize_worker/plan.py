"""Which recipe a device class gets, what it is expected to cost, and why.

Pure and quick: facts and target in, candidates out. Per layer a format among those that the class
accepts, chosen by a knapsack: smallest or fastest over the quality floor, or best within the
budgets. Predictions are corrected by builds that were measured: plan again with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from quantize_worker.contract import (
    MeasuredBuild,
    ModelFacts,
    ParetoPoint,
    Recipe,
    TailorPlan,
    Target,
    digest,
)
from quantize_worker.planning import uniform
from quantize_worker.planning.explain import best_of, describe, tailor_plan
from quantize_worker.planning.pareto import front
from quantize_worker.planning.prediction import Prediction, Predictor, same_formats
from quantize_worker.planning.search import Aim, Budget, Found, Search, budgets_of
from quantize_worker.planning.shortfall import Nearest, Rejection, nearest, rejections

__all__ = [
    "Nearest",
    "PlanOutcome",
    "Prediction",
    "Rejection",
    "consider",
    "describe",
    "pareto",
    "predict",
    "recipe_digest",
]

MARGIN = 0.9  # of the loss that the floor allows: predictions are off by a tenth, or more
MARGIN_MEASURED = 0.95  # once builds have corrected them, and none was below the floor
NEAR_MISS = 1.5  # times the loss allowed: so much can a prediction be wrong that it is worth a build
_AIMS: dict[str, Aim] = {"size": "size", "latency": "latency", "quality": "quality"}


class PlanOutcome(msgspec.Struct, kw_only=True, frozen=True):
    """Candidates, best first, and what was left out.

    The first candidate is the plan, the second, if there is one, the most careful recipe within the
    budgets. Without a candidate the class can't carry the model; ``nearest`` says what lacks least.
    """

    candidates: list[TailorPlan]
    rejections: list[Rejection]
    nearest: Nearest | None = None

    @property
    def impossible(self) -> str:
        """Why there is no candidate at all; "" if there is one."""
        if self.candidates:
            return ""
        if self.nearest is not None:
            return self.nearest.reason
        return " ".join(rejection.reason for rejection in self.rejections)


def consider(facts: ModelFacts, target: Target, measured: Sequence[MeasuredBuild] = ()) -> PlanOutcome:
    """Plan a class.

    Args:
        facts: what inspecting the model found.
        target: the device class.
        measured: builds of this version. They correct the predictions, and recipes among them that
            are below the class's floor are not proposed again.
    """
    if not target.precisions:
        reason = f"Class {target.name} accepts no precision at all; give it one."
        return PlanOutcome(
            candidates=[], rejections=[Rejection(precision="fp32", code="not_applicable", reason=reason)]
        )
    if uniform.is_uniform(facts):
        plans, left_out = uniform.candidates(facts, target, measured)
        return PlanOutcome(candidates=plans, rejections=left_out)
    return _Study(facts, target, measured).outcome()


def pareto(facts: ModelFacts, target: Target, points: int = 50) -> list[ParetoPoint]:
    """The best quality that can be had at each size with what the class accepts, smallest first.

    The class's budgets and floor are left aside. Size and quality grow strictly.
    """
    if uniform.is_uniform(facts):
        return uniform.front(facts, target)
    return front(Search(Predictor(facts, target)), points)


def predict(
    facts: ModelFacts, target: Target, recipe: Recipe, measured: Sequence[MeasuredBuild] = ()
) -> Prediction:
    """What a recipe is expected to need and to keep on a class's devices."""
    if uniform.is_uniform(facts):
        return uniform.predict(facts, target, recipe.precision)
    predictor = Predictor(facts, target)
    return (predictor.corrected(measured) if measured else predictor).predict(recipe)


def recipe_digest(source_digest: str, recipe: Recipe) -> str:
    """What identifies a build: SHA-256 over the source's digest and the recipe."""
    return digest({"source": source_digest, "recipe": msgspec.to_builtins(recipe)})


class _Study:
    """One class and one model."""

    def __init__(self, facts: ModelFacts, target: Target, measured: Sequence[MeasuredBuild]) -> None:
        predictor = Predictor(facts, target)
        self._predictor = predictor.corrected(measured) if measured else predictor
        self._target = target
        self._search = Search(self._predictor)
        self._allowed = self._predictor.loss_allowed(target.quality_floor)
        self._resources = budgets_of(target)
        held = [build.quality >= target.quality_floor for build in self._predictor.known]
        self._margin = MARGIN_MEASURED if held and all(held) else MARGIN
        self._budgets: dict[Budget, float] = {**self._resources, "floor": self._margin * self._allowed}

    def outcome(self) -> PlanOutcome:
        found = self._found()
        if not found:
            lacking = nearest(self._search, self._budgets, self._margin)
            left_out = rejections(self._search, None, self._budgets)
            return PlanOutcome(candidates=[], rejections=left_out, nearest=lacking)
        plans = [tailor_plan(self._search, one, self._budgets, first) for one, first in found]
        return PlanOutcome(candidates=plans, rejections=rejections(self._search, found[0][0], self._budgets))

    def _found(self) -> list[tuple[Found, str]]:
        """The plan and the most careful recipe, each with a reason."""
        aim = _AIMS[self._target.objective]
        best = self._search.best(aim, self._budgets)
        careful = best if aim == "quality" and best is not None else self._careful()
        found = [] if best is None else [(best, best_of(self._search, best.recipe))]
        if careful is not None and (best is None or not same_formats(best.recipe, careful.recipe)):
            found.append((careful, self._careful_reason(careful)))
        return found

    def _careful(self) -> Found | None:
        """The best predicted quality within the budgets, if it may keep the floor."""
        careful = self._search.best("quality", self._resources)
        near = self._allowed * (NEAR_MISS if not self._predictor.known else 1.0)
        return careful if careful is not None and careful.prediction.loss <= near else None

    def _careful_reason(self, careful: Found) -> str:
        return (
            f"The most careful recipe within the budgets of class {self._target.name}: "
            f"{describe(careful.recipe, self._predictor.facts)}."
        )
