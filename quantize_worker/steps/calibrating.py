"""Calibration samples that a model cannot be analysed on: each fault with its code and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize_worker.errors import ModelRefused
from quantize_worker.steps.measure import is_out_of_memory
from quantize_worker.steps.opening import short


@contextmanager
def running(model: Path) -> Iterator[None]:
    """While calibration samples run: ONNX Runtime's errors become a refusal.

    Raises:
        ModelRefused: wrong_sample_shape.
        MemoryError: if ONNX Runtime was refused memory.
    """
    try:
        yield
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        if is_out_of_memory(str(error)):
            raise MemoryError(str(error)) from error
        raise ModelRefused(
            "wrong_sample_shape",
            "The model does not run on the calibration set; check shapes and values. "
            f"ONNX Runtime says: {short(error, model)}",
        ) from error


def check_finite(outputs: Sequence[NDArray[Any]], *, synthetic: bool) -> None:
    """What FP32 makes of calibration samples must be numbers: losses are measured against it.

    Raises:
        ModelRefused: non_finite_outputs.
    """
    if all(np.isfinite(one).all() for one in outputs):
        return
    if synthetic:
        text = "generated inputs; upload a calibration set with real ones, or correct the model."
    else:
        text = "the calibration set; leave those samples out, or correct the model."
    raise ModelRefused("non_finite_outputs", f"The FP32 model's outputs are NaN or infinite on {text}")
