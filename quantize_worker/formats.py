"""The formats a layer can be stored and run in: names, bits, and which precision a class must accept.

Pure. Every format of a layer is a row of :data:`FORMATS`; what each operator can take is
:data:`FORMATS_OF`. How a format is written into a graph: :mod:`quantize_worker.steps.assemble`.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantize_worker.contract import Precision


@dataclass(frozen=True)
class Format:
    """One way to store a layer's weight.

    Args:
        name: stable; recipes, facts and files of candidates use it.
        precision: what a class must accept to get it.
        bits: of a stored weight.
        block: weights that share a scale along the input dimension; None: a whole channel.
        symmetric: no zero point is stored.
        data_aware: rounding uses calibration data, so the candidate is made once and kept.
        activation_bits: of the activations while multiplying; 32: floating point.
        stored_only: the weight is restored to FP32 when the model is loaded: a smaller file, the
            memory and speed of FP32.
    """

    name: str
    precision: Precision
    bits: int
    block: int | None = None
    symmetric: bool = True
    data_aware: bool = False
    activation_bits: int = 32
    stored_only: bool = False


def _int4(block: int, *, symmetric: bool) -> Format:
    name = f"int4-b{block}" + ("-sym" if symmetric else "")
    return Format(name, "int4", 4, block, symmetric, data_aware=True)


_ALL = (
    Format("fp32", "fp32", 32),
    Format("fp16-stored", "fp16", 16, stored_only=True),
    Format("int8-stored", "int8", 8, stored_only=True),  # per channel; any operator's weight
    Format("int8-b16", "int8", 8, 16, symmetric=True),
    Format("int8-b32", "int8", 8, 32, symmetric=True),
    Format("int8-b128", "int8", 8, 128, symmetric=True),
    Format("int8-dynamic", "int8-dynamic", 8, activation_bits=8),
    Format("int8-qdq", "int8-qdq", 8, activation_bits=8),
    Format("int8-qdq16", "int8-qdq16", 8, activation_bits=16),
    *(_int4(block, symmetric=symmetric) for block in (16, 32, 128) for symmetric in (False, True)),
)
FORMATS: dict[str, Format] = {item.name: item for item in _ALL}

_BLOCKS4 = tuple(item.name for item in _ALL if item.bits == 4)
_BLOCKS8 = ("int8-b16", "int8-b32", "int8-b128")
_MATRIX = ("fp32", "fp16-stored", *_BLOCKS8, "int8-dynamic", "int8-qdq", "int8-qdq16", *_BLOCKS4)
FORMATS_OF: dict[str, tuple[str, ...]] = {
    "MatMul": _MATRIX,
    "Gemm": _MATRIX,
    # rows of a table are restored one by one: every precision below FP16 may use them
    "Gather": ("fp32", "fp16-stored", "int8-b128", *_BLOCKS4),
    "Conv": ("fp32", "fp16-stored", "int8-stored", "int8-qdq", "int8-qdq16"),
    "LSTM": ("fp32", "fp16-stored", "int8-stored", "int8-dynamic"),  # DynamicQuantizeLSTM
}
OTHER_FORMATS = ("fp32", "fp16-stored", "int8-stored")  # of any other operator's constant weight
INT8_FAMILY: tuple[Precision, ...] = ("int8", "int8-dynamic", "int8-qdq", "int8-qdq16", "int4")


def formats_of(operator: str) -> tuple[str, ...]:
    """Names of the formats that an operator's weight can take, "fp32" first."""
    return FORMATS_OF.get(operator, OTHER_FORMATS)


def accepts(precisions: tuple[Precision, ...], name: str, operator: str) -> bool:
    """Whether a class that accepts these precisions takes an operator's weight in a format.

    Tables and stored-only weights are restored before they are used, so any class that accepts
    eight bits or fewer in some way takes them in eight; four bits need "int4".
    """
    item = FORMATS[name]
    if item.precision in precisions:
        return True
    restored = item.stored_only or operator == "Gather"
    return restored and item.precision == "int8" and any(p in INT8_FAMILY for p in precisions)
