"""Energy of an inference: an estimate, to compare plans with each other, not a measurement.

Bytes moved and operations, each times what it costs in a 45 nm process at 0.9 V (Horowitz,
"Computing's energy problem", ISSCC 2014, figure 1.1.9): 32-bit floating-point multiplication 3.7 pJ and
addition 0.9 pJ; 16-bit 1.1 and 0.4 pJ; 8-bit integer multiplication 0.2 pJ, 32-bit addition 0.1 pJ;
64 bits from DRAM 1.3 nJ at least. What a processor spends on instructions comes on top, so a class
should declare its accelerator's power at work: then energy is that times the latency.
"""

from __future__ import annotations

from quantize_worker.contract import LayerFacts, ModelFacts, Target
from quantize_worker.formats import FORMATS, Format
from quantize_worker.planning.latency import bytes_of, multiplies
from quantize_worker.planning.storage import TABLE

PJ_PER_BYTE = 1300 / 8  # from DRAM
PJ_FP32, PJ_16_BIT, PJ_8_BIT = 3.7 + 0.9, 1.1 + 0.4, 0.2 + 0.1  # a multiply-accumulate
_MWH_PER_PJ = 1e-12 / 3.6
_MWH_PER_MW_MS = 1 / 3.6e6


class Energies:
    """Energy of one model on one class's devices, in mWh per sample."""

    def __init__(self, facts: ModelFacts, target: Target) -> None:
        self._power_mw = target.active_power_mw
        self._products = facts.products.multiplies
        self._other_bytes = facts.other_bytes

    def rest_mwh(self, latency_ms: float) -> float:
        """All that is in no layer, products of two activations in FP32."""
        return self._either(latency_ms, self._other_bytes * PJ_PER_BYTE + self._products * PJ_FP32)

    def layer_mwh(self, layer: LayerFacts, name: str, latency_ms: float) -> float:
        """One layer in one format."""
        return self._either(latency_ms, _picojoules(layer, FORMATS[name]))

    def products_mwh(self, name: str, latency_ms: float) -> float:
        """What products take less (negative) in a static format."""
        pj = PJ_8_BIT if name == "int8-qdq" else PJ_16_BIT
        return self._either(latency_ms, self._products * (pj - PJ_FP32))

    def whole_fp16_mwh(self, facts: ModelFacts, latency_ms: float) -> float:
        """The whole model in FP16."""
        count = sum(map(multiplies, facts.layers)) + self._products
        return self._either(latency_ms, 2 * facts.parameters * PJ_PER_BYTE + count * PJ_16_BIT)

    def _either(self, latency_ms: float, picojoules: float) -> float:
        if self._power_mw is not None:
            return self._power_mw * latency_ms * _MWH_PER_MW_MS
        return picojoules * _MWH_PER_PJ


def _picojoules(layer: LayerFacts, item: Format) -> float:
    moved = float(bytes_of(layer, item.name))
    if layer.operator == TABLE:  # only the rows that are looked up
        moved *= min(1.0, max(1.0, layer.rows) / layer.shape[0]) if layer.shape else 1.0
    return moved * PJ_PER_BYTE + multiplies(layer) * _pj_per_multiply(item)


def _pj_per_multiply(item: Format) -> float:
    if item.activation_bits == 16:
        return PJ_16_BIT
    integer = item.bits <= 8 and not item.stored_only  # blocks multiply in 8 bits too (accuracy level 4)
    return PJ_8_BIT if integer else PJ_FP32
