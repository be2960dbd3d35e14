"""Whether a rewritten model still computes what its source does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from quantize_worker.errors import ModelRefused
from quantize_worker.steps.opening import open_session, short
from quantize_worker.steps.samples import Sample

Array = NDArray[Any]
RELATIVE = 1e-4  # of an output's largest magnitude
_ULPS = 4  # what rounding may differ by in types coarser than that


class Reference:
    """A model's outputs on a few samples.

    Args:
        session: of the source.
        samples: inputs; may be empty, or such that the model does not run on them.
        lean: whether other models are opened without copying their weights.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, samples: Sequence[Sample], *, lean: bool = False
    ) -> None:
        self._samples, self._lean = samples, lean
        self._names = [output.name for output in session.get_outputs()]
        self._outputs: list[list[Array]] = []
        self.trouble = "" if samples else "there are no samples"
        try:
            self._outputs = [session.run(None, sample) for sample in samples]
        except MemoryError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            self.trouble = f"the model does not run on generated inputs: {short(error, Path())}"

    def disagreement(self, path: Path) -> str:
        """Why the model at ``path`` does not stand for the source; empty if it does."""
        if self.trouble:
            return f"it could not be compared, as {self.trouble}"
        try:
            session = open_session(path, lean=self._lean)
            names = [output.name for output in session.get_outputs()]
            if names != self._names:
                return "its outputs have other names"
            for sample, expected in zip(self._samples, self._outputs, strict=True):
                found = session.run(None, sample)
                for name, left, right in zip(names, expected, found, strict=True):
                    if not agrees(left, right):
                        return f"its output {name!r} differs"
        except ModelRefused as refusal:
            return refusal.message
        except MemoryError:
            raise
        except Exception as error:  # the same
            return f"it does not run: {short(error, path)}"
        return ""


def agrees(expected: Any, found: Any) -> bool:
    """Whether two outputs are the same but for rounding."""
    if not (isinstance(expected, np.ndarray) and isinstance(found, np.ndarray)):
        return bool(expected == found)
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if expected.dtype.kind != "f":
        return bool(np.array_equal(expected, found))
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], found[~finite], equal_nan=True):
        return False
    left, right = expected[finite].astype(np.float64), found[finite].astype(np.float64)
    if not left.size:
        return True
    bound = max(RELATIVE, _ULPS * float(np.finfo(expected.dtype).eps)) * float(np.abs(left).max())
    return bool(np.isfinite(right).all() and np.abs(left - right).max() <= max(bound, 1e-12))
