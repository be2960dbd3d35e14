"""FP16 weights and arithmetic; inputs and outputs keep their types."""

from __future__ import annotations

from typing import cast

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from quantize_worker.errors import BuildFailed


def convert(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a model whose weights are loaded.

    Raises:
        BuildFailed: if the converter gives up on an operator.
    """
    try:
        return cast("onnx.ModelProto", convert_float_to_float16(model, keep_io_types=True))
    except MemoryError:
        raise
    except Exception as error:  # the converter raises whatever it stumbles over
        raise BuildFailed(
            "conversion_failed", f"The model cannot be converted to FP16: {error}", fault="model"
        ) from error
