"""Milliseconds of a sample on a class's devices, from operators that the worker has timed.

By phase, not by habit: weight-only INT4 is slower than FP32 for an encoder's long batches, and
several times faster for a decoder's single tokens. So every layer is priced at its own rows, between
the two phases that were measured. From the worker to the class's devices a time is scaled by what
limits it there: floating-point arithmetic, integer arithmetic or reading weights.

Where nothing was measured, ratios of the table below stand in, from ONNX Runtime 1.32 on a CPU with
AVX512-VNNI: 48 tokens of all-MiniLM took 14.9 ms in FP32, 6.3-7.3 in dynamic INT8 and 19-21 in INT4;
a token of an 852 M decoder 164 ms, 57 in INT8 and 43 in INT4 (blocks of 32; 35 in blocks of 128).
"""

from __future__ import annotations

import math

from quantize_worker.contract import LayerFacts, ModelFacts, OperatorCost, Target
from quantize_worker.formats import FORMATS, Format
from quantize_worker.planning.storage import TABLE

CPU_PROVIDER = "CPUExecutionProvider"
FEW_ROWS = 8  # below, reading the weights takes longer than multiplying
LAYERS_SHARE = 0.9  # of a sample's time, where no operator was timed
FP16_RATIO = {True: 1.15, False: 0.6}  # of FP32: on CPU, whose provider adds casts; elsewhere
PRODUCTS_RATIO = 0.5  # static products of two activations
_LONG = {"block4": 1.33, "block8": 1.0, "int8-dynamic": 0.43, "int8-qdq": 0.45, "int8-qdq16": 1.1}
_SHORT = {"block4": 0.25, "block8": 0.35, "int8-dynamic": 0.35, "int8-qdq": 0.4, "int8-qdq16": 1.1}

_Phases = list[tuple[float, float]]  # rows, ms


def bytes_of(layer: LayerFacts, name: str) -> int:
    """Of the weight as the format keeps it in memory."""
    facts = layer.formats.get(name)
    return facts.memory_bytes if facts is not None else 4 * layer.parameters


class Latencies:
    """Times of one model on one class's devices. All are of one thread.

    Args:
        facts: of the model.
        target: the class; ``speed`` is what its devices measured, as the worker measured itself.
    """

    def __init__(self, facts: ModelFacts, target: Target) -> None:
        self._worker, self._device = facts.speed, target.speed
        self._provider = target.execution_provider
        self._timed = _by_operator(facts.costs, target.execution_provider)
        self._per_multiply = self._ms_per_multiply(facts)
        single = {layer.name: self._single(layer) for layer in facts.layers}
        total = sum(single.values())
        limit = 0.98 * facts.latency_p50_ms  # operators timed alone may add up to more than the model
        self._shrink = min(1.0, limit / total) if total else 1.0
        self._fp32 = {name: ms * self._shrink for name, ms in single.items()}
        self._rest = max(0.0, facts.latency_p50_ms - sum(self._fp32.values()))
        self._products = min(facts.products.multiplies * self._per_multiply, 0.5 * self._rest)
        self._float = _ratio(self._worker.fp32_gflops, self._device.fp32_gflops) or 1.0

    @property
    def rest_ms(self) -> float:
        """All that is not in a layer: normalisation, activations, products of two activations."""
        return self._rest * self._float

    def layer_ms(self, layer: LayerFacts, name: str) -> float:
        """One layer in one format."""
        item = FORMATS[name]
        fp32 = self._fp32[layer.name]
        timed = self._phase(layer, name)
        worker = timed * self._shrink if timed is not None else fp32 * _untimed(item, layer)
        return worker * self._device_ratio(layer, item)

    def products_ms(self, name: str) -> float:
        """What products of two activations take less (negative) in a static format."""
        saved = 1.0 - PRODUCTS_RATIO if name == "int8-qdq" else 0.0
        return -saved * self._products * self._float

    def whole_fp16_ms(self, fp32_ms: float) -> float:
        """The whole model in FP16."""
        return fp32_ms * FP16_RATIO[self._provider == CPU_PROVIDER]

    def _single(self, layer: LayerFacts) -> float:
        timed = self._phase(layer, "fp32")
        return timed if timed is not None else multiplies(layer) * self._per_multiply

    def _phase(self, layer: LayerFacts, name: str) -> float | None:
        """What the worker timed for the shape, at the layer's rows."""
        shape = tuple(layer.shape)
        phases = self._timed.get((layer.operator, name, shape))
        phases = phases or self._timed.get((layer.operator, name, shape[::-1]))
        return _at(phases, max(1.0, layer.rows)) if phases else None

    def _ms_per_multiply(self, facts: ModelFacts) -> float:
        """From the layers that were timed, else from the whole sample."""
        timed = [(layer, self._phase(layer, "fp32")) for layer in facts.layers]
        known = [(multiplies(layer), ms) for layer, ms in timed if ms is not None]
        count, ms = sum(count for count, _ in known), sum(ms for _, ms in known)
        if count and ms:
            return ms / count
        everything = sum(map(multiplies, facts.layers)) + facts.products.multiplies
        return LAYERS_SHARE * facts.latency_p50_ms / everything if everything else 0.0

    def _device_ratio(self, layer: LayerFacts, item: Format) -> float:
        """Time there over time here, by what limits the layer."""
        return _ratio(*self._limits(layer, item)) or self._float

    def _limits(self, layer: LayerFacts, item: Format) -> tuple[float, float]:
        here, there = self._worker, self._device
        integer = item.bits <= 8 and not item.stored_only
        kind = (here.int8_gops, there.int8_gops) if integer else (here.fp32_gflops, there.fp32_gflops)
        memory_s = bytes_of(layer, item.name) / 1e9 / here.memory_gb_s if here.memory_gb_s else 0.0
        compute_s = 2e-9 * multiplies(layer) / kind[0] if kind[0] else math.inf
        return (here.memory_gb_s, there.memory_gb_s) if memory_s > compute_s else kind


def _by_operator(costs: list[OperatorCost], provider: str) -> dict[tuple[str, str, tuple[int, ...]], _Phases]:
    """Phases by operator, format and shape: the provider's own, else those of the CPU."""
    own = [cost for cost in costs if cost.provider == provider]
    timed: dict[tuple[str, str, tuple[int, ...]], _Phases] = {}
    for cost in own or [cost for cost in costs if cost.provider == CPU_PROVIDER]:
        key = (cost.operator, cost.format, tuple(cost.shape))
        timed.setdefault(key, []).append((float(cost.rows), cost.latency_ms))
    return {key: sorted(phases) for key, phases in timed.items()}


def _at(phases: _Phases, rows: float) -> float:
    """A line through the phases; with one phase, in proportion to the rows."""
    (low, least), (high, most) = phases[0], phases[-1]
    if high > low:
        return max(min(least, most) / 4, least + (most - least) * (rows - low) / (high - low))
    return least * (rows / low if low >= FEW_ROWS else 1.0)


def _untimed(item: Format, layer: LayerFacts) -> float:
    """Time over FP32's, documented above."""
    family = f"block{item.bits}" if item.block is not None else item.name
    return (_LONG if layer.rows >= FEW_ROWS else _SHORT).get(family, 1.0)


def multiplies(layer: LayerFacts) -> float:
    """Multiply-accumulates of a sample; looking up rows of a table takes none."""
    return 0.0 if layer.operator == TABLE else layer.parameters * max(1.0, layer.rows)


def _ratio(here: float, there: float) -> float:
    """Times grow by this where a device is slower; 0: unknown."""
    return here / there if here > 0 and there > 0 else 0.0
