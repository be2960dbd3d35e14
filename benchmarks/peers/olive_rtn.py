"""Olive's block-wise rounding to nearest, four bits in blocks of 32, the embedding too.

python olive_rtn.py RECIPE MODEL CALIBRATION_NPZ OUT_FOLDER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.onnx.rtn_quantization import OnnxBlockWiseRtnQuantization


def main(recipe: str, model: str, calibration: str, out: str) -> None:
    work = Path(out) / "work"
    settings = {"bits": 4, "block_size": 32}
    step = create_pass_from_dict(OnnxBlockWiseRtnQuantization, settings, disable_search=True)
    result = step.run(ONNXModelHandler(model), str(work))
    shutil.copyfile(result.model_path, Path(out) / "model.onnx")
    shutil.rmtree(work)


if __name__ == "__main__":
    main(*sys.argv[1:])
