"""Three models on their way through the same samples: FP32, with learned, and with starting rounding.

Matrices to be learned are multiplied here; everything between them runs in pieces
(:mod:`quantize_worker.steps.fragments`). So every layer meets what the layers before it, as they are
now, really produce.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from quantize_worker.formats import Format
from quantize_worker.steps import evaluate
from quantize_worker.steps.candidates import Blocks
from quantize_worker.steps.fragments import Fragments, Live
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.layers import Layer
from quantize_worker.steps.relevance import chosen
from quantize_worker.steps.samples import Sample

Array = NDArray[Any]
Floats = NDArray[np.float32]
Rows = NDArray[np.bool_]
Pair = tuple[Floats, Floats]  # the same rows of a layer's input: in FP32, and in the model being learned


@dataclass(frozen=True)
class Subject:
    """A matrix to learn, the format it gets and the rounding it has."""

    layer: Layer
    form: Format
    start: Blocks


@dataclass(frozen=True)
class Run:
    """A sample, its relevant rows (None: all), and whether it is held out to judge by."""

    sample: Sample
    mask: Rows | None
    held_out: bool


@dataclass
class Group:
    """Subjects that read the same tensor; ``index`` is that of the pieces which make it."""

    index: int
    subjects: list[Subject] = field(default_factory=list)


class Course:
    """Runs the three models side by side, group by group.

    Args:
        model: FP32.
        host: the same with all other layers in the formats that they get.
        subjects: in graph order.
        runs: some of them held out; the starting model sees only those.
        lean: open models without copying their weights.
    """

    def __init__(
        self, model: Path, host: Path, subjects: Sequence[Subject], runs: Sequence[Run], *, lean: bool
    ) -> None:
        self.graph = Graph.read(model)
        self.groups = _grouped(subjects)
        held = [run for run in runs if run.held_out]
        first = [group.subjects[0].layer.name for group in self.groups]
        every = [subject.layer.name for subject in subjects]
        exact, rounded = _inputs(self.graph, first), _inputs(Graph.read(host), first)
        self._exact = _Way(Fragments(model, every, exact, lean=lean), exact, runs)
        self._learned = _Way(Fragments(host, every, rounded, lean=lean), rounded, runs)
        self._start = _Way(Fragments(host, every, rounded, lean=lean), rounded, held)
        self._ways = (self._exact, self._learned, self._start)

    def advance(self, group: Group) -> tuple[list[Pair], list[Pair]]:
        """Run all models up to what a group reads.

        Returns:
            Its relevant rows per sample: of samples to learn from, and of those held out.
        """
        for way in self._ways:
            way.advance(group.index)
        fit: list[Pair] = []
        held: list[Pair] = []
        for run, exact, found in zip(
            self._exact.runs, self._exact.at(group.index), self._learned.at(group.index), strict=True
        ):
            (held if run.held_out else fit).append((chosen(exact, run.mask), chosen(found, run.mask)))
        return fit, held

    @property
    def subjects(self) -> int:
        """How many there are."""
        return sum(len(group.subjects) for group in self.groups)

    def multiply(self, group: Group, subject: Subject, learned: Floats, start: Floats | None = None) -> None:
        """Let all models go on, each with its own weight of a layer.

        Args:
            group: the last one advanced to.
            subject: of the group.
            learned: weight of the model being learned, (out, in).
            start: of the starting one, where samples are held out.
        """
        layer, graph = subject.layer, self.graph
        inputs = layer.node.input
        bias = cast("Floats", graph.constant(inputs[2])) if len(inputs) > 2 and inputs[2] else None
        weights = (layer.matrix(graph), learned, learned if start is None else start)
        for way, weight in zip(self._ways, weights, strict=True):
            way.multiply(group.index, layer.node.output[0], np.ascontiguousarray(weight), bias)

    def judged(self) -> tuple[float, float]:
        """1 - cosine of the main output to FP32's on held-out samples: of the start, and as learned."""
        last = len(self.groups)
        exact, learned, start = (way.finished(last) for way in self._ways)
        name = evaluate.main_output(exact)
        before, after = (
            float(
                np.mean([1.0 - evaluate.cosine(x[name], y[name]) for x, y in zip(exact, other, strict=True)])
            )
            for other in (start, learned)
        )
        return before, after


class _Way:
    """One model and how far each sample has come in it."""

    def __init__(self, fragments: Fragments, cuts: Sequence[str], runs: Sequence[Run]) -> None:
        self.runs = list(runs)
        self._fragments, self._cuts = fragments, list(cuts)
        self._live: list[Live] = [dict(run.sample) for run in runs]

    def advance(self, index: int) -> None:
        self._live = [self._fragments.run(index, live) for live in self._live]
        self._fragments.close(index)

    def at(self, index: int) -> list[Array]:
        return [live[self._cuts[index]] for live in self._live]

    def multiply(self, index: int, output: str, weight: Floats, bias: Floats | None) -> None:
        """Compute a product, (…, in) times (out, in), in every sample."""
        for live in self._live:
            product = live[self._cuts[index]] @ weight.T
            live[output] = product if bias is None else product + bias

    def finished(self, index: int) -> list[Live]:
        """The outputs of held-out samples."""
        pairs = zip(self.runs, self._live, strict=True)
        return [self._fragments.run(index, live) for run, live in pairs if run.held_out]


def _grouped(subjects: Sequence[Subject]) -> list[Group]:
    groups: dict[str, Group] = {}
    for subject in subjects:
        groups.setdefault(subject.layer.activation, Group(len(groups))).subjects.append(subject)
    return list(groups.values())


def _inputs(graph: Graph, names: Sequence[str]) -> list[str]:
    """What the nodes with these first outputs read."""
    read = {node.output[0]: node.input[0] for node in graph.nodes if node.output and node.input}
    return [read[name] for name in names]
