"""In how many bits a build multiplies: shares of its multiply-accumulates. Pure."""

from __future__ import annotations

from quantize_worker.contract import ModelFacts, Recipe
from quantize_worker.formats import FORMATS

MULTIPLIES = ("MatMul", "Gemm", "Conv")  # tables are looked up; recurrent cells are not counted


def shares(facts: ModelFacts, recipe: Recipe) -> dict[int, float]:
    """Share of a sample's multiply-accumulates per width of the activation, e.g. ``{8: 0.9, 32: 0.1}``.

    Weights have 8 bits wherever activations have 8 or 16; so has the second input of a product of two
    activations. Blocks of 4 or 8 bits multiply in floating point as far as a format says (32).
    """
    counted: dict[int, float] = {}
    for layer in facts.layers:
        if layer.operator in MULTIPLIES:
            bits = FORMATS[recipe.layers.get(layer.name, "fp32")].activation_bits
            counted[bits] = counted.get(bits, 0.0) + layer.rows * layer.parameters
    if facts.products.multiplies:
        bits = FORMATS[recipe.products or "fp32"].activation_bits
        counted[bits] = counted.get(bits, 0.0) + facts.products.multiplies
    total = sum(counted.values())
    return {bits: counted[bits] / total for bits in sorted(counted)} if total else {}
