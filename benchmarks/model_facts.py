"""Facts of made-up encoders for planning without a model: true sizes, plausible losses and times."""

from __future__ import annotations

import math

import numpy as np

from quantize_worker.contract import (
    FormatFacts,
    Interaction,
    LayerFacts,
    ModelFacts,
    OperatorCost,
    ProductFacts,
    TensorSpec,
    WorkerSpeed,
)
from quantize_worker.formats import FORMATS, Format, formats_of

TOKENS = 48.0
# Mean squared error of a layer's output over its mean square, by bits and block.
_ERRORS = {
    (16, None): 4e-8,
    (8, 16): 4e-6,
    (8, 32): 5e-6,
    (8, 128): 8e-6,
    (8, None): 9e-5,
    (4, 16): 3.2e-3,
    (4, 32): 4.2e-3,
    (4, 128): 6.5e-3,
}
_LONG = {4: 1.35, 8: 0.95}  # time over FP32's for 48 rows, of blocks; dynamic and static 0.42
_SHORT = {4: 0.28, 8: 0.36}  # for one row


def encoder_facts(blocks: int = 6, width: int = 384, vocabulary: int = 30522, *, seed: int = 0) -> ModelFacts:
    """An encoder like all-MiniLM: six matrices a block and two tables, every format analysed.

    Args:
        blocks: transformer blocks; 6 of width 384 give all-MiniLM's 38 layers and 22 M weights.
        width: of the hidden state.
        vocabulary: rows of the larger table.
        seed: of the layers' sensitivities.
    """
    rng = np.random.default_rng(seed)
    shapes = [("Gather", (vocabulary, width)), ("Gather", (512, width))]
    shapes += blocks * [("MatMul", (width, width))] * 4
    shapes += blocks * [("MatMul", (width, 4 * width)), ("MatMul", (4 * width, width))]
    layers = [_layer(index, operator, shape, rng) for index, (operator, shape) in enumerate(shapes)]
    weights = sum(layer.parameters for layer in layers)
    fp32_ms = sum(_fp32_ms(layer.shape) for layer in layers if layer.operator == "MatMul")
    return ModelFacts(
        inputs=[TensorSpec(name="input_ids", dtype="int64", shape=["batch", "sequence"])],
        outputs=[TensorSpec(name="embedding", dtype="float32", shape=["batch", width])],
        opset=17,
        operators={"MatMul": 8 * blocks, "Gather": 2},
        parameters=weights,
        source_bytes=4 * weights + 300_000,
        weight_bytes=4 * weights,
        quantizable_weight_bytes=4 * weights,
        embedding_weight_bytes=4 * (vocabulary + 512) * width,
        layers=layers,
        samples=256,
        has_labels=False,
        synthetic_samples=False,
        accuracy=None,
        latency_p50_ms=1.25 * fp32_ms,
        memory_bytes=4 * weights + 14_000_000,
        tool_versions={"onnxruntime": "1.32.0"},
        other_bytes=300_000,
        products=ProductFacts(
            names=[f"product{index}" for index in range(2 * blocks)],
            multiplies=2 * blocks * TOKENS * TOKENS * width,
            loss={"int8-qdq": 2e-3, "int8-qdq16": 1e-5},
        ),
        costs=_costs(layers),
        interaction={
            "int4": Interaction(factor=2.0, power=1.15, points=[(0.004, 0.0035), (0.02, 0.022)]),
            "int8-dynamic": Interaction(factor=1.1, power=1.0, points=[(0.005, 0.0055)]),
        },
        speed=WorkerSpeed(fp32_gflops=60.0, int8_gops=200.0, memory_gb_s=10.0),
    )


def _layer(index: int, operator: str, shape: tuple[int, int], rng: np.random.Generator) -> LayerFacts:
    sensitivity = float(rng.lognormal(-2.6, 0.9)) * (0.3 if operator == "Gather" else 1.0)
    return LayerFacts(
        name=f"layer{index}",
        operator=operator,
        parameters=math.prod(shape),
        quantizable=True,
        weight=f"weight{index}",
        shape=list(shape),
        rows=TOKENS,
        formats={name: _format(shape, FORMATS[name], sensitivity, rng) for name in formats_of(operator)},
    )


def _format(
    shape: tuple[int, int], item: Format, sensitivity: float, rng: np.random.Generator
) -> FormatFacts:
    """Sizes as the worker stores them; blocks have scales of one byte and zero points."""
    weights, outputs = math.prod(shape), shape[1]
    size = weights * item.bits // 8
    if item.block is not None:
        scales = weights // item.block
        size += scales + 4 * outputs + (0 if item.symmetric else scales * item.bits // 8)
    elif item.bits == 8:
        size += 4 * outputs
    error = _ERRORS.get((item.bits, item.block), 0.0) * (1.0 if not item.symmetric or item.bits > 4 else 1.2)
    error += 2e-3 if item.activation_bits == 8 else 0.0
    return FormatFacts(
        size_bytes=size,
        memory_bytes=4 * weights if item.stored_only else int(1.1 * size) if item.bits < 32 else size,
        error=error,
        loss=error * sensitivity * float(rng.uniform(0.85, 1.15)),
    )


def _fp32_ms(shape: list[int], rows: float = TOKENS) -> float:
    return max(2e-6 * math.prod(shape) * rows / 60.0, 1e3 * 4 * math.prod(shape) / 1e10)


def _costs(layers: list[LayerFacts]) -> list[OperatorCost]:
    """Long and short phases of every distinct matrix in every format."""
    shapes = dict.fromkeys(tuple(layer.shape) for layer in layers if layer.operator == "MatMul")
    return [
        OperatorCost(
            operator="MatMul",
            shape=list(shape),
            format=name,
            rows=int(rows),
            provider="CPUExecutionProvider",
            latency_ms=_fp32_ms(list(shape), rows) * _relative(FORMATS[name], rows),
        )
        for shape in shapes
        for name in formats_of("MatMul")
        for rows in (TOKENS, 1.0)
    ]


def _relative(item: Format, rows: float) -> float:
    if item.stored_only or item.bits == 32:
        return 1.0
    if item.block is not None:
        return (_LONG if rows > 1 else _SHORT)[item.bits]
    return 1.1 if item.activation_bits == 16 else 0.42
