"""What each format of each layer costs the model: its error, and the loss of the model's own outputs.

One run per layer, with its coarsest rounding in place of its weight, gives the loss per unit of error; errors
of all other formats are then losses. (Output energies predict as well as probing every format, at a
fraction of the runs.) Rounding that spreads its errors fits the samples that it was made from: how
much larger its error is on others was measured on samples left out, and counts in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quantize_worker.contract import FormatFacts, LayerFacts
from quantize_worker.formats import FORMATS
from quantize_worker.steps import storage
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.layer_errors import (
    MatrixErrors,
    OtherErrors,
    half_restored,
    stored_restored,
)
from quantize_worker.steps.layers import Layer
from quantize_worker.steps.probing import Probe
from quantize_worker.steps.rewrite.smoothing import Smoothing
from quantize_worker.steps.statistics import Activation

Floats = NDArray[np.float32]
LEVELS = {8: 256, 16: 65536}
PROBED = ("int4-b32", "int4-b16", "int8-b16", "int8-stored", "int8-dynamic", "fp16-stored")
SMALLEST_ERROR = 1e-12
UNKNOWN_SENSITIVITY = 1.0  # loss per unit of error where nothing could be probed


@dataclass
class Weighed:
    """A layer while it is weighed.

    Args:
        layer: the layer.
        seen: error per format on the samples that rounding was fitted to.
        growth: how much larger errors of spread rounding are on other samples.
        sensitivity: loss per unit of error; None until it is probed or guessed.
        probed: whether it was probed itself.
        rows: that meet the weight in a sample.
    """

    layer: Layer
    seen: dict[str, float] = field(default_factory=dict)
    growth: float = 1.0
    sensitivity: float | None = None
    probed: bool = False
    rows: float = 0.0

    def loss(self, name: str, *, unseen: bool = True) -> float:
        """Of the model if only this layer takes the format, on samples unseen or seen by rounding."""
        return (self.sensitivity or 0.0) * self.error(name, unseen=unseen)

    def error(self, name: str, *, unseen: bool = True) -> float:
        """Of the layer's output."""
        spread = FORMATS[name].data_aware and unseen
        return self.seen.get(name, 0.0) * (self.growth if spread else 1.0)

    def facts(self) -> LayerFacts:
        """As the contract has it."""
        layer = self.layer
        formats = {
            name: FormatFacts(
                size_bytes=storage.size_bytes(layer, name),
                memory_bytes=storage.memory_bytes(layer, name),
                error=self.error(name),
                loss=self.loss(name),
            )
            for name in ("fp32", *self.seen)
        }
        return LayerFacts(
            name=layer.name,
            operator=layer.operator,
            parameters=layer.parameters,
            quantizable=len(formats) > 1,
            weight=layer.weight,
            shape=list(layer.shape),
            rows=self.rows,
            formats=formats,
            reason=_reason(layer),
        )


def channel_errors(
    layer: Layer, errors: MatrixErrors, smoothings: Mapping[str, Smoothing | None]
) -> dict[str, float]:
    """Errors of a matrix or table in formats without blocks.

    Args:
        layer: a matrix or a table.
        errors: of the layer.
        smoothings: per format with rounded activations.
    """
    found = {}
    for name in layer.formats():
        form = FORMATS[name]
        if name == "fp16-stored":
            found[name] = errors.of(half_restored(errors.weight))
        elif form.activation_bits < 32:
            levels, dynamic = LEVELS[form.activation_bits], name == "int8-dynamic"
            found[name] = errors.of_channels(smoothings.get(name), levels, dynamic=dynamic)
        elif form.stored_only:
            found[name] = errors.of(stored_restored(errors.weight, (0,)))
    return found


def other_errors(layer: Layer, graph: Graph, activation: Activation | None) -> dict[str, float]:
    """Errors of a layer that is neither a matrix nor a table."""
    errors = OtherErrors(layer, graph, activation)
    eighth = errors.of(stored_restored)
    found = {}
    for name in layer.formats():
        form = FORMATS[name]
        if name == "fp16-stored":
            found[name] = errors.of(lambda value, axes: half_restored(value))
        elif form.activation_bits < 32:
            noise = errors.of_activation(LEVELS[form.activation_bits], dynamic=name == "int8-dynamic")
            found[name] = eighth + noise
        elif name != "fp32":
            found[name] = eighth
    return found


def probe_format(layer: Layer, seen: Mapping[str, float]) -> str:
    """The format that a layer is probed with: a coarse one, so that the loss stands out."""
    return next((name for name in PROBED if name in seen), "")


def guess(weighed: Sequence[Weighed]) -> int:
    """Give layers that were not probed the sensitivity of probed ones like them, by position.

    Returns:
        How many were guessed.
    """
    known = [(index, one) for index, one in enumerate(weighed) if one.sensitivity is not None]
    guessed = 0
    for index, one in enumerate(weighed):
        if one.sensitivity is not None:
            continue
        alike = [(at, other) for at, other in known if _alike(one.layer, other.layer)] or known
        positions = [at for at, _ in alike]
        values = [np.log(max(other.sensitivity or 0.0, 1e-12)) for _, other in alike]
        one.sensitivity = float(np.exp(np.interp(index, positions, values))) if alike else UNKNOWN_SENSITIVITY
        guessed += 1
    return guessed


def probe(one: Weighed, probe: Probe, changed: Mapping[str, Floats], name: str) -> None:
    """Measure a layer's sensitivity.

    Args:
        one: the layer, with its errors.
        probe: open for the layer's weights.
        changed: its weights as rounded to the format.
        name: the format.
    """
    error = one.seen[name]
    if error > SMALLEST_ERROR:
        one.sensitivity = max(0.0, probe.loss(changed)) / error
        one.probed = True


def _alike(one: Layer, other: Layer) -> bool:
    return one.operator == other.operator and one.shape == other.shape


def _reason(layer: Layer) -> str:
    """Why a layer can take fewer formats than others of its operator."""
    if layer.plain:
        return ""
    return f"{layer.operator} uses the weight in a way that only stored formats keep."
