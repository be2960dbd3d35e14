"""The four device classes of the demo, as the REST API takes them.

Each asks for something else, so that the planner has to weigh: an NPU that takes static INT8 only,
with activations of 8 bits or, where they lose too much, 16; a GPU for FP16; a CPU that is to be
fast; and a small phone that is to get the smallest build that is still good.

Their accelerators are emulated: the CPU execution provider stands in for NPU and GPU, each class
says so, and every page and table that shows them says it too.
"""

from __future__ import annotations

from typing import Any

MIB = 2**20

CLASSES: list[dict[str, Any]] = [
    {
        "name": "flagship",
        "title": "Flagship, NPU",
        "rank": 10,
        "filter": 'accelerator == "npu" and ram_mb >= 10000',
        "accelerator": "npu",
        "execution_provider": "CPUExecutionProvider",
        "emulated": True,
        "precisions": ["int8-qdq", "int8-qdq16"],
        "memory_bytes": 1024 * MIB,
        "storage_bytes": 256 * MIB,
        "quality_floor": 0.97,
    },
    {
        "name": "midrange-gpu",
        "title": "Mid-range, GPU",
        "rank": 20,
        "filter": 'accelerator == "gpu" and ram_mb >= 6000',
        "accelerator": "gpu",
        "execution_provider": "CPUExecutionProvider",
        "emulated": True,
        "precisions": ["fp16", "fp32"],
        "memory_bytes": 768 * MIB,
        "storage_bytes": 128 * MIB,
        "quality_floor": 0.99,
    },
    {
        "name": "midrange-cpu",
        "title": "Mid-range, CPU",
        "rank": 30,
        "filter": "ram_mb >= 6000",
        "accelerator": "cpu",
        "execution_provider": "CPUExecutionProvider",
        "emulated": True,
        "precisions": ["int8-dynamic", "int8", "fp32"],
        "objective": "latency",
        "memory_bytes": 512 * MIB,
        "storage_bytes": 128 * MIB,
        "quality_floor": 0.97,
    },
    {
        "name": "entry",
        "title": "Entry, 3 GB",
        "rank": 40,
        "filter": "ram_mb >= 2000",
        "accelerator": "cpu",
        "execution_provider": "CPUExecutionProvider",
        "emulated": True,
        "precisions": ["int4", "int8"],
        "objective": "size",
        "memory_bytes": 256 * MIB,
        "storage_bytes": 48 * MIB,
        "quality_floor": 0.95,
    },
]
