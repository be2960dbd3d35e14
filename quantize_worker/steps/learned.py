"""The ``qat`` step: distillation without labels, layer by layer against what FP32 makes of calibration data.

Post-training rounding treats every layer as if those before it were exact. Here layers are rounded
in graph order. Each meets what the quantized layers before it really produce (X̂) and aims at what FP32
produces there (X W): the weight is first moved to ``W + (X̂ᵀX̂ + λ)⁻¹ X̂ᵀ(X - X̂) W``, the ridge regression
of the one on the other (as in GPTAQ, Li et al. 2025, arXiv 2504.02692), then values and scales are learned for
``min ‖X̂ Ŵ - X W‖²`` by error feedback and cyclic coordinate descent (:mod:`quantize_worker.steps.gptq`). What
earlier layers did wrong is so made up for by later ones, which no rounding of single layers can do.

Some samples are held out. A layer whose output is not closer to FP32's on them keeps the rounding it had,
and if the whole model is not closer on them, all do. (Corrections of biases and of norms, in closed form
or by gradient descent through the model, were tried and gained nothing on unseen sentences: what is
left is noise, not bias.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from quantize_worker.steps.candidates import Blocks, make_all
from quantize_worker.steps.course import Course, Pair, Run, Subject
from quantize_worker.steps.gptq import Metric, metric
from quantize_worker.steps.moments import spans

Floats = NDArray[np.float32]
RIDGE = 0.3  # of the mean square, in the regression that moves the weight; tuned on all-MiniLM
DAMPING = 0.1  # of the mean square, in what errors of columns cost together
PASSES = 4  # of coordinate descent
HELD_ROWS = 1024  # rows multiplied at once
_TINY = 1e-30


@dataclass(frozen=True)
class LayerLearned:
    """Relative squared error of a layer's output on held-out samples, with the old and the new rounding."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Learned:
    """What was learned.

    ``blocks`` by layer; empty if the model as a whole got no closer. ``before`` and ``after`` are
    1 - cosine of the main output on held-out samples.
    """

    blocks: dict[str, Blocks]
    layers: list[LayerLearned]
    before: float
    after: float


def learn(
    model: Path,
    host: Path,
    subjects: Sequence[Subject],
    runs: Sequence[Run],
    *,
    lean: bool = False,
    on_share: Callable[[float], None] = lambda share: None,
) -> Learned:
    """Learn the rounding of matrices.

    Args:
        model: the prepared FP32 model.
        host: the same with all other layers in the formats that they get; the subjects still in FP32.
        subjects: in graph order; their weights are not shared.
        runs: some of them held out, some not.
        lean: open models without copying their weights.
        on_share: called with the share done.
    """
    course = Course(model, host, subjects, runs, lean=lean)
    blocks: dict[str, Blocks] = {}
    layers = []
    for group in course.groups:
        fit, held = course.advance(group)
        view = _view(fit)
        for subject in group.subjects:
            weight = np.ascontiguousarray(subject.layer.matrix(course.graph), np.float32)
            found, made = _learned(subject, weight, view, held)
            layers.append(found)
            if made is not None:
                blocks[subject.layer.name] = made
            course.multiply(group, subject, (made or subject.start).dequantized())
            on_share(len(layers) / len(subjects))
    before, after = course.judged()
    return Learned(blocks if after < before else {}, layers, before, after)


@dataclass(frozen=True)
class _View:
    """What a group's inputs are like: rows to learn from, and their second moments prepared."""

    pairs: list[Pair]
    factors: list[Any]  # Cholesky factors of the damped moments, per diagonal block
    metrics: list[Metric]


def _view(pairs: list[Pair]) -> _View | None:
    """None where the inputs are all zero, or not finite."""
    columns = pairs[0][1].shape[1]
    sums = [np.zeros((span.stop - span.start,) * 2, np.float32) for span in spans(columns)]
    for _, rows in _stacked(pairs):
        for total, span in zip(sums, spans(columns), strict=True):
            total += rows[:, span].T @ rows[:, span]
    metrics = [metric(total, DAMPING) for total in sums]
    if any(one is None for one in metrics):
        return None
    factors = [linalg.cho_factor(_damped(total), lower=True, overwrite_a=True) for total in sums]
    return _View(pairs, factors, [one for one in metrics if one is not None])


def _damped(moments: Floats) -> NDArray[np.float64]:
    found = moments.astype(np.float64)
    found[np.diag_indices_from(found)] += RIDGE * float(np.mean(np.diag(found)))
    return found


def _learned(
    subject: Subject, weight: Floats, view: _View | None, held: list[Pair]
) -> tuple[LayerLearned, Blocks | None]:
    """The layer's new rounding; None if its old one is as good on held-out samples."""
    before = _relative_error(weight, subject.start.dequantized(), held)
    if view is None:
        return LayerLearned(subject.layer.name, before, before), None
    blocks = make_all(_moved(weight, view), [subject.form], view.metrics, passes=PASSES)[0]
    after = _relative_error(weight, blocks.dequantized(), held)
    better = after < before
    return LayerLearned(subject.layer.name, before, after if better else before), blocks if better else None


def _moved(weight: Floats, view: _View) -> Floats:
    """The weight that comes closest to FP32's output on the inputs as they are: (out, in)."""
    upright = np.ascontiguousarray(weight.T)
    slope = np.zeros_like(upright)
    for exact, found in _stacked(view.pairs):
        slope += found.T @ ((exact - found) @ upright)
    for span, factor in zip(spans(len(upright)), view.factors, strict=True):
        upright[span] += linalg.cho_solve(factor, slope[span])
    return np.ascontiguousarray(upright.T)


def _relative_error(weight: Floats, restored: Floats, pairs: Sequence[Pair]) -> float:
    error = total = 0.0
    for exact, found in _stacked(pairs):
        wanted = exact @ weight.T
        error += float(np.square(found @ restored.T - wanted, dtype=np.float64).sum())
        total += float(np.square(wanted, dtype=np.float64).sum())
    return error / max(total, _TINY)


def _stacked(pairs: Sequence[Pair]) -> Iterator[Pair]:
    """Rows of several samples together, scaled so that every sample counts the same."""
    held: list[Pair] = []
    for exact, found in pairs:
        if len(found):
            factor = np.float32(1 / np.sqrt(len(found) * len(pairs)))
            held.append((exact * factor, found * factor))
        if sum(len(rows) for _, rows in held) >= HELD_ROWS:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _joined(held: Sequence[Pair]) -> Pair:
    return np.concatenate([exact for exact, _ in held]), np.concatenate([found for _, found in held])
