"""Plans from facts of contract 1, which know an error per precision but no formats per layer.

Versions that were inspected then keep working: the whole model takes one precision, in the class's
own order. Predictions are rough; a new inspection gives better ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantize_worker.contract import (
    LayerFacts,
    MeasuredBuild,
    ModelFacts,
    ParetoPoint,
    Precision,
    Recipe,
    TailorPlan,
    Target,
)
from quantize_worker.planning.latency import CPU_PROVIDER
from quantize_worker.planning.prediction import MINIMUM_WORKING_BYTES, Prediction
from quantize_worker.planning.search import budgets_of, exceeded, needs
from quantize_worker.planning.shortfall import Rejection
from quantize_worker.planning.words import in_bytes, in_ms, needed_words

INT4_BLOCK_SIZE = 32
UNKNOWN: tuple[Precision, ...] = ("int8", "int8-qdq16")  # to contract 1
# Bytes per weight with its share of scales and zero points (INT4: blocks of 32).
_LAYER_BYTES: dict[str, float] = {"int8-dynamic": 1.02, "int8-qdq": 1.02, "int4": 0.5 + 4 / 32 + 1 / 64}
_TABLE_BYTES: dict[str, float] = {**_LAYER_BYTES, "int4": 0.5 + 2 / 32 + 1 / 64}
# Resident bytes per stored byte: kernels keep weights in an order of their own.
_RESIDENT_RATIO: dict[str, float] = {"int8-dynamic": 1.05, "int8-qdq": 1.05, "int4": 1.3}
# p50 relative to FP32 on a CPU, measured with all-MiniLM-L6-v2 on the worker.
_LATENCY_RATIO: dict[str, float] = {"fp16": 1.15, "int8-dynamic": 0.4, "int8-qdq": 0.4, "int4": 0.9}
# Loss of quality = error of the weights x LOSS_PER_ERROR + what rounding activations costs.
_LOSS_PER_ERROR = 2.0
_ACTIVATION_LOSS: dict[str, float] = {"int8-dynamic": 0.0065, "int8-qdq": 0.007}


def is_uniform(facts: ModelFacts) -> bool:
    """Whether the facts are of contract 1."""
    return any(layer.sensitivity for layer in facts.layers) and not any(
        layer.formats for layer in facts.layers
    )


def candidates(
    facts: ModelFacts, target: Target, measured: Sequence[MeasuredBuild]
) -> tuple[list[TailorPlan], list[Rejection]]:
    """Every precision that the class accepts, in its order, and those that were left out."""
    known = {build.recipe.precision: build.quality for build in measured if not build.recipe.layers}
    plans, rejections = [], []
    for precision in dict.fromkeys(target.precisions):
        rejection = _rejection(facts, target, precision, known.get(precision))
        if rejection is None:
            plans.append(_plan(facts, target, precision, known.get(precision)))
        else:
            rejections.append(rejection)
    return plans, rejections


def front(facts: ModelFacts, target: Target) -> list[ParetoPoint]:
    """The precisions that no other is smaller and better than, smallest first."""
    priced = [(name, predict(facts, target, name)) for name in target.precisions if _applies(facts, name)]
    points: list[ParetoPoint] = []
    for name, prediction in sorted(priced, key=lambda one: (one[1].size_bytes, one[1].loss)):
        if not points or prediction.quality > points[-1].quality:
            points.append(
                ParetoPoint(
                    size_bytes=prediction.size_bytes,
                    memory_bytes=prediction.memory_bytes,
                    latency_ms=prediction.latency_ms,
                    quality=prediction.quality,
                    formats={name: 1.0},
                )
            )
    return points


def predict(facts: ModelFacts, target: Target, precision: Precision) -> Prediction:
    """What the whole model is expected to need in one precision."""
    size = _size_bytes(facts, precision)
    working = max(MINIMUM_WORKING_BYTES, facts.memory_bytes - facts.weight_bytes)
    in_fp32 = precision == "fp16" and target.execution_provider == CPU_PROVIDER
    resident = facts.source_bytes if in_fp32 else int(size * _RESIDENT_RATIO.get(precision, 1.0))
    loss = min(1.0, _loss(facts, precision))
    return Prediction(
        size_bytes=size,
        memory_bytes=resident + working,
        latency_ms=facts.latency_p50_ms * _LATENCY_RATIO.get(precision, 1.0),
        energy_mwh=0.0,
        loss=loss,
        quality=1.0 - loss,
    )


def _rejection(
    facts: ModelFacts, target: Target, precision: Precision, measured: float | None
) -> Rejection | None:
    if not _applies(facts, precision):
        return Rejection(precision=precision, code="not_applicable", reason=_nothing_to_gain(precision))
    prediction, budgets = predict(facts, target, precision), budgets_of(target)
    budgets.pop("energy", None)  # contract 1 knows nothing of it
    lacking = exceeded(prediction, budgets)
    if lacking and lacking[0] != "floor":
        name = lacking[0]
        needed, allowed = needed_words(name, needs(prediction)[name]), needed_words(name, budgets[name])
        reason = f"{precision} needs {needed} of {name}, class {target.name} allows {allowed}."
        return Rejection(precision=precision, code=name, reason=reason)
    if measured is not None and not measured >= target.quality_floor:
        floor = f"the floor is {target.quality_floor:.4f}"
        reason = f"{precision} was measured at {measured:.4f} of FP32's quality, {floor}."
        return Rejection(precision=precision, code="quality", reason=reason)
    return None


def _plan(facts: ModelFacts, target: Target, precision: Precision, measured: float | None) -> TailorPlan:
    prediction = predict(facts, target, precision)
    quality = prediction.quality if measured is None else measured
    return TailorPlan(
        recipe=Recipe(
            precision=precision,
            accelerator=target.accelerator,
            execution_provider=target.execution_provider,
            emulated=target.emulated,
            block_size=INT4_BLOCK_SIZE if precision == "int4" else None,
        ),
        predicted_size_bytes=prediction.size_bytes,
        predicted_memory_bytes=prediction.memory_bytes,
        predicted_latency_ms=prediction.latency_ms,
        predicted_quality=quality,
        predicted_cosine=prediction.cosine,
        reasons=list(_reasons(facts, target, precision, prediction, measured)),
    )


def _reasons(
    facts: ModelFacts, target: Target, precision: Precision, prediction: Prediction, measured: float | None
) -> Iterator[str]:
    place = list(dict.fromkeys(target.precisions)).index(precision) + 1
    kind = f"emulated {target.accelerator}" if target.emulated else target.accelerator
    quality = prediction.quality if measured is None else measured
    word = "Expected" if measured is None else "Measured"
    below = " It will be built and measured all the same." if quality < target.quality_floor else ""
    yield f"Choice {place} of class {target.name} ({kind}, {target.execution_provider})."
    yield "Inspected by an earlier version of the worker: one precision for all layers."
    yield f"{in_bytes(facts.source_bytes)} become {in_bytes(prediction.size_bytes)}."
    yield f"Expected peak memory {in_bytes(prediction.memory_bytes)}, latency {in_ms(prediction.latency_ms)}."
    yield f"{word} quality {quality:.4f} of FP32; the floor is {target.quality_floor:.4f}.{below}"


def _applies(facts: ModelFacts, precision: Precision) -> bool:
    if precision == "fp32":
        return True
    return facts.parameters > 0 if precision == "fp16" else bool(_layers(facts, precision))


def _layers(facts: ModelFacts, precision: Precision) -> list[LayerFacts]:
    return [layer for layer in facts.layers if layer.quantizable and precision in layer.sensitivity]


def _size_bytes(facts: ModelFacts, precision: Precision) -> int:
    if precision in ("fp32", "fp16"):
        return max(0, facts.source_bytes - (2 * facts.parameters if precision == "fp16" else 0))
    layers = _layers(facts, precision)
    saved = sum(layer.parameters * (4 - _bytes_per_weight(layer, precision)) for layer in layers)
    return max(0, int(facts.source_bytes - saved))


def _bytes_per_weight(layer: LayerFacts, precision: Precision) -> float:
    return (_TABLE_BYTES if layer.operator == "Gather" else _LAYER_BYTES)[precision]


def _loss(facts: ModelFacts, precision: Precision) -> float:
    layers = _layers(facts, precision) if precision != "fp32" else []
    total = sum(layer.parameters for layer in layers)
    error = sum(layer.parameters * layer.sensitivity[precision] for layer in layers) / total if total else 0.0
    return _LOSS_PER_ERROR * error + _ACTIVATION_LOSS.get(precision, 0.0)


def _nothing_to_gain(precision: Precision) -> str:
    if precision in UNKNOWN:
        return f"{precision} does not apply: the version was inspected before it was known; inspect it again."
    if precision == "fp16":
        return "fp16 does not apply: the model has no floating-point weights."
    return f"{precision} does not apply: the model has no layer with weights large enough that it can shrink."
