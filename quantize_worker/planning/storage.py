"""Bytes of an artifact: what formats store, and the room that is lost between tensors.

Large tensors start at a page, so that they can be mapped into memory; blocks of weights come with
small tensors (scales, zero points), each of which loses part of a page. The FP32 model has such gaps
as well, one a layer, which its other bytes include.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from quantize_worker.contract import LayerFacts
from quantize_worker.formats import FORMATS, Format

# As artifacts are written (steps.datafile).
PAGE_BYTES, PAGE_FROM = 4096, 64 << 10
ALIGNMENT, INLINE_BYTES = 64, 1024
FP32_GAP_BYTES = 1700  # that a rewritten layer leaves; all-MiniLM in six formats: 1,220-2,320
TABLE = "Gather"


def stored_bytes(layer: LayerFacts, name: str) -> int:
    """What a layer adds to the artifact in a format, gaps included."""
    facts = layer.formats.get(name)
    size = facts.size_bytes if facts is not None else 4 * layer.parameters
    if name == "fp32":
        return size
    gaps = sum(_padded(tensor) - tensor for tensor in _tensors(layer, FORMATS[name], size))
    return max(0, size + gaps - (FP32_GAP_BYTES if 4 * layer.parameters >= PAGE_FROM else 0))


def _tensors(layer: LayerFacts, item: Format, size: int) -> Iterable[int]:
    """Bytes of the tensors that a format stores: weights, scales, zero points."""
    weights = layer.parameters * item.bits // 8
    if item.block is None:
        return (weights, max(0, size - weights)) if item.bits == 8 else (size,)
    outputs = _outputs(layer)
    codes = outputs * math.ceil(layer.parameters / outputs / item.block)
    zeros = 0 if item.symmetric else codes * item.bits // 8
    return (weights, codes, zeros, max(0, size - weights - codes - zeros))


def _outputs(layer: LayerFacts) -> int:
    """Rows of a table, columns of a matrix; every one has a scale of its own."""
    if not layer.shape:
        return 1
    return max(1, layer.shape[0] if layer.operator == TABLE else layer.shape[-1])


def _padded(size: int) -> int:
    """Bytes from the start of a tensor to where the next may start."""
    if size < INLINE_BYTES:
        return size
    step = PAGE_BYTES if size >= PAGE_FROM else ALIGNMENT
    return -(-size // step) * step
