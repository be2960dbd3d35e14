"""Everything that planning and building need of a model's layers: statistics, candidates, sensitivities, costs.

For a small model all layers at once; for a large one some layers in each of several jobs, without what needs
whole models run many times (how losses add up, products of activations, costs).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quantize_worker.contract import Interaction, LayerFacts, OperatorCost, ProductFacts, WorkerSpeed
from quantize_worker.formats import FORMATS
from quantize_worker.steps import (
    calibrating,
    candidates,
    costs,
    fitting,
    interaction,
    sensitivity,
    statistics,
)
from quantize_worker.steps.assemble import STATISTICS
from quantize_worker.steps.candidates import Blocks
from quantize_worker.steps.fitting import Fit
from quantize_worker.steps.gptq import Metric
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.interaction import Laboratory
from quantize_worker.steps.layer_errors import MatrixErrors, half_restored, stored_restored
from quantize_worker.steps.layers import Layer, attribute, layers_of, products_of
from quantize_worker.steps.probing import Probe
from quantize_worker.steps.relevance import relevant_rows
from quantize_worker.steps.rewrite.smoothing import Smoothing, choose
from quantize_worker.steps.samples import Sample, SampleSet
from quantize_worker.steps.sensitivity import LEVELS, Weighed
from quantize_worker.steps.shortening import Shortener
from quantize_worker.steps.statistics import Activation

Array = NDArray[Any]
Floats = NDArray[np.float32]
MAXIMUM_SAMPLES = 96
LARGE_FORMATS = ("int4-b32", "int4-b128")  # of four bits, that a large model's layers can take
LARGE_PASSES = 0
PASS_OPERATIONS = 3e12  # for the calibration pass of a large model
PROBE_OPERATIONS = {False: 1e12, True: 1e12}  # for probing; of a large model
LARGE_WEIGHT_BYTES = 32 << 20  # a restored weight of more lies in a file
PIECE = 1 << 21  # weights restored at once
SCRATCH_FILE = ".probed.npy"
PROBE_SAMPLES = 64  # at most
MINIMUM_SAMPLES = {False: 8, True: 2}  # fewer say too little: then fewer layers are probed
# How builds smooth what meets layers of a format.
_SMOOTHED: dict[str, dict[str, Any]] = {
    "int8-dynamic": {"levels": LEVELS[8], "padded": True},
    "int8-qdq": {"levels": LEVELS[8]},
    "int8-qdq16": {"levels": LEVELS[16]},
}


@dataclass
class LayerAnalysis:
    """What was found.

    ``candidates`` maps files, relative to the analysis folder, to (layer, format). ``notes`` says in words
    what was left out to bound the work.
    """

    layers: list[LayerFacts]
    products: ProductFacts = field(default_factory=ProductFacts)
    interaction: dict[str, Interaction] = field(default_factory=dict)
    accuracy_loss: float = 0.0
    costs: list[OperatorCost] = field(default_factory=list)
    speed: WorkerSpeed = field(default_factory=WorkerSpeed)
    candidates: dict[str, tuple[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def analyse_layers(
    model: Path,
    graph: Graph,
    samples: SampleSet,
    folder: Path,
    *,
    layers: Collection[str] | None = None,
    memory_bytes: int,
    lean: bool = False,
    on_share: Callable[[float], None] = lambda share: None,
) -> LayerAnalysis:
    """Analyse a model's layers.

    Args:
        model: the prepared model, with its external data beside it.
        graph: its graph.
        samples: for calibration.
        folder: the analysis; gets ``statistics/`` and ``candidates/``. Second moments, which are large, are
            taken away in the end.
        layers: names of those to analyse, a part of the whole; None: all, and what concerns the whole model.
        memory_bytes: that this may take beside the model itself.
        lean: open the model without copying its weights, and bound the work: for large models.
        on_share: called with the share done.

    Raises:
        ModelRefused: wrong_sample_shape or non_finite_outputs, of the samples.
        MemoryError: if it takes more than this process may use.
    """
    work = _Work(model, graph, samples, folder, layers, lean=lean)
    try:
        with calibrating.running(model):
            work.observe(memory_bytes, lambda share: on_share(0.3 * share))
        work.round(lambda share: on_share(0.3 + 0.35 * share))
        work.probe(lambda share: on_share(0.65 + 0.15 * share))
        if layers is None and not lean:
            work.experiment(lambda share: on_share(0.8 + 0.12 * share))
            work.time()
        on_share(1.0)
        return work.result
    finally:
        shutil.rmtree(folder / STATISTICS / statistics.GRAMS, ignore_errors=True)


class _Work:
    """The stages, in order."""

    def __init__(
        self,
        model: Path,
        graph: Graph,
        samples: SampleSet,
        folder: Path,
        names: Collection[str] | None,
        *,
        lean: bool,
    ) -> None:
        self._model, self._graph, self._folder, self._lean = model, graph, folder, lean
        chosen = enumerate(layers_of(graph))
        self._layers = [(index, one) for index, one in chosen if names is None or one.name in names]
        self._whole = names is None
        self._products: list[onnx.NodeProto] = products_of(graph)
        self._set = samples.limited(_sample_count(graph, samples, lean=lean))
        self._weighed = [Weighed(layer) for _, layer in self._layers]
        self._activations: dict[str, Activation] = {}
        self._probe_sets: tuple[list[Sample], Array | None] | None = None
        self._probe: Probe | None = None
        self.result = LayerAnalysis(layers=[])

    def observe(self, memory_bytes: int, on_share: Callable[[float], None]) -> None:
        """Collect statistics."""
        self._activations = statistics.collect(
            self._model,
            self._graph,
            [layer for _, layer in self._layers],
            self._products if self._whole else [],
            self._set.samples(),
            self._folder / STATISTICS,
            memory_bytes=memory_bytes,
            file=statistics.FILE if self._whole else f"{self._layers[0][0]:04d}.npz",
            lean=self._lean,
            on_share=on_share,
        )

    def round(self, on_share: Callable[[float], None]) -> None:
        """Make candidates and find all errors."""
        metrics: dict[tuple[str, float | None], list[Metric] | None] = {}
        smoothings = self._smoothings()
        least = fitting.MADE_UP if self._set.synthetic else candidates.DAMPING
        total = max(1, sum(layer.parameters for _, layer in self._layers))
        done = 0
        for (index, layer), one in zip(self._layers, self._weighed, strict=True):
            activation = self._activations.get(layer.activation)
            one.rows = self._rows(layer, activation)
            if layer.is_matrix or layer.is_table:
                known = activation if layer.is_matrix else None
                fit = fitting.fit(layer, self._graph, known, least=least)
                one.growth, key = fit.growth, (layer.activation, fit.damping)
                if key not in metrics:  # neighbours share them
                    metrics = {key: _metrics(layer, known, fit)}
                errors = MatrixErrors(layer, self._graph, known, "seen")
                one.seen = sensitivity.channel_errors(layer, errors, smoothings.get(layer.activation, {}))
                for name, blocks in self._blocks(index, layer, known, metrics[key]):
                    one.seen[name] = errors.of_blocks(blocks)
            else:
                one.seen = sensitivity.other_errors(layer, self._graph, activation)
            done += layer.parameters
            on_share(done / total)

    def probe(self, on_share: Callable[[float], None]) -> None:
        """Find out what errors cost the model's outputs."""
        samples, _ = self._sets()
        chosen = self._probed(len(samples))
        weights = {name: self._value(name) for one in chosen for name in one.layer.weights}
        batched = not self._set.stacked and not self._lean
        if chosen:
            self._probe = Probe(self._model, weights, samples, lean=self._lean, batched=batched)
            calibrating.check_finite(self._probe.own, synthetic=self._set.synthetic)
        tied = {name: [one for one in self._weighed if name in one.layer.weights] for name in weights}
        for index, one in enumerate(chosen):
            assert self._probe is not None
            name = sensitivity.probe_format(one.layer, one.seen)
            sharing = len(tied[one.layer.weight])
            sensitivity.probe(one, self._probe, self._changed(one.layer, name), name)
            one.sensitivity = (one.sensitivity or 0.0) / sharing
            on_share((index + 1) / len(chosen))
        if guessed := sensitivity.guess([one for one in self._weighed if one.seen]):
            self.result.notes.append(
                f"{guessed} of {len(self._weighed)} layers got the sensitivity of others like them."
            )
        self.result.layers = [one.facts() for one in self._weighed]

    def experiment(self, on_share: Callable[[float], None]) -> None:
        """Find out how losses add up, and what rounding products of activations costs."""
        samples, labels = self._sets()
        if self._probe is None:
            return
        own = self._probe.own
        laboratory = Laboratory(
            self._model, self._folder, samples, own, labels=labels, batched=self._probe.batched
        )
        measured = interaction.trials(laboratory, self._weighed, on_share)
        self.result.interaction = interaction.fitted(measured)
        self.result.accuracy_loss = interaction.accuracy_loss(
            measured, interaction.source_correct(own, labels)
        )
        if self._products:
            losses = {form: laboratory.products_loss(form, self._weighed) for form in interaction.STATIC}
            self.result.products = ProductFacts(
                names=[node.output[0] for node in self._products],
                multiplies=sum(map(self._multiplies, self._products)),
                loss={form: loss for form, loss in losses.items() if loss is not None},
            )
        self._tidy()

    def time(self) -> None:
        """Time operators, and this machine."""
        shapes = {name: one.shape for name, one in self._activations.items()}
        self.result.costs = costs.operator_costs(self._weighed, shapes, self._folder)
        self.result.speed = costs.worker_speed()

    def _blocks(
        self, index: int, layer: Layer, activation: Activation | None, metrics: Sequence[Metric] | None
    ) -> Iterator[tuple[str, Blocks]]:
        """All formats in blocks; those that are worth keeping are written."""
        names = [name for name in layer.formats() if FORMATS[name].block is not None]
        if self._lean:
            names = [name for name in names if FORMATS[name].bits > 4 or name in LARGE_FORMATS]
        weight = layer.matrix(self._graph)
        importance = candidates.importance_of(activation, weight)
        passes = LARGE_PASSES if self._lean else candidates.PASSES
        for group in _groups(names, apart=self._lean):
            forms = [FORMATS[name] for name in group]
            made = candidates.make_all(weight, forms, metrics, importance, passes=passes)
            for form, blocks in zip(forms, made, strict=True):
                if form.data_aware:
                    path = candidates.path_of(self._folder, index, form.name)
                    candidates.write(path, blocks)
                    relative = path.relative_to(self._folder).as_posix()
                    self.result.candidates[relative] = (layer.name, form.name)
                yield form.name, blocks

    def _smoothings(self) -> dict[str, dict[str, Smoothing | None]]:
        """How builds will smooth each activation, per format with rounded activations."""
        readers: dict[str, list[Layer]] = {}
        for _, layer in self._layers:
            if layer.is_matrix:
                readers.setdefault(layer.activation, []).append(layer)
        found: dict[str, dict[str, Smoothing | None]] = {}
        for name, layers in readers.items():
            activation = self._activations.get(name)
            if activation is not None:
                matrices = [layer.matrix(self._graph) for layer in layers]
                found[name] = {form: choose(matrices, activation, **how) for form, how in _SMOOTHED.items()}
        return found

    def _probed(self, samples: int) -> list[Weighed]:
        """Layers to probe: all, or as many as the work allows, spread evenly."""
        able = [one for one in self._weighed if sensitivity.probe_format(one.layer, one.seen)]
        inside = {tensor.name for tensor in self._graph.model.graph.initializer}
        able = [one for one in able if set(one.layer.weights) <= inside]
        allowed = max(1, int(PROBE_OPERATIONS[self._lean] / (self._operations() * max(1, samples))) - 1)
        if len(able) <= allowed:
            return able
        return [able[i] for i in np.linspace(0, len(able) - 1, allowed).round().astype(int)]

    def _sets(self) -> tuple[list[Sample], Array | None]:
        """Samples to probe with, neighbours of one shape where possible, and their labels."""
        if self._probe_sets is None:
            able = sum(1 for one in self._weighed if one.seen)
            allowed = int(PROBE_OPERATIONS[self._lean] / (self._operations() * (able + 1)))
            part = self._set.limited(max(MINIMUM_SAMPLES[self._lean], min(PROBE_SAMPLES, allowed)))
            samples = part.samples()
            if part.labels is None and not self._lean:
                layers = [layer for _, layer in self._layers]
                shortener = Shortener(self._model, self._graph.model.graph, lean=self._lean)
                masks = relevant_rows(self._model, layers, samples)
                samples = shortener.shortened(samples, masks)[0]
                samples.sort(key=lambda sample: [values.size for values in sample.values()])
            self._probe_sets = samples, part.labels
        return self._probe_sets

    def _operations(self) -> float:
        """Of a sample's run: of all matrices, as far as their rows are known."""
        rows = [one.rows for one in self._weighed if one.rows]
        usual = float(np.median(rows)) if rows else 1.0
        layers = layers_of(self._graph) if not self._whole else [layer for _, layer in self._layers]
        multiplied = sum(layer.parameters for layer in layers if not layer.is_table)
        known = sum(one.layer.parameters * one.rows for one in self._weighed)
        return max(1.0, 2.0 * (known if self._whole else multiplied * usual))

    def _changed(self, layer: Layer, name: str) -> dict[str, Floats]:
        """A layer's weights as a format keeps them."""
        form = FORMATS[name]
        if form.block is None:
            halved = name == "fp16-stored"
            values = {weight: self._value(weight) for weight in layer.weights}
            return {
                weight: half_restored(value) if halved else stored_restored(value, layer.channel_axes)
                for weight, value in values.items()
            }
        index = next(index for index, one in self._layers if one is layer)
        path = candidates.path_of(self._folder, index, name)
        blocks = (
            candidates.read(path) if path.exists() else candidates.make(layer.matrix(self._graph), form, None)
        )
        return {layer.weight: self._restored(layer, blocks)}

    def _restored(self, layer: Layer, blocks: Blocks) -> Floats:
        """A matrix in the order in which the layer's weight is stored; a large one in a file."""
        shape = layer.shape
        if 4 * layer.parameters < LARGE_WEIGHT_BYTES:
            restored: Floats = np.empty(shape, np.float32)
        else:
            restored = np.lib.format.open_memmap(
                self._folder / SCRATCH_FILE, mode="w+", dtype=np.float32, shape=shape
            )
            (self._folder / SCRATCH_FILE).unlink()
        upright = restored.T if layer.is_matrix and not layer.transposed else restored
        step = max(1, PIECE // layer.columns)
        for start in range(0, len(upright), step):
            part = slice(start, start + step)
            upright[part] = blocks.rows(part).dequantized()
        return restored

    def _rows(self, layer: Layer, activation: Activation | None) -> float:
        """Mean rows that meet the weight in a sample."""
        if layer.is_table:
            first = self._set.sample(0).get(layer.activation)
            return float(first.size) if first is not None else 0.0
        if activation is None:
            return 0.0
        if layer.operator == "Conv":
            return activation.rows / float(np.prod(attribute(layer.node, "strides", [1])))
        return activation.rows

    def _multiplies(self, node: onnx.NodeProto) -> float:
        """Of a product of two activations in a sample."""
        left, right = (self._activations[name].shape for name in node.input[:2])
        return float(np.prod(left, dtype=np.float64) * (right[-1] if len(right) > 1 else 1))

    def _value(self, name: str) -> Array:
        value = self._graph.constant(name)
        assert value is not None
        return value

    def _tidy(self) -> None:
        """Take away candidates that only experiments needed."""
        kept = {self._folder / path for path in self.result.candidates}
        for path in (self._folder / candidates.FOLDER).glob("*.npz"):
            if path not in kept:
                path.unlink()


def _metrics(layer: Layer, activation: Activation | None, fit: Fit) -> list[Metric] | None:
    if fit.damping is None:
        return None
    return candidates.metrics_of(activation, layer.columns, damping=fit.damping)


def _groups(names: Sequence[str], *, apart: bool) -> Iterator[list[str]]:
    """Formats to round together; one at a time where memory is short."""
    if apart:
        yield from ([name] for name in names)
    elif names:
        yield list(names)


def _sample_count(graph: Graph, samples: SampleSet, *, lean: bool) -> int:
    """Samples to calibrate with."""
    if not lean:
        return MAXIMUM_SAMPLES
    first: Mapping[str, Array] = samples.sample(0)
    tokens = max((values.size for values in first.values() if values.dtype.kind in "iu"), default=1)
    return max(4, min(MAXIMUM_SAMPLES, int(PASS_OPERATIONS / (2.0 * graph.parameters() * tokens))))
