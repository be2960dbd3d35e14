"""The best that can be had at each size: a dynamic program gives the whole front at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from quantize_worker.contract import ParetoPoint, Recipe
from quantize_worker.planning.knapsack import Knapsack, every_budget
from quantize_worker.planning.options import Options
from quantize_worker.planning.prediction import Predictor, format_shares, is_whole_fp16
from quantize_worker.planning.search import Search

Floats = NDArray[np.float64]
TOTALS = (1e-4, 3e-3, 3e-2)  # where lines are drawn: laws differ between careful and small models


def front(search: Search, points: int) -> list[ParetoPoint]:
    """Points that no other is better than in both, smallest first; size and quality grow strictly.

    The class's accepted formats hold, its budgets and floor do not: they are lines in the plot.

    Args:
        search: recipes for the class.
        points: at most; spread evenly over the front, both ends among them.
    """
    predictor = search.predictor
    options, chosen = search.options, np.zeros((0, 0), np.intp)
    if options is not None and len(options.group):
        chosen = np.concatenate([_choices(search, options, total) for total in TOTALS])
        places = _places(predictor, options, chosen)
    else:
        places = np.zeros((0, 2))
    whole = list(_whole_models(search))
    predicted = [predictor.predict(recipe) for recipe in whole]
    ends = np.array([[one.size_bytes, one.quality] for one in predicted]).reshape(-1, 2)
    places = np.concatenate([places, ends])
    kept = _spread(places, _not_dominated(places), points)
    recipes = [
        options.recipe(predictor, chosen[index])
        if options and index < len(chosen)
        else whole[index - len(chosen)]
        for index in kept
    ]
    found: list[ParetoPoint] = []
    for point in (_point(predictor, recipe) for recipe in recipes):
        if not found or (point.size_bytes > found[-1].size_bytes and point.quality > found[-1].quality):
            found.append(point)  # sums in another order may round differently
    return found


def _whole_models(search: Search) -> Iterator[Recipe]:
    target, facts = search.predictor.target, search.predictor.facts
    if "fp32" in target.precisions or (search.options is not None and not facts.layers):
        yield search.predictor.recipe({})
    if "fp16" in target.precisions and facts.parameters > 0:
        yield search.predictor.recipe({}, whole_fp16=True)


def _choices(search: Search, options: Options, total: float) -> NDArray[np.intp]:
    """The least loss for every size, as options per group."""
    lines = search.lines(options, total)
    sizes = options.size[None]
    largest = np.maximum.reduceat(options.size, np.flatnonzero(np.diff(options.group, prepend=-1))).sum()
    return every_budget(Knapsack(options.group, lines, sizes, np.array([largest])))


def _places(predictor: Predictor, options: Options, chosen: NDArray[np.intp]) -> Floats:
    """Size and quality of every choice, (choices, 2)."""
    sizes = predictor.rest.size_bytes + options.size[chosen].sum(axis=1)
    sums = np.stack([kind[chosen].sum(axis=1) for kind in options.losses.T], axis=1)
    losses = predictor.losses
    products = (options.products * losses.correction[options.products_kind])[chosen].sum(axis=1)
    loss = np.minimum(1.0, (losses.rates(sums.sum(axis=1)) * sums).sum(axis=1) + products)
    return np.stack([sizes, np.maximum(0.0, 1.0 - predictor.steepness * loss)], axis=1)


def _not_dominated(places: Floats) -> NDArray[np.intp]:
    """Indices of places of which none is smaller and as good, smallest first."""
    order = np.lexsort((-places[:, 1], places[:, 0]))
    best = np.maximum.accumulate(places[order, 1])
    better = np.concatenate([[True], best[1:] > best[:-1]])[: len(order)]
    kept: NDArray[np.intp] = order[better]
    return kept


def _spread(places: Floats, kept: NDArray[np.intp], points: int) -> NDArray[np.intp]:
    """At most so many of the front, evenly along it: half by size, half by the logarithm of loss."""
    if len(kept) <= max(1, points):
        return kept
    size = places[kept, 0]
    loss = np.log10(1.0 - np.minimum(places[kept, 1], 1.0 - 1e-7))
    along = (size - size[0]) / (size[-1] - size[0]) + (loss[0] - loss) / max(loss[0] - loss[-1], 1e-12)
    wanted = np.searchsorted(along, np.linspace(0.0, along[-1], max(1, points)))
    spread: NDArray[np.intp] = kept[np.unique(np.minimum(wanted, len(kept) - 1))]
    return spread


def _point(predictor: Predictor, recipe: Recipe) -> ParetoPoint:
    prediction = predictor.predict(recipe)
    shares = {"fp16": 1.0} if is_whole_fp16(recipe) else format_shares(recipe.layers, predictor.facts)
    return ParetoPoint(
        size_bytes=prediction.size_bytes,
        memory_bytes=prediction.memory_bytes,
        latency_ms=prediction.latency_ms,
        quality=prediction.quality,
        formats=shares,
    )
