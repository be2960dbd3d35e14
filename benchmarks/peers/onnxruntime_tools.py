"""ONNX Runtime's own quantizers.

    python onnxruntime_tools.py RECIPE MODEL CALIBRATION_NPZ OUT_FOLDER

Weights only, four bits in blocks of 32 (``rtn-2-bit``: two): ``rtn``, ``rtn-symmetric``, ``k-quant``, ``hqq``, ``gptq``. Eight bits:
``dynamic``, ``dynamic-per-channel``, ``static``, ``static-per-channel``, ``static-matmul``, ``static-a16w8``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization import matmul_nbits_quantizer as nbits
from onnxruntime.quantization.shape_inference import quant_pre_process

BLOCK = 32
BLOCKS: dict[str, Callable[[Path], Any]] = {
    "rtn": lambda _: nbits.DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=False, bits=4),
    "rtn-symmetric": lambda _: nbits.DefaultWeightOnlyQuantConfig(
        block_size=BLOCK, is_symmetric=True, bits=4
    ),
    "rtn-2-bit": lambda _: nbits.DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=False, bits=2),
    "k-quant": lambda _: nbits.KQuantWeightOnlyQuantConfig(),
    "hqq": lambda _: nbits.HQQWeightOnlyQuantConfig(block_size=BLOCK, bits=4),
    "gptq": lambda path: nbits.GPTQWeightOnlyQuantConfig(calibration_data_reader=Reader(path)),
}
STATIC: dict[str, dict[str, Any]] = {
    "static": {},
    "static-per-channel": {"per_channel": True},
    "static-matmul": {"per_channel": True, "op_types_to_quantize": ["MatMul"]},
    "static-a16w8": {
        "per_channel": True,
        "activation_type": QuantType.QUInt16,
        "weight_type": QuantType.QInt8,
        "op_types_to_quantize": ["MatMul"],
        "extra_options": {"UseQDQContribOps": True},  # 16 bits below opset 21
    },
}


class Reader(CalibrationDataReader):
    """One sentence at a time."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            inputs = {name: arrays[name] for name in arrays.files}
        count = len(next(iter(inputs.values())))
        self._feeds = [{name: values[i : i + 1] for name, values in inputs.items()} for i in range(count)]
        self.rewind()

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)

    def rewind(self) -> None:
        self._left = iter(self._feeds)


def in_blocks(recipe: str, model: Path, calibration: Path, result: Path) -> None:
    """Weights only. ``algo_config`` overrides the constructor's bits and block: both say the same."""
    quantizer = nbits.MatMulNBitsQuantizer(
        onnx.load(model),
        bits=2 if recipe == "rtn-2-bit" else 4,
        block_size=BLOCK,
        is_symmetric=recipe == "rtn-symmetric",
        algo_config=BLOCKS[recipe](calibration),
    )
    quantizer.process()
    onnx.save(quantizer.model.model, str(result))


def static(recipe: str, model: Path, calibration: Path, result: Path) -> None:
    """Weights and activations. Symbolic shape inference fails on this model: skipped."""
    prepared = result.with_name("prepared.onnx")
    quant_pre_process(model, prepared, skip_symbolic_shape=True)
    quantize_static(prepared, result, Reader(calibration), **STATIC[recipe])
    prepared.unlink()


def main(recipe: str, model: str, calibration: str, out: str) -> None:
    result = Path(out).resolve() / "model.onnx"
    if recipe in BLOCKS:
        in_blocks(recipe, Path(model), Path(calibration), result)
    elif recipe in STATIC:
        static(recipe, Path(model), Path(calibration), result)
    else:
        quantize_dynamic(model, result, per_channel={"dynamic": False, "dynamic-per-channel": True}[recipe])


if __name__ == "__main__":
    main(*sys.argv[1:])
