"""Plans in words: what was chosen for each layer and why, and what kept it from being better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from quantize_worker.contract import LayerChoice, LayerFacts, ModelFacts, Objective, Recipe, TailorPlan
from quantize_worker.planning.options import Options
from quantize_worker.planning.prediction import FormatCost, Prediction, is_whole_fp16, weight_shares
from quantize_worker.planning.search import Budget, Found, Search, column, needs
from quantize_worker.planning.words import SMALLEST_LOSS, in_bytes, in_loss, in_ms, in_mwh

Floats = NDArray[np.float64]

BETTER = {"size": "smaller", "latency": "faster", "quality": "closer to FP32"}
_BEST = {"size": "Smallest", "latency": "Fastest", "quality": "Best quality"}
_WORTH_NAMING = {"size": 1e-3, "latency": 1e-3, "quality": 1e-6}  # of the whole; of loss
SMALL_SHARE = 0.005  # precisions with fewer weights are not named


def tailor_plan(search: Search, found: Found, budgets: Mapping[Budget, float], first: str) -> TailorPlan:
    """A candidate with its explanation.

    Args:
        search: what found it.
        found: the recipe.
        budgets: that it had to keep, "floor" as the loss allowed.
        first: the first reason, in a sentence.
    """
    prediction = found.prediction
    bound = what_bound(search, found, budgets)
    return TailorPlan(
        recipe=found.recipe,
        predicted_size_bytes=prediction.size_bytes,
        predicted_memory_bytes=prediction.memory_bytes,
        predicted_latency_ms=prediction.latency_ms,
        predicted_quality=prediction.quality,
        predicted_cosine=prediction.cosine,
        predicted_energy_mwh=prediction.energy_mwh,
        reasons=[first, *_reasons(search, found, bound)],
        choices=choices(search, found),
        bound=bound,
    )


def best_of(search: Search, recipe: Recipe) -> str:
    """The first reason of a plan that is best by the class's objective."""
    target, facts = search.predictor.target, search.predictor.facts
    what = _BEST[target.objective]
    over = (
        "within the budgets" if target.objective == "quality" else f"over the floor {target.quality_floor:g}"
    )
    kind = f"emulated {target.accelerator}" if target.emulated else target.accelerator
    place = f"class {target.name} ({kind}, {target.execution_provider})"
    return f"{what} {over} for {place}: {describe(recipe, facts)}."


def describe(recipe: Recipe, facts: ModelFacts) -> str:
    """Shares of the layers' weights per precision, such as "int4 82 %, int8 18 %"."""
    parts: list[str] = [recipe.precision]
    if recipe.layers and not is_whole_fp16(recipe) and all(layer.formats for layer in facts.layers):
        shares = weight_shares(recipe.layers, facts)
        named = {name: share for name, share in shares.items() if share >= SMALL_SHARE}
        parts = [f"{name} {100 * share:.0f} %" for name, share in named.items()]
        parts = parts if len(parts) > 1 else [str(name) for name in named]
    parts += [f"products {recipe.products}"] * bool(recipe.products) + ["learned"] * recipe.learned
    return ", ".join(parts)


def what_bound(search: Search, found: Found, budgets: Mapping[Budget, float]) -> str:
    """The budget that forbids most of what would still be better by the objective; "" if none.

    Each change of one layer that would be better counts with what it gains, for the budget that it
    breaks; if it breaks several, for each.
    """
    options = search.options
    if options is None or found.chosen is None or not len(options.group):
        return ""
    objective = search.predictor.target.objective
    gain = _gains(options, found, objective)
    needed, current = needs(found.prediction), found.chosen[options.group]
    blocked: dict[str, float] = {}
    for name, budget in budgets.items():
        values = _lines(options, found) if name == "floor" else column(options, name)
        breaks = needed[name] + values - values[current] > budget * (1 + 1e-9)
        blocked[name] = float(gain[breaks & (gain > 0)].sum())
    most = max(blocked, key=lambda name: blocked[name], default="")
    return most if most and blocked[most] > 0 else ""


def choices(search: Search, found: Found) -> list[LayerChoice]:
    """Why every layer got its format, in graph order."""
    return [_choice(search, found, layer) for layer in search.predictor.facts.layers]


def _gains(options: Options, found: Found, objective: Objective) -> Floats:
    """What each option alone would make better, as a share of the whole (of loss: as it is)."""
    assert found.chosen is not None
    if objective == "quality":
        values, unit = _lines(options, found), 1.0
    else:
        values = options.size if objective == "size" else options.latency
        unit = max(
            float(found.prediction.size_bytes if objective == "size" else found.prediction.latency_ms), 1e-12
        )
    gains: Floats = (values[found.chosen[options.group]] - values) / unit
    return np.where(gains > _WORTH_NAMING[objective] / len(options.members), gains, 0.0)


def _lines(options: Options, found: Found) -> Floats:
    lines: Floats = options.losses @ np.array(found.rates) + options.products
    return lines


def _choice(search: Search, found: Found, layer: LayerFacts) -> LayerChoice:
    name = found.recipe.layers.get(layer.name, "fp32")
    cost = search.predictor.cost(layer.name, name)
    loss = cost.loss * found.rates[cost.kind]
    reason, size = _why(search, found, layer, name), cost.size_bytes
    if is_whole_fp16(found.recipe):
        name, size, reason = "fp16", size // 2, "fp16: the whole model is in FP16."
    return LayerChoice(
        layer=layer.name, operator=layer.operator, format=name, size_bytes=size, loss=loss, reason=reason
    )


def _why(search: Search, found: Found, layer: LayerFacts, name: str) -> str:
    allowed = search.allowed[layer.name]
    if allowed == ("fp32",):
        return f"fp32: {layer.reason or 'the class accepts no other format that the layer can take'}."
    objective = search.predictor.target.objective
    cost, fp32 = search.predictor.cost(layer.name, name), search.predictor.cost(layer.name, "fp32")
    words = _WORDS[objective](name, cost, fp32, cost.loss * found.rates[cost.kind])
    return f"{name}: {words}{_runner_up(search, found, layer, name, allowed)}."


def _size_words(name: str, cost: FormatCost, fp32: FormatCost, loss: float) -> str:
    if name == "fp32":
        return "stays as it is"
    return f"saves {in_bytes(max(0, fp32.size_bytes - cost.size_bytes))} for {in_loss(loss)}"


def _latency_words(name: str, cost: FormatCost, fp32: FormatCost, loss: float) -> str:
    if fp32.latency_ms <= 0:  # looking up rows takes no time to speak of
        return _size_words(name, cost, fp32, loss)
    if name == "fp32":
        return f"takes {in_ms(cost.latency_ms)}"
    return f"takes {in_ms(cost.latency_ms)} instead of {in_ms(fp32.latency_ms)} for {in_loss(loss)}"


def _quality_words(name: str, cost: FormatCost, fp32: FormatCost, loss: float) -> str:
    return f"{in_loss(loss)} in {in_bytes(cost.size_bytes)}"


_WORDS: dict[Objective, Callable[[str, FormatCost, FormatCost, float], str]] = {
    "size": _size_words,
    "latency": _latency_words,
    "quality": _quality_words,
}


def _runner_up(search: Search, found: Found, layer: LayerFacts, name: str, allowed: tuple[str, ...]) -> str:
    """The format that would be better by the objective at the least price, and its price."""
    objective, rates = search.predictor.target.objective, found.rates
    least = SMALLEST_LOSS if objective == "quality" else 0.0
    cost = search.predictor.cost(layer.name, name)

    def price(other: str) -> tuple[float, float]:
        """What another format gains, and what it costs."""
        that = search.predictor.cost(layer.name, other)
        loss = that.loss * rates[that.kind] - cost.loss * rates[cost.kind]
        gains = {"size": cost.size_bytes - that.size_bytes, "latency": cost.latency_ms - that.latency_ms}
        return (-loss, -gains["size"]) if objective == "quality" else (gains[objective], loss)

    better = [other for other in allowed if other != name and price(other)[0] > least]
    if not better:
        return ""
    other = min(better, key=lambda each: price(each)[1] / price(each)[0])
    gain, paid = price(other)
    if objective == "quality":
        return f"; {other} would save {in_loss(gain)} for {in_bytes(paid)} more" if paid > 0 else ""
    if paid <= 0:
        return f"; {other} would be {BETTER[objective]}, but breaks a budget"
    gained = f"save {in_bytes(gain)} more" if objective == "size" else f"take {in_ms(gain)} less"
    return f"; {other} would {gained} for {in_loss(paid)} more"


def _reasons(search: Search, found: Found, bound: str) -> Iterator[str]:
    predictor, prediction = search.predictor, found.prediction
    target, facts = predictor.target, predictor.facts
    source, size = in_bytes(facts.source_bytes), in_bytes(prediction.size_bytes)
    yield f"{source} become {size}; storage allows {in_bytes(target.storage_bytes)}."
    yield f"Expected peak memory {in_bytes(prediction.memory_bytes)}; the budget is {in_bytes(target.memory_bytes)}."
    yield _quality_reason(search, prediction)
    yield _latency_reason(search, prediction)
    if target.energy_mwh is not None:
        yield (
            f"Estimated energy {in_mwh(prediction.energy_mwh)} an inference; "
            f"the class allows {in_mwh(target.energy_mwh)}."
        )
    if bound:
        limit = "The quality floor" if bound == "floor" else f"The {bound} budget"
        yield f"{limit} keeps it from being {BETTER[target.objective]}."
    if facts.synthetic_samples:
        yield "There is no evaluation set: quality is measured on generated inputs and says little."


def _quality_reason(search: Search, prediction: Prediction) -> str:
    floor, known = search.predictor.target.quality_floor, len(search.predictor.known)
    note = f", corrected by {known} measured build{'s' * (known != 1)}" if known else ""
    below = " It will be built and measured all the same." if prediction.quality < floor else ""
    return f"Expected quality {prediction.quality:.4f} of FP32{note}; the floor is {floor:.4f}.{below}"


def _latency_reason(search: Search, prediction: Prediction) -> str:
    target = search.predictor.target
    allows = f"; the class allows {in_ms(target.latency_ms)}" if target.latency_ms is not None else ""
    return f"Expected latency {in_ms(prediction.latency_ms)} on one thread of the class's devices{allows}."
