"""The ``qat`` step: distillation without labels, layer by layer against what FP32 makes of calibration data.

Post-training rounding treats every layer as if those before it were exact. Here layers are rounded
in graph order. Each meets what the quantized layers before it really produce (X̂) and aims at what FP32
produces there (X W): the weight is first moved to ``W + (X̂ᵀX̂ + λ)⁻¹ X̂ᵀ(X - X̂) W``, the ridge regression
of the one on the other (as in GPTAQ, Li et al. 2025, arXiv 2504.02692), then values and scales are learned for
``min ‖X̂ Ŵ - X W‖²`` (:mod:`quantize_worker.steps.regression`). What earlier layers did wrong is so made up for
by later ones, which no rounding of single layers can do.

It is tried before it is trusted: on most samples, against rounding as the analysis does it on the same
samples, both judged on the rest. A layer whose output is no closer to FP32's there keeps the rounding it
had, and if the whole model is no closer, all do. The others are then learned from all samples.

(Corrections of biases and of norms, in closed form or by gradient descent through the model, and rows
weighted by the gradient of the output were tried on all-MiniLM: none gained 2 % on unseen sentences.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantize_worker.steps import regression
from quantize_worker.steps.candidates import Blocks
from quantize_worker.steps.course import Course, Run, Subject
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.relevance import relevant_rows
from quantize_worker.steps.samples import Sample
from quantize_worker.steps.shortening import Shortener
from quantize_worker.steps.variations import variations

Floats = NDArray[np.float32]
HELD_OUT_EVERY = 6  # samples; one of so many judges the trial
MINIMUM_SAMPLES = 12
TRIAL_COPIES, COPIES = 2, 6  # variations of each sample, at most
OPERATIONS = 4e11  # multiply-accumulates of one model's products on all samples: bounds the time
SAMPLES_OPERATIONS = 2e12  # the same, where the samples alone are more
TRIAL_SHARE = 0.4  # of the time


@dataclass(frozen=True)
class LayerLearned:
    """Relative squared error of a layer's output on held-out samples: rounded as before, and learned."""

    name: str
    before: float
    after: float

    @property
    def better(self) -> bool:
        return self.after < self.before


@dataclass(frozen=True)
class Learned:
    """What was learned.

    ``blocks`` by layer; empty if the model as a whole got no closer. ``layers``, ``before`` and ``after`` are
    the trial's: of each layer, and 1 - cosine of the main output, on held-out samples.
    """

    blocks: dict[str, Blocks]
    layers: list[LayerLearned]
    before: float
    after: float


def learn(
    model: Path,
    host: Path,
    subjects: Sequence[Subject],
    samples: Sequence[Sample],
    *,
    lean: bool = False,
    on_share: Callable[[float], None] = lambda share: None,
) -> Learned:
    """Learn the rounding of matrices. The same input gives the same result.

    Args:
        model: the prepared FP32 model.
        host: the same with all other layers in the formats that they get; the subjects still in FP32.
        subjects: in graph order; their weights are not shared.
        samples: to learn from, at least :data:`MINIMUM_SAMPLES`.
        lean: open models without copying their weights.
        on_share: called with the share done.

    Raises:
        ValueError: if there are too few samples.
    """
    if len(samples) < MINIMUM_SAMPLES:
        raise ValueError(f"{len(samples)} samples are too few to learn from and to judge by")
    chosen = _bounded(subjects, samples)
    course = Course(model, host, subjects, _trial_runs(model, subjects, chosen, lean=lean), lean=lean)
    layers = _try(course, lambda share: on_share(TRIAL_SHARE * share))
    before, after = course.judged()
    better = {layer.name for layer in layers if layer.better} if after < before else set()
    if not better:
        return Learned({}, layers, before, after)
    course = Course(model, host, subjects, _all_runs(model, subjects, chosen, lean=lean), lean=lean)
    blocks = _finish(course, better, lambda share: on_share(TRIAL_SHARE + (1 - TRIAL_SHARE) * share))
    return Learned(blocks, layers, before, after)


def _try(course: Course, on_share: Callable[[float], None]) -> list[LayerLearned]:
    """Learn from most samples, against rounding to fit the same ones, and judge on the rest."""
    layers: list[LayerLearned] = []
    for group in course.groups:
        fit, held = course.advance(group)
        view = regression.view_of(fit)
        for subject in group.subjects:
            weight = _weight(course.graph, subject)
            usual = regression.unlearned(weight, subject.form, fit).dequantized()
            made = usual if view is None else regression.learned(weight, subject.form, view).dequantized()
            before, after = (regression.relative_error(weight, each, held) for each in (usual, made))
            layers.append(LayerLearned(subject.layer.name, before, after))
            course.multiply(group, subject, made if layers[-1].better else usual, usual)
            on_share(len(layers) / course.subjects)
    return layers


def _finish(course: Course, better: Collection[str], on_share: Callable[[float], None]) -> dict[str, Blocks]:
    """Learn these layers from all samples; the others keep their start."""
    blocks: dict[str, Blocks] = {}
    done = 0
    for group in course.groups:
        fit, _ = course.advance(group)
        wanted = [subject for subject in group.subjects if subject.layer.name in better]
        view = regression.view_of(fit) if wanted else None
        for subject in group.subjects:
            name, made = subject.layer.name, subject.start
            if view is not None and name in better:
                made = regression.learned(_weight(course.graph, subject), subject.form, view)
                blocks[name] = made
            course.multiply(group, subject, made.dequantized())
            done += 1
            on_share(done / course.subjects)
    return blocks


def _weight(graph: Graph, subject: Subject) -> Floats:
    return np.ascontiguousarray(subject.layer.matrix(graph), np.float32)


def _trial_runs(
    model: Path, subjects: Sequence[Subject], samples: Sequence[Sample], *, lean: bool
) -> list[Run]:
    """Most samples with variations of them, and the rest to judge by."""
    rest = samples[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    most = [sample for index, sample in enumerate(samples) if index % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
    varied = variations(most, copies=_copies(subjects, most, TRIAL_COPIES))
    return _runs(model, subjects, [*most, *varied], rest, lean=lean)


def _all_runs(
    model: Path, subjects: Sequence[Subject], samples: Sequence[Sample], *, lean: bool
) -> list[Run]:
    varied = variations(samples, copies=_copies(subjects, samples, COPIES))
    return _runs(model, subjects, [*samples, *varied], [], lean=lean)


def _runs(
    model: Path, subjects: Sequence[Subject], fit: Sequence[Sample], held: Sequence[Sample], *, lean: bool
) -> list[Run]:
    """Without the padding behind the last row that matters, where the model takes any length."""
    every = [*fit, *held]
    masks = relevant_rows(model, [subject.layer for subject in subjects], every, lean=lean)
    cut, cut_masks = Shortener(model, Graph.read(model).model.graph, lean=lean).shortened(every, masks)
    return [
        Run(sample, None if cut_masks is None else cut_masks[index], index >= len(fit))
        for index, sample in enumerate(cut)
    ]


def _bounded(subjects: Sequence[Subject], samples: Sequence[Sample]) -> list[Sample]:
    """As many samples, spread evenly, as the bound on the work allows."""
    count = max(MINIMUM_SAMPLES, int(SAMPLES_OPERATIONS / _operations(subjects, samples)))
    if count >= len(samples):
        return list(samples)
    return [samples[index] for index in np.linspace(0, len(samples) - 1, count).round().astype(int)]


def _copies(subjects: Sequence[Subject], samples: Sequence[Sample], most: int) -> int:
    """Variations of each sample that the bound on the work allows."""
    return max(0, min(most, int(OPERATIONS / (_operations(subjects, samples) * len(samples))) - 1))


def _operations(subjects: Sequence[Subject], samples: Sequence[Sample]) -> float:
    """Multiply-accumulates of one sample: rows are at most the positions of its longest input."""
    rows = [max(math.prod(values.shape[:2]) for values in sample.values()) for sample in samples]
    return max(1.0, float(np.mean(rows)) * sum(subject.layer.parameters for subject in subjects))
