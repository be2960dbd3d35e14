"""Bytes that a layer takes in each format, in the artifact and in memory."""

from __future__ import annotations

import math

from quantize_worker.formats import FORMATS, Format
from quantize_worker.steps import candidates
from quantize_worker.steps.layers import Layer, attribute

ACTIVATION_PARAMETERS = {8: 5, 16: 6}  # scale and zero point of a static activation
KERNEL_BLOCK_BYTES = 8  # a block's scale in FP32 and the sum of its values


def size_bytes(layer: Layer, name: str) -> int:
    """Of all initializers that a build writes for the layer (:mod:`quantize_worker.steps.assemble`)."""
    form = FORMATS[name]
    if name == "fp32":
        return 4 * layer.parameters
    if name == "fp16-stored":
        return 2 * layer.parameters
    if form.block is not None:
        return candidates.size_bytes(
            layer.outputs, layer.columns, bits=form.bits, block=form.block, symmetric=form.symmetric
        )
    if form.stored_only or not layer.plain:
        return layer.parameters + 4 * _channels(layer)
    if len(layer.weights) > 1:
        return layer.parameters + (4 if attribute(layer.node, "layout", 0) else 5) * _channels(layer)
    if name == "int8-dynamic":
        return layer.parameters + 4 * layer.outputs
    return layer.parameters + 5 * layer.outputs + _static_extra(layer, form)


def memory_bytes(layer: Layer, name: str) -> int:
    """Resident while the model is loaded, in the form that the CPU's kernels want."""
    form = FORMATS[name]
    if name == "fp32" or form.stored_only:
        return 4 * layer.parameters  # restored when the model is loaded
    if form.block is not None:
        blocks = layer.outputs * math.ceil(layer.columns / form.block)
        values = blocks * form.block * form.bits // 8
        return values + blocks * (4 if layer.is_table else KERNEL_BLOCK_BYTES)
    return size_bytes(layer, name)


def _channels(layer: Layer) -> int:
    shapes = layer.weights.values()
    return sum(math.prod(shape[axis] for axis in layer.channel_axes) for shape in shapes)


def _static_extra(layer: Layer, form: Format) -> int:
    """The activation's parameters, and a rounded bias's scales and zero points."""
    has_bias = form.activation_bits == 8 and len(layer.node.input) > 2 and bool(layer.node.input[2])
    return ACTIVATION_PARAMETERS[form.activation_bits] + (8 * layer.outputs if has_bias else 0)
