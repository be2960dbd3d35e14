"""Which precisions a device class gets, in which order, and what each is expected to cost.

Pure: facts and target in, candidates out. The class's own order of precisions rules; what does
not apply to the model or does not fit the budgets is left out with the reason. Predictions are
rough on purpose: a build measures, and the next candidate follows if it falls below the floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from quantize_worker.contract import LayerFacts, ModelFacts, Precision, Recipe, TailorPlan, Target, digest

INT4_BLOCK_SIZE = 32
MINIMUM_WORKING_BYTES = 4 << 20  # activations and the session itself
CPU_PROVIDER = "CPUExecutionProvider"

RejectionCode = Literal["not_applicable", "memory", "storage", "quality"]

# Bytes per weight with its share of scales and zero points (INT4: blocks of 32).
_LAYER_BYTES: dict[Precision, float] = {"int8-dynamic": 1.02, "int8-qdq": 1.02, "int4": 0.5 + 4 / 32 + 1 / 64}
_TABLE_BYTES: dict[Precision, float] = {**_LAYER_BYTES, "int4": 0.5 + 2 / 32 + 1 / 64}
# Resident bytes per stored byte: kernels keep weights in an order of their own.
_RESIDENT_RATIO: dict[Precision, float] = {"int8-dynamic": 1.05, "int8-qdq": 1.05, "int4": 1.3}
# p50 relative to FP32 on a CPU, measured with all-MiniLM-L6-v2 on the worker.
_LATENCY_RATIO: dict[Precision, float] = {
    "fp32": 1.0,
    "fp16": 1.15,
    "int8-dynamic": 0.4,
    "int8-qdq": 0.4,
    "int4": 0.9,
}
# Loss of quality = error of the weights x LOSS_PER_ERROR + what rounding activations costs.
_LOSS_PER_ERROR = 2.0
_ACTIVATION_LOSS: dict[Precision, float] = {"int8-dynamic": 0.0065, "int8-qdq": 0.007}


class Rejection(msgspec.Struct, kw_only=True, frozen=True):
    """A precision the class accepts but does not get, and why."""

    precision: Precision
    code: RejectionCode
    reason: str


class PlanOutcome(msgspec.Struct, kw_only=True, frozen=True):
    """Candidates, best first, and what was left out. No candidate: the class can't carry the model."""

    candidates: list[TailorPlan]
    rejections: list[Rejection]

    @property
    def impossible(self) -> str:
        """Why there is no candidate at all, as one sentence per precision; "" if there is one."""
        return "" if self.candidates else " ".join(rejection.reason for rejection in self.rejections)


def plan(
    facts: ModelFacts, target: Target, *, measured: Mapping[str, float] | None = None
) -> list[TailorPlan]:
    """The candidates of :func:`consider`, best first; empty if the class can't carry the model."""
    return consider(facts, target, measured=measured).candidates


def explain_rejections(
    facts: ModelFacts, target: Target, *, measured: Mapping[str, float] | None = None
) -> list[str]:
    """A sentence for every precision the class accepts but does not get."""
    return [rejection.reason for rejection in consider(facts, target, measured=measured).rejections]


def consider(
    facts: ModelFacts, target: Target, *, measured: Mapping[str, float] | None = None
) -> PlanOutcome:
    """Weigh every precision that the target accepts.

    Args:
        facts: what inspecting the model found.
        target: the device class.
        measured: quality already measured on builds of this version, by precision. It replaces
            the prediction, and a precision measured below the floor is left out.
    """
    known = measured or {}
    candidates: list[TailorPlan] = []
    rejections: list[Rejection] = []
    for precision in dict.fromkeys(target.precisions):
        weighed = _weigh(facts, target, precision, known.get(precision))
        if isinstance(weighed, Rejection):
            rejections.append(weighed)
        else:
            candidates.append(weighed)
    if not target.precisions:
        reason = f"Class {target.name} accepts no precision at all; give it one."
        rejections.append(Rejection(precision="fp32", code="not_applicable", reason=reason))
    return PlanOutcome(candidates=candidates, rejections=rejections)


def recipe_digest(source_digest: str, recipe: Recipe) -> str:
    """What identifies a build: SHA-256 over the source's digest and the recipe."""
    return digest({"source": source_digest, "recipe": msgspec.to_builtins(recipe)})


def predict_size_bytes(facts: ModelFacts, precision: Precision) -> int:
    """Bytes of the artifact."""
    if precision == "fp32":
        return facts.source_bytes
    if precision == "fp16":
        return max(0, facts.source_bytes - 2 * facts.parameters)
    saved = sum(
        layer.parameters * (4 - _bytes_per_weight(layer, precision)) for layer in _layers(facts, precision)
    )
    return max(0, int(facts.source_bytes - saved))


def predict_memory_bytes(facts: ModelFacts, target: Target, precision: Precision) -> int:
    """Peak resident memory: weights as stored, and what the FP32 source needed beside its own.

    ONNX Runtime's CPU provider has no FP16 kernels for most operators and keeps such weights
    in FP32 too.
    """
    working = max(MINIMUM_WORKING_BYTES, facts.memory_bytes - facts.weight_bytes)
    if precision == "fp16" and target.execution_provider == CPU_PROVIDER:
        return facts.source_bytes + working
    return int(predict_size_bytes(facts, precision) * _RESIDENT_RATIO.get(precision, 1.0)) + working


def predict_latency_ms(facts: ModelFacts, precision: Precision) -> float:
    """p50 of one sample on one thread of the worker's CPU; the device measures its own."""
    return facts.latency_p50_ms * _LATENCY_RATIO[precision]


def predict_quality(facts: ModelFacts, precision: Precision) -> float:
    """Share of the source's quality that is kept, from the weights' rounding errors."""
    if precision == "fp32":
        return 1.0
    layers = _layers(facts, precision)
    total = sum(layer.parameters for layer in layers)
    error = sum(layer.parameters * layer.sensitivity[precision] for layer in layers) / total if total else 0.0
    loss = _LOSS_PER_ERROR * error + _ACTIVATION_LOSS.get(precision, 0.0)
    return max(0.0, 1.0 - loss)


def _weigh(
    facts: ModelFacts, target: Target, precision: Precision, measured: float | None
) -> TailorPlan | Rejection:
    if not _applies(facts, precision):
        return Rejection(precision=precision, code="not_applicable", reason=_nothing_to_gain(precision))
    size = predict_size_bytes(facts, precision)
    memory = predict_memory_bytes(facts, target, precision)
    if memory > target.memory_bytes:
        return _over_budget(target, precision, "memory", memory, target.memory_bytes)
    if size > target.storage_bytes:
        return _over_budget(target, precision, "storage", size, target.storage_bytes)
    if measured is not None and measured < target.quality_floor:
        reason = f"{precision} was measured at {measured:.4f} of FP32's quality, the floor is {target.quality_floor:.4f}."
        return Rejection(precision=precision, code="quality", reason=reason)
    quality = predict_quality(facts, precision) if measured is None else measured
    latency = predict_latency_ms(facts, precision)
    return TailorPlan(
        recipe=_recipe(target, precision),
        predicted_size_bytes=size,
        predicted_memory_bytes=memory,
        predicted_latency_ms=latency,
        predicted_quality=quality,
        reasons=list(
            _reasons(facts, target, precision, size, memory, latency, quality, measured is not None)
        ),
    )


def _recipe(target: Target, precision: Precision) -> Recipe:
    return Recipe(
        precision=precision,
        accelerator=target.accelerator,
        execution_provider=target.execution_provider,
        emulated=target.emulated,
        block_size=INT4_BLOCK_SIZE if precision == "int4" else None,
    )


def _applies(facts: ModelFacts, precision: Precision) -> bool:
    if precision == "fp32":
        return True
    if precision == "fp16":
        return facts.parameters > 0
    return bool(_layers(facts, precision))


def _layers(facts: ModelFacts, precision: Precision) -> list[LayerFacts]:
    return [layer for layer in facts.layers if layer.quantizable and precision in layer.sensitivity]


def _bytes_per_weight(layer: LayerFacts, precision: Precision) -> float:
    return (_TABLE_BYTES if layer.operator == "Gather" else _LAYER_BYTES)[precision]


def _nothing_to_gain(precision: Precision) -> str:
    if precision == "fp16":
        return "fp16 does not apply: the model has no floating-point weights."
    return f"{precision} does not apply: the model has no layer with weights large enough that it can shrink."


def _over_budget(
    target: Target, precision: Precision, code: Literal["memory", "storage"], needed: int, budget: int
) -> Rejection:
    reason = f"{precision} needs {_size(needed)} of {code}, class {target.name} allows {_size(budget)}."
    return Rejection(precision=precision, code=code, reason=reason)


def _reasons(
    facts: ModelFacts,
    target: Target,
    precision: Precision,
    size: int,
    memory: int,
    latency: float,
    quality: float,
    measured: bool,
) -> Iterable[str]:
    place = list(dict.fromkeys(target.precisions)).index(precision) + 1
    kind = f"emulated {target.accelerator}" if target.emulated else target.accelerator
    yield f"Choice {place} of class {target.name} ({kind}, {target.execution_provider})."
    if precision not in ("fp32", "fp16"):
        yield f"{len(_layers(facts, precision))} of {len(facts.layers)} layers with weights shrink."
    yield f"{_size(facts.source_bytes)} become {_size(size)}; storage allows {_size(target.storage_bytes)}."
    yield f"Expected peak memory {_size(memory)}; the budget is {_size(target.memory_bytes)}."
    word = "Measured" if measured else "Expected"
    below = " It will be built and measured all the same." if quality < target.quality_floor else ""
    yield f"{word} quality {quality:.4f} of FP32; the floor is {target.quality_floor:.4f}.{below}"
    if target.latency_ms is not None and latency > target.latency_ms:
        yield f"Expected latency {latency:.1f} ms on the worker's CPU is above the class's {target.latency_ms:.1f} ms."
    if facts.synthetic_samples:
        yield "There is no evaluation set: quality is measured on generated inputs and says little."


def _size(count: int) -> str:
    """Bytes in the unit that reads best, from B to MB (decimal)."""
    if count >= 1_000_000:
        return f"{count / 1e6:.1f} MB"
    return f"{count / 1e3:.1f} kB" if count >= 1000 else f"{count} B"
