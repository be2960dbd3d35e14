"""Small made-up facts and classes for tests of the planner."""

from __future__ import annotations

from typing import Any

import msgspec

from quantize_worker.contract import FormatFacts, LayerFacts, ModelFacts, Precision, Target, TensorSpec

MB = 1_000_000
KB = 1000
# Bits per weight and loss over that of four bits.
BITS = {
    "fp32": (32.0, 0.0),
    "fp16-stored": (16.0, 1e-5),
    "int8-stored": (8.0, 1e-3),
    "int8-b32": (8.5, 8e-4),
    "int8-b128": (8.2, 1.2e-3),
    "int8-dynamic": (8.1, 0.06),
    "int8-qdq": (8.1, 0.08),
    "int8-qdq16": (8.1, 2e-3),
    "int4-b16": (5.25, 0.7),
    "int4-b32": (4.75, 1.0),
    "int4-b128": (4.2, 1.6),
}
MATRIX = tuple(name for name in BITS if name != "int8-stored")
TABLE = ("fp32", "fp16-stored", "int8-b128", "int4-b32", "int4-b128")
CONV = ("fp32", "fp16-stored", "int8-stored", "int8-qdq", "int8-qdq16")
OTHER = ("fp32", "fp16-stored", "int8-stored")


def layer(
    name: str,
    parameters: int,
    *,
    operator: str = "MatMul",
    loss: float = 0.005,
    formats: tuple[str, ...] = MATRIX,
    **changes: Any,
) -> LayerFacts:
    """A layer that can take these formats; ``loss`` is that of int4-b32."""
    side = max(1, int(parameters**0.5))
    made = LayerFacts(
        name=name,
        operator=operator,
        parameters=parameters,
        quantizable=len(formats) > 1,
        weight=f"{name}.weight",
        shape=[side, parameters // side],
        rows=48.0,
        formats={form: _format(parameters, form, loss) for form in formats},
    )
    return msgspec.structs.replace(made, **changes)


def _format(parameters: int, name: str, loss: float) -> FormatFacts:
    bits, share = BITS[name]
    size = int(parameters * bits / 8)
    resident = 4 * parameters if name.endswith("stored") else size
    return FormatFacts(size_bytes=size, memory_bytes=resident, error=share * 0.004, loss=share * loss)


def model(*layers: LayerFacts, **changes: Any) -> ModelFacts:
    """Facts of contract 2 with these layers."""
    parameters = sum(each.parameters for each in layers)
    base = ModelFacts(
        inputs=[TensorSpec(name="x", dtype="float32", shape=["n", 64])],
        outputs=[TensorSpec(name="y", dtype="float32", shape=["n", 4])],
        opset=17,
        operators={},
        parameters=parameters,
        source_bytes=4 * parameters + 10 * KB,
        weight_bytes=4 * parameters,
        quantizable_weight_bytes=4 * parameters,
        embedding_weight_bytes=0,
        layers=list(layers),
        samples=256,
        has_labels=False,
        synthetic_samples=False,
        accuracy=None,
        latency_p50_ms=16.0,
        memory_bytes=4 * parameters + 14 * MB,
        tool_versions={"onnxruntime": "1.32.0"},
        other_bytes=10 * KB,
    )
    return msgspec.structs.replace(base, **changes)


def encoder(count: int = 6, **changes: Any) -> ModelFacts:
    """A table of 4 M weights and ``count`` matrices of 1 M, each less sensitive than the one before."""
    matrices = [layer(f"dense{index}", MB, loss=0.008 / (index + 1)) for index in range(count)]
    return model(layer("table", 4 * MB, operator="Gather", loss=0.001, formats=TABLE), *matrices, **changes)


def target(*precisions: Precision, **changes: Any) -> Target:
    """A class of CPUs with room for everything and a floor of 0.97."""
    base = Target(
        name="entry",
        version=1,
        accelerator="cpu",
        execution_provider="CPUExecutionProvider",
        emulated=False,
        precisions=list(precisions),
        memory_bytes=1000 * MB,
        storage_bytes=1000 * MB,
        quality_floor=0.97,
    )
    return msgspec.structs.replace(base, **changes)


EVERY: tuple[Precision, ...] = ("int4", "int8", "int8-dynamic", "fp16", "fp32")
