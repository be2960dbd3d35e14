"""AIMET's SeqMSE: weights in four bits, blocks of 32, activations in 16; simulated.

    python aimet_seqmse.py RECIPE MODEL CALIBRATION_NPZ OUT_FOLDER REPORT_NPZ

AIMET simulates, so what comes back are its outputs on the report set. Only multiplications take four
bits; everything else is left in floating point. ``w4`` leaves activations alone too.
"""

from __future__ import annotations

import sys
from pathlib import Path

import aimet_onnx
import numpy as np
import onnx
from aimet_onnx.quantsim import set_blockwise_quantization_for_weights

BLOCK = 32


def feeds(path: str) -> list[dict[str, np.ndarray]]:
    """One sentence each."""
    with np.load(path) as arrays:
        inputs = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(inputs.values())))
    return [{name: values[i : i + 1] for name, values in inputs.items()} for i in range(count)]


def simulation(model: str, *, round_activations: bool) -> aimet_onnx.QuantizationSimModel:
    """Four-bit weights in all multiplications with one; 16-bit activations or none."""
    sim = aimet_onnx.QuantizationSimModel(
        onnx.load(model), param_type=aimet_onnx.int8, activation_type=aimet_onnx.int16, config_file="default"
    )
    set_blockwise_quantization_for_weights(sim, ("MatMul", "Gemm"), 4, symmetric=True, block_size=BLOCK)
    for name, quantizer in sim.qc_quantize_op_dict.items():
        multiplied = quantizer.bitwidth == 4
        if not multiplied and (name in sim.param_names or not round_activations):
            quantizer.enabled = False
    return sim


def main(recipe: str, model: str, calibration: str, out: str, report: str) -> None:
    samples = feeds(calibration)
    sim = simulation(model, round_activations=recipe == "w4a16")
    aimet_onnx.apply_seq_mse(sim, samples)
    sim.compute_encodings(samples)
    outputs = [sim.session.run(None, feed)[0] for feed in feeds(report)]
    np.save(Path(out) / "outputs.npy", np.concatenate(outputs))


if __name__ == "__main__":
    main(*sys.argv[1:])
