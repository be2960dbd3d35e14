"""The best recipe for a class: a knapsack, repeated because losses do not just add up.

Within one solution the laws of :mod:`.losses` are linear; which line holds depends on the total.
So the knapsack is solved for an assumed total and again for the one found, at most four times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from quantize_worker.contract import Recipe, Target
from quantize_worker.planning.knapsack import Knapsack, solve
from quantize_worker.planning.losses import INDEX
from quantize_worker.planning.options import Options, allowed_by_layer, options_of
from quantize_worker.planning.prediction import Prediction, Predictor, same_formats

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Aim = Literal["size", "memory", "latency", "energy", "quality"]
Budget = Literal["storage", "memory", "latency", "energy", "floor"]
RESOURCES: tuple[Budget, ...] = ("storage", "memory", "latency", "energy")
_BUDGET_OF: dict[Aim, Budget] = {
    "size": "storage",
    "memory": "memory",
    "latency": "latency",
    "energy": "energy",
    "quality": "floor",
}

MOST_SOLUTIONS = 4
NEAR = 0.97  # of the loss allowed, where another solution is not worth its time
SAME_LINE = 0.05  # relative difference of losses that comes of an assumed total
LITTLE_LOSS = 2e-4  # of a whole model: no prediction is as exact
_TIE = 1e-4  # what other aims weigh, so that equals are told apart
_PREFERENCE = 1e-3  # share of size or time given up for the precision that the class names first
_SIZE_WORTH, _LATENCY_WORTH = 1e-5, 1e-6  # loss given up for a model of no size, of no latency
_START = 1e-3  # a first guess of the sum of single losses


@dataclass(frozen=True)
class Found:
    """A recipe with what it is expected to cost.

    Args:
        chosen: options that make it, one per group; None for a whole model in FP16.
        rates: what a unit of single loss costs in it, (precisions,).
    """

    recipe: Recipe
    prediction: Prediction
    chosen: Indices | None
    rates: list[float]


def budgets_of(target: Target) -> dict[Budget, float]:
    """What the class can afford, the floor apart."""
    given: dict[Budget, float | None] = {
        "storage": float(target.storage_bytes),
        "memory": float(target.memory_bytes),
        "latency": target.latency_ms,
        "energy": target.energy_mwh,
    }
    return {name: value for name, value in given.items() if value is not None}


def needs(prediction: Prediction) -> dict[Budget, float]:
    """What a recipe takes of every budget; of the floor, the loss."""
    return {
        "storage": float(prediction.size_bytes),
        "memory": float(prediction.memory_bytes),
        "latency": prediction.latency_ms,
        "energy": prediction.energy_mwh,
        "floor": prediction.loss,
    }


def exceeded(prediction: Prediction, budgets: Mapping[Budget, float]) -> list[Budget]:
    """The budgets that a recipe does not keep."""
    needed = needs(prediction)
    return [name for name, budget in budgets.items() if needed[name] > budget * (1 + 1e-9)]


class Search:
    """Recipes of one model for one class.

    Args:
        predictor: prices recipes; builds that it knows to be below the floor are left out.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.allowed = allowed_by_layer(predictor)
        self.options: Options | None = options_of(predictor, self.allowed)
        floor = predictor.target.quality_floor
        self._below = [build.recipe for build in predictor.known if not build.quality >= floor]
        self._size_unit = _most(self.options, "storage")
        self._latency_unit = _most(self.options, "latency")

    def best(self, aim: Aim, budgets: Mapping[Budget, float]) -> Found | None:
        """The best recipe within the budgets; None if there is none.

        Args:
            aim: what is to be least; "quality": the loss.
            budgets: by name; "floor" is the loss allowed.
        """
        candidates = [self._mixed(self.options, aim, budgets) if self.options else None]
        candidates.append(self._whole_fp16(budgets))
        found = [one for one in candidates if one is not None]
        return min(found, key=lambda one: self._worth(aim, one.prediction, budgets), default=None)

    def whole(self, precision: str) -> Found:
        """The whole model in FP32 or FP16, whether or not the class takes it."""
        recipe = self.predictor.recipe({}, whole_fp16=precision == "fp16")
        rates = self.predictor.losses.rates(self.predictor.disturbance(recipe).total)
        return Found(recipe, self.predictor.predict(recipe), None, rates.tolist())

    def _whole_fp16(self, budgets: Mapping[Budget, float]) -> Found | None:
        if "fp16" not in self.predictor.target.precisions or self.predictor.facts.parameters <= 0:
            return None
        found = self.whole("fp16")
        return None if exceeded(found.prediction, budgets) or self._failed(found.recipe) else found

    def _mixed(self, options: Options, aim: Aim, budgets: Mapping[Budget, float]) -> Found | None:
        allowed = budgets.get("floor")
        limit, total, best = allowed, self._first_total(allowed), None
        for _ in range(MOST_SOLUTIONS):
            lines = self.lines(options, total)
            chosen = solve(self._knapsack(options, aim, budgets, limit, lines))
            if chosen is None:
                least = self._least_total(options, lines)
                if allowed is None or best is not None or least == total:
                    break
                total = least  # perhaps at the smallest total there is, where laws may be milder
                continue
            found, assumed = self._found(options, chosen), float(lines[chosen].sum())
            loss, reached = self._loss(options, chosen)
            failed = self._failed(found.recipe)
            if not failed and (allowed is None or loss <= allowed):
                best = self._better(aim, best, found, budgets)
                if _settled(loss, assumed, allowed, limit):
                    break
            total, limit = _next_line(loss, total, reached, allowed, limit)
            limit = 0.95 * assumed if failed else limit
        return best

    def _knapsack(
        self, options: Options, aim: Aim, budgets: Mapping[Budget, float], limit: float | None, lines: Floats
    ) -> Knapsack:
        names = [name for name in RESOURCES if name in budgets]
        uses = [column(options, name) for name in names] + [lines] * (limit is not None)
        rest = needs_of_rest(self.predictor)
        room = [budgets[name] * (1 + 1e-12) - rest[name] for name in names] + [limit or 0.0] * (
            limit is not None
        )
        table = np.array(uses, dtype=np.float64).reshape(len(uses), len(lines))
        cost, tolerance = self._cost(options, aim, lines, limit), LITTLE_LOSS if aim == "quality" else 0.0
        return Knapsack(options.group, cost, table, np.array(room), tolerance)

    def lines(self, options: Options, total: float) -> Floats:
        """Every option's loss, where all together are ``total``."""
        losses = self.predictor.losses
        products = options.products * losses.correction[options.products_kind]
        lines: Floats = options.losses @ losses.rates(total) + products
        return lines

    def _cost(self, options: Options, aim: Aim, lines: Floats, limit: float | None) -> Floats:
        size, latency = options.size / self._size_unit, options.latency / self._latency_unit
        if aim == "quality":
            return lines + _SIZE_WORTH * size + _LATENCY_WORTH * latency
        budget = _BUDGET_OF[aim]
        resource = column(options, budget) / _most(options, budget)
        ties = lines / (limit or 1.0) + (latency if aim == "size" else size)
        return resource + _TIE * ties + _PREFERENCE * options.disfavour

    def _worth(self, aim: Aim, prediction: Prediction, budgets: Mapping[Budget, float]) -> float:
        """The knapsack's cost, of a whole recipe."""
        size = prediction.size_bytes / self._size_unit
        latency = prediction.latency_ms / self._latency_unit
        if aim == "quality":
            return prediction.loss + _SIZE_WORTH * size + _LATENCY_WORTH * latency
        budget = _BUDGET_OF[aim]
        ties = prediction.loss / (budgets.get("floor") or 1.0) + (latency if aim == "size" else size)
        return needs(prediction)[budget] / _most(self.options, budget) + _TIE * ties

    def _better(self, aim: Aim, one: Found | None, other: Found, budgets: Mapping[Budget, float]) -> Found:
        if one is None:
            return other
        return min((one, other), key=lambda found: self._worth(aim, found.prediction, budgets))

    def _found(self, options: Options, chosen: Indices) -> Found:
        recipe = options.recipe(self.predictor, chosen)
        rates = self.predictor.losses.rates(options.disturbance(chosen).total)
        return Found(recipe, self.predictor.predict(recipe), chosen, rates.tolist())

    def _loss(self, options: Options, chosen: Indices) -> tuple[float, float]:
        """The loss that the laws predict, and the sum of single losses."""
        disturbance = options.disturbance(chosen)
        return self.predictor.losses.whole(disturbance), disturbance.total

    def _failed(self, recipe: Recipe) -> bool:
        """Whether the recipe was measured below the floor."""
        return any(same_formats(recipe, other) for other in self._below)

    def _first_total(self, allowed: float | None) -> float:
        kinds = [INDEX[name] for name in self.predictor.target.precisions]
        if allowed is None or not kinds:
            return _START
        return float(self.predictor.losses.total_for(max(allowed, 1e-12))[kinds].min())

    def _least_total(self, options: Options, lines: Floats) -> float:
        """The sum of single losses where every group takes its most careful option."""
        starts = np.searchsorted(options.group, np.arange(len(options.members) + 1))
        careful = [a + int(lines[a:b].argmin()) for a, b in pairwise(starts)]
        return max(float(options.losses[careful].sum()), 1e-12)


def column(options: Options, budget: Budget) -> Floats:
    """What every option takes of a resource."""
    columns = {"storage": options.size, "memory": options.memory, "latency": options.latency}
    return columns.get(budget, options.energy)


def needs_of_rest(predictor: Predictor) -> dict[Budget, float]:
    """What is taken of the resources whatever the formats."""
    rest = predictor.rest
    return {
        "storage": float(rest.size_bytes),
        "memory": float(rest.memory_bytes),
        "latency": rest.latency_ms,
        "energy": rest.energy_mwh,
    }


def _most(options: Options | None, budget: Budget) -> float:
    """A unit in which a resource is about one."""
    if options is None or not len(options.group):
        return 1.0
    values, starts = column(options, budget), np.flatnonzero(np.diff(options.group, prepend=-1))
    return max(float(np.maximum.reduceat(values, starts).sum()), 1e-12)


def _settled(loss: float, assumed: float, allowed: float | None, limit: float | None) -> bool:
    """Whether another solution would hardly differ: the line was right, or it mattered to nothing."""
    if allowed is None or limit is None:
        return abs(assumed - loss) <= SAME_LINE * loss
    return loss >= NEAR * allowed or assumed < 0.9 * limit


def _next_line(
    loss: float, total: float, reached: float, allowed: float | None, limit: float | None
) -> tuple[float, float | None]:
    """The total to assume next, and the limit for the sum of its line.

    Above the loss allowed, the line at the total reached is too steep for anything smaller where
    laws grow faster than in proportion, so what keeps the limit by it keeps the floor; where laws
    grow slower, the limit shrinks. Below, the next total is between the two.
    """
    reached = max(reached, 1e-12)
    if allowed is None or limit is None:
        return reached, limit
    if loss > allowed:
        return reached, allowed if reached > total else 0.99 * limit * allowed / loss
    return math.sqrt(total * reached), allowed
