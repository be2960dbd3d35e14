"""Runs a model on an execution provider that is a plugin, as a device would, and keeps its outputs.

    python provider_run.py PACKAGE PROVIDER MODEL SAMPLES_NPZ OUT_NPY

One sample at a time, default options: OpenVINO then calculates in bf16 where the processor can.
"""

from __future__ import annotations

import importlib
import sys

import numpy as np
import onnxruntime as ort


def main(package: str, provider: str, model: str, samples: str, out: str) -> None:
    ort.register_execution_provider_library(provider, importlib.import_module(package).get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == provider]
    options = ort.SessionOptions()
    options.add_provider_for_devices(devices[:1], {})
    session = ort.InferenceSession(model, options)
    if session.get_providers()[0] != provider:
        raise SystemExit(f"the model runs on {session.get_providers()[0]}, not on {provider}")
    with np.load(samples) as arrays:
        inputs = {name: arrays[name] for name in arrays.files if name != "labels"}
    count = len(next(iter(inputs.values())))
    feeds = [{name: values[i : i + 1] for name, values in inputs.items()} for i in range(count)]
    np.save(out, np.concatenate([session.run(None, feed)[0] for feed in feeds]))


if __name__ == "__main__":
    main(*sys.argv[1:])
