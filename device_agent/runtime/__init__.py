"""ONNX Runtime: sessions, self-test, lanes and micro-benchmarks.

The only package of the agent that imports onnxruntime. That library reports usage unless
``ORT_DISABLE_TELEMETRY=1`` is in the environment before it is loaded; the command line restarts
itself with it, and importing this package sets it once more for whoever embeds the agent.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from device_agent.runtime.engine import Proof, Runtime, Served
from device_agent.runtime.microbench import measure
from device_agent.runtime.providers import detect_accelerators, engine_version
from device_agent.runtime.session import Session, TensorInfo, open_session

__all__ = [
    "Proof",
    "Runtime",
    "Served",
    "Session",
    "TensorInfo",
    "detect_accelerators",
    "engine_version",
    "measure",
    "open_session",
]
