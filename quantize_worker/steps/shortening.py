"""Samples without the padding at their ends, where a model takes any length: less to compute, the same to learn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quantize_worker.steps.opening import open_session
from quantize_worker.steps.samples import Sample

Rows = NDArray[np.bool_]
STEP = 4  # lengths are multiples, so that there are fewer of them


class Shortener:
    """Cuts samples, if the model lets it.

    Args:
        model: tried once, on the first sample that gets shorter.
        proto: its graph.
        lean: open the model without copying its weights.
    """

    def __init__(self, model: Path, proto: onnx.GraphProto, *, lean: bool) -> None:
        self._model, self._lean = model, lean
        self._open = {value.name for value in proto.input if _is_open(value)}
        self._works: bool | None = None

    def shortened(
        self, samples: Sequence[Sample], masks: Sequence[Rows] | None
    ) -> tuple[list[Sample], list[Rows] | None]:
        """Samples and their masks of relevant (row, position)s, cut behind the last relevant position."""
        if masks is None:
            return list(samples), None
        pairs = [self._cut(sample, mask) for sample, mask in zip(samples, masks, strict=True)]
        return [sample for sample, _ in pairs], [mask for _, mask in pairs]

    def _cut(self, sample: Sample, mask: Rows) -> tuple[Sample, Rows]:
        shape = next(iter(sample.values())).shape
        if len(shape) != 2 or any(v.shape != shape or name not in self._open for name, v in sample.items()):
            return sample, mask
        table = mask.reshape(shape)
        length = int(np.flatnonzero(table.any(axis=0)).max(initial=0)) + 1
        length = min(shape[1], -(-length // STEP) * STEP)
        if length == shape[1]:
            return sample, mask
        cut = {name: np.ascontiguousarray(values[:, :length]) for name, values in sample.items()}
        if self._works is None:
            self._works = self._runs(cut)
        return (cut, table[:, :length].reshape(-1)) if self._works else (sample, mask)

    def _runs(self, sample: Sample) -> bool:
        session: Any = open_session(self._model, lean=self._lean)
        try:
            session.run(None, sample)
        except MemoryError:
            raise
        except Exception:  # ONNX Runtime's exceptions have no common base; any refusal means "no"
            return False
        return True


def _is_open(value: onnx.ValueInfoProto) -> bool:
    """Whether an input's second axis may have any length."""
    dims = value.type.tensor_type.shape.dim
    return len(dims) == 2 and not dims[1].HasField("dim_value")
