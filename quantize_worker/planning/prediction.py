"""What a recipe costs and keeps: bytes, milliseconds, milliwatt-hours and quality, before it is built.

Size and memory follow from what each layer's format stores. Latency, energy and quality are
estimates; builds that were measured correct them (:meth:`Predictor.corrected`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import NamedTuple

import numpy as np

from quantize_worker.contract import (
    PRECISIONS,
    LayerFacts,
    MeasuredBuild,
    ModelFacts,
    Precision,
    Recipe,
    Target,
)
from quantize_worker.formats import FORMATS
from quantize_worker.planning.energy import Energies
from quantize_worker.planning.latency import CPU_PROVIDER, Latencies
from quantize_worker.planning.losses import INDEX, KINDS, Disturbance, Losses
from quantize_worker.planning.storage import stored_bytes

MINIMUM_WORKING_BYTES = 4 << 20  # activations and the session itself
FP16_ACTIVATION_LOSS = 1e-5  # of a whole model in FP16, beside its weights' rounding


class FormatCost(NamedTuple):
    """One layer in one format, on one class's devices."""

    size_bytes: int
    memory_bytes: int
    latency_ms: float
    energy_mwh: float
    loss: float  # if only this layer takes it
    kind: int  # precision


@dataclass(frozen=True)
class Prediction:
    """What a recipe is expected to need and to keep; energy and latency are estimates."""

    size_bytes: int
    memory_bytes: int
    latency_ms: float
    energy_mwh: float
    loss: float  # 1 - cosine
    quality: float  # what the class's floor is compared with

    @property
    def cosine(self) -> float:
        return 1.0 - self.loss


class Predictor:
    """Prices recipes of one model for one class.

    Args:
        facts: what inspecting the model found, with formats per layer.
        target: the class.
        losses: the laws by which single losses add up; fitted by the inspection if not given.
        steepness: quality lost per unit of loss; 1 where quality is the cosine.
        pace: measured over predicted latency.
        known: builds that were measured, by recipe.
    """

    def __init__(
        self,
        facts: ModelFacts,
        target: Target,
        *,
        losses: Losses | None = None,
        steepness: float | None = None,
        pace: float = 1.0,
        known: Sequence[MeasuredBuild] = (),
    ) -> None:
        self.facts, self.target, self.pace, self.known = facts, target, pace, tuple(known)
        self.losses = losses or Losses.fitted(facts.interaction)
        self.steepness = _steepness(facts) if steepness is None else steepness
        self._latencies, self._energies = Latencies(facts, target), Energies(facts, target)
        self.layers = {layer.name: layer for layer in facts.layers}
        self._costs: dict[tuple[str, str], FormatCost] = {}
        self._alike: dict[tuple[object, ...], tuple[float, float]] = {}

    def corrected(self, measured: Sequence[MeasuredBuild]) -> Predictor:
        """The same, agreeing better with builds that were measured.

        A build below the class's floor is never predicted to hold it again.
        """
        usable = [build for build in measured if self.can_price(build.recipe)]
        losses = self.losses.corrected((self.disturbance(one.recipe), 1.0 - one.cosine) for one in usable)
        timed = [(build.recipe, build.latency_ms) for build in usable if build.latency_ms]
        ratios = [
            ms / self.predict(recipe).latency_ms for recipe, ms in timed if self.predict(recipe).latency_ms
        ]
        pace = self.pace * (median(ratios) if ratios else 1.0)
        steepness = self.steepness * _too_gentle(self, losses, usable)
        return Predictor(self.facts, self.target, losses=losses, steepness=steepness, pace=pace, known=usable)

    def cost(self, layer: str, name: str) -> FormatCost:
        """One layer in one of its formats."""
        key = (layer, name)
        if key not in self._costs:
            self._costs[key] = self._price(self.layers[layer], name)
        return self._costs[key]

    def quality(self, loss: float) -> float:
        """What is left of FP32's quality."""
        return max(0.0, 1.0 - self.steepness * loss)

    def loss_allowed(self, quality: float) -> float:
        """The loss at which a quality is just kept."""
        return (1.0 - quality) / self.steepness

    def can_price(self, recipe: Recipe) -> bool:
        """Whether the recipe is made of this model's layers and formats."""
        whole = not recipe.layers and recipe.precision not in ("fp32", "fp16")
        parts = recipe.layers.items()
        return not whole and all(
            name in self.layers and form in self.layers[name].formats for name, form in parts
        )

    def predict(self, recipe: Recipe) -> Prediction:
        """Price a recipe of formats per layer, or a whole model in FP32 or FP16."""
        prediction = self._whole_fp16() if is_whole_fp16(recipe) else self._mixed(recipe)
        return self._as_measured(recipe, prediction)

    def disturbance(self, recipe: Recipe) -> Disturbance:
        """Single losses of the recipe, summed per precision."""
        sums = np.zeros(KINDS)
        names = _whole_fp16_formats(self.facts) if is_whole_fp16(recipe) else recipe.layers
        for layer, name in names.items():
            cost = self.cost(layer, name)
            sums[cost.kind] += cost.loss
        if is_whole_fp16(recipe):
            sums[INDEX["fp16"]] += FP16_ACTIVATION_LOSS
        return Disturbance(sums, *self.products_loss(recipe.products))

    def products_loss(self, name: str) -> tuple[float, int]:
        """Loss and precision of products of two activations in a static format, or of none."""
        return (self.facts.products.loss.get(name, 0.0), INDEX[FORMATS[name].precision]) if name else (0.0, 0)

    def products_cost(self, name: str) -> FormatCost:
        """What products of two activations take more or less in a static format, or in none."""
        loss, kind = self.products_loss(name)
        latency = self._latencies.products_ms(name) * self.pace if name else 0.0
        energy = self._energies.products_mwh(name, latency) if name else 0.0
        return FormatCost(0, 0, latency, energy, loss, kind)

    @cached_property
    def rest(self) -> FormatCost:
        """What no layer's format changes."""
        latency = self._latencies.rest_ms * self.pace
        fp32 = ((layer, "fp32", self.cost(layer.name, "fp32")) for layer in self.facts.layers)
        measured = self.facts.memory_bytes - shared_bytes(fp32)[1]  # of FP32, without its weights
        return FormatCost(
            size_bytes=self.facts.other_bytes,
            memory_bytes=max(self.facts.other_bytes + MINIMUM_WORKING_BYTES, measured),
            latency_ms=latency,
            energy_mwh=self._energies.rest_mwh(latency),
            loss=0.0,
            kind=0,
        )

    def _price(self, layer: LayerFacts, name: str) -> FormatCost:
        facts = layer.formats.get(name)
        latency, energy = self._running(layer, name)
        return FormatCost(
            size_bytes=stored_bytes(layer, name),
            memory_bytes=facts.memory_bytes if facts is not None else 4 * layer.parameters,
            latency_ms=latency,
            energy_mwh=energy,
            loss=0.0 if facts is None or name == "fp32" else max(0.0, facts.loss),
            kind=INDEX[FORMATS[name].precision],
        )

    def _running(self, layer: LayerFacts, name: str) -> tuple[float, float]:
        """Milliseconds and milliwatt-hours; equal for layers of one shape, of which there are many."""
        key = (name, layer.operator, tuple(layer.shape), layer.parameters, layer.rows)
        if key not in self._alike:
            latency = self._latencies.layer_ms(layer, name) * self.pace
            self._alike[key] = latency, self._energies.layer_mwh(layer, name, latency)
        return self._alike[key]

    def _mixed(self, recipe: Recipe) -> Prediction:
        names = [(layer, recipe.layers.get(layer.name, "fp32")) for layer in self.facts.layers]
        costs = [self.cost(layer.name, name) for layer, name in names]
        costs += [self.rest, self.products_cost(recipe.products)]
        size, memory = shared_bytes((layer, name, self.cost(layer.name, name)) for layer, name in names)
        loss = self.losses.whole(self.disturbance(recipe))
        return Prediction(
            size_bytes=self.rest.size_bytes + size,
            memory_bytes=self.rest.memory_bytes + memory,
            latency_ms=sum(cost.latency_ms for cost in costs),
            energy_mwh=sum(cost.energy_mwh for cost in costs),
            loss=loss,
            quality=self.quality(loss),
        )

    def _whole_fp16(self) -> Prediction:
        """Half the bytes; the CPU provider has few FP16 kernels and keeps weights in FP32."""
        fp32 = self._mixed(self.recipe({}))
        latency = self._latencies.whole_fp16_ms(fp32.latency_ms)
        saved = 2 * self.facts.parameters
        loss = self.losses.whole(self.disturbance(self.recipe({}, whole_fp16=True)))
        on_cpu = self.target.execution_provider == CPU_PROVIDER
        return Prediction(
            size_bytes=max(0, fp32.size_bytes - saved),
            memory_bytes=fp32.memory_bytes - (0 if on_cpu else saved),
            latency_ms=latency,
            energy_mwh=self._energies.whole_fp16_mwh(self.facts, latency),
            loss=loss,
            quality=self.quality(loss),
        )

    def recipe(self, layers: dict[str, str], *, products: str = "", whole_fp16: bool = False) -> Recipe:
        """The class's recipe with these formats; layers in FP32 are left out."""
        changed = {name: form for name, form in layers.items() if form != "fp32"}
        return Recipe(
            precision="fp16" if whole_fp16 else main_precision(changed, self.facts, self.target.precisions),
            accelerator=self.target.accelerator,
            execution_provider=self.target.execution_provider,
            emulated=self.target.emulated,
            layers=changed,
            products=products,
        )

    def _as_measured(self, recipe: Recipe, prediction: Prediction) -> Prediction:
        for build in self.known:
            if same_formats(build.recipe, recipe):
                latency = build.latency_ms or prediction.latency_ms
                return replace(prediction, loss=1.0 - build.cosine, quality=build.quality, latency_ms=latency)
        return prediction


def shared_bytes(parts: Iterable[tuple[LayerFacts, str, FormatCost]]) -> tuple[int, int]:
    """Bytes stored and resident; what layers share is counted once.

    Layers that share a weight share what is stored for it if they take the same format and their
    operators read it in the same order; FP32 and stored-only formats are one initializer for all.
    """
    size: dict[tuple[str, str], int] = {}
    memory: dict[tuple[str, str], int] = {}
    for layer, name, cost in parts:
        form = name if name == "fp32" or FORMATS[name].stored_only else f"{layer.operator} {name}"
        key = (layer.weight or layer.name, form)
        size[key] = max(size.get(key, 0), cost.size_bytes)
        memory[key] = max(memory.get(key, 0), cost.memory_bytes)
    return sum(size.values()), sum(memory.values())


def main_precision(layers: dict[str, str], facts: ModelFacts, accepted: Sequence[Precision]) -> Precision:
    """The precision that most weights are in, of those that the class names if it has any of them.

    Tables that are restored before use are stored in eight bits by classes that only name another kind.
    """
    shares = weight_shares(layers, facts)
    named = [name for name in shares if name in accepted]
    return next(iter(named or shares), "fp32")


def weight_shares(layers: dict[str, str], facts: ModelFacts) -> dict[Precision, float]:
    """Share of the layers' weights per precision, the largest first."""
    shares: dict[Precision, float] = {}
    for name, share in format_shares(layers, facts).items():
        precision = FORMATS[name].precision
        shares[precision] = shares.get(precision, 0.0) + share
    order = sorted(shares, key=lambda name: (-shares[name], PRECISIONS.index(name)))
    return {name: shares[name] for name in order}


def format_shares(layers: dict[str, str], facts: ModelFacts) -> dict[str, float]:
    """Share of the layers' weights per format; a shared weight counts once, as its first layer."""
    counts: dict[str, int] = {}
    for layer in {layer.weight or layer.name: layer for layer in reversed(facts.layers)}.values():
        name = layers.get(layer.name, "fp32")
        counts[name] = counts.get(name, 0) + layer.parameters
    total = sum(counts.values())
    return {name: counts[name] / total for name in sorted(counts) if total}


def is_whole_fp16(recipe: Recipe) -> bool:
    return recipe.precision == "fp16" and not recipe.layers


def same_formats(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes make the same model, learned rounding apart."""
    whole = is_whole_fp16(one) == is_whole_fp16(other)
    return whole and one.layers == other.layers and one.products == other.products


def _whole_fp16_formats(facts: ModelFacts) -> dict[str, str]:
    return {layer.name: "fp16-stored" for layer in facts.layers if "fp16-stored" in layer.formats}


def _steepness(facts: ModelFacts) -> float:
    """Quality lost per unit of loss. Unknown for labels: as if quality were the cosine."""
    labelled = facts.has_labels and bool(facts.accuracy)
    return facts.accuracy_loss if labelled and facts.accuracy_loss > 0 else 1.0


def _too_gentle(predictor: Predictor, losses: Losses, measured: Sequence[MeasuredBuild]) -> float:
    """How much more quality builds below the floor lost than corrected laws say; at least 1."""
    floor, worst = predictor.target.quality_floor, 1.0
    for build in measured:
        predicted = predictor.steepness * losses.whole(predictor.disturbance(build.recipe))
        if not build.quality >= floor and predicted > 0 and math.isfinite(build.quality):
            worst = max(worst, (1.0 - build.quality) / predicted)
    return worst
