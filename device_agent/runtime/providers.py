"""Execution providers of this installation of ONNX Runtime, as accelerators."""

from __future__ import annotations

import re

import onnxruntime

from device_agent.protocol.messages import Accelerator, AcceleratorKind

CPU = "CPUExecutionProvider"

# What a provider runs on, and the data types it is known to take. Providers that are no
# accelerator of the device (Azure's remote one) are left out on purpose.
_KNOWN: dict[str, tuple[AcceleratorKind, list[str]]] = {
    CPU: ("cpu", ["float32", "float16", "int8", "int4"]),
    "XnnpackExecutionProvider": ("cpu", ["float32"]),
    "CUDAExecutionProvider": ("gpu", ["float32", "float16", "int8", "int4"]),
    "WebGpuExecutionProvider": ("gpu", ["float32", "float16", "int4"]),
    "QNNExecutionProvider": ("npu", ["float16", "int8"]),
    "NnapiExecutionProvider": ("npu", ["float32", "float16", "int8"]),
    "CoreMLExecutionProvider": ("npu", ["float32", "float16"]),
}


def engine_version() -> str:
    """Version of ONNX Runtime."""
    return str(onnxruntime.__version__)


def detect_accelerators() -> list[Accelerator]:
    """One accelerator per known provider that this installation offers, without figures."""
    return [
        Accelerator(name=name, kind=_KNOWN[name][0], execution_provider=name, data_types=_KNOWN[name][1])
        for name in onnxruntime.get_available_providers()
        if name in _KNOWN
    ]


def older_than(version: str, minimum: str) -> bool:
    """Whether dotted ``version`` is below ``minimum``; suffixes are ignored."""
    return _numbers(version) < _numbers(minimum)


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))
