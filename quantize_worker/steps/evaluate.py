"""Quality of a build against its FP32 source, from outputs alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize_worker.contract import QualityReport

Array = NDArray[Any]
Outputs = Sequence[dict[str, Array]]  # one entry per sample
UNIT_TOLERANCE = 1e-3
MINIMUM_ROW = 2  # a row of one number has a sign, not a direction
MARGIN_FLOOR = 0.002
MARGIN_SHARE = 0.5
MINIMUM_TOLERANCE = 0.5  # a self-test that lets less pass says nothing


def main_output(outputs: Outputs) -> str:
    """Name of the first floating-point output, or of the first output if there is none."""
    names = list(outputs[0])
    return next((name for name in names if outputs[0][name].dtype.kind == "f"), names[0])


def cosine(a: Array, b: Array) -> float:
    """Cosine of two tensors seen as vectors; 1 if both are zero, 0 if either is not finite."""
    left, right = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    if left.shape != right.shape or not (np.isfinite(left).all() and np.isfinite(right).all()):
        return 0.0
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    if norms == 0.0:
        return 1.0 if not left.any() and not right.any() else 0.0
    return float(np.clip(left @ right / norms, -1.0, 1.0))


def all_finite(outputs: Outputs) -> bool:
    """Whether no floating-point output has a NaN or an infinity."""
    return all(
        bool(np.isfinite(values).all())
        for sample in outputs
        for values in sample.values()
        if values.dtype.kind == "f"
    )


def accuracy(outputs: Outputs, labels: Array) -> float:
    """Share of samples (or of their rows or steps) whose best class is the label's."""
    name = main_output(outputs)
    return share_correct(np.concatenate([best_classes(sample[name]) for sample in outputs]), labels)


def share_correct(guesses: Array, labels: Array) -> float:
    """Share of guesses that are the label's; where one side has fewer, the rest is left out."""
    wanted = labels.reshape(-1)
    count = min(len(guesses), len(wanted))
    return float(np.mean(guesses[:count] == wanted[:count])) if count else 0.0


def quality(reference: Outputs, candidate: Outputs, labels: Array | None) -> QualityReport:
    """Compare outputs of the same samples; where one side has fewer, the rest is left out.

    With labels the value is accuracy relative to the source's, at most 1; else mean cosine. A
    source that is never right has no accuracy to be relative to: then it is mean cosine too.
    """
    count = min(len(reference), len(candidate))
    reference, candidate = reference[:count], candidate[:count]
    name = main_output(reference)
    pairs = [(r[name], c[name]) for r, c in zip(reference, candidate, strict=True)]
    mean = _mean_cosine(pairs)
    own = None if labels is None else accuracy(candidate, labels)
    source = None if labels is None else accuracy(reference, labels)
    return QualityReport(
        metric="accuracy" if source else "cosine",
        value=mean if own is None or not source else min(1.0, own / source),
        cosine=mean,
        top1_agreement=_top1_agreement(pairs, classifier=labels is not None),
        samples=len(pairs),
        accuracy=own,
        source_accuracy=source,
    )


def lowest_row_cosine(reference: dict[str, Array], candidate: dict[str, Array]) -> float:
    """The lowest cosine between rows (axis 0) of any floating-point output, as self-tests compute it."""
    lowest = 1.0
    for name, expected in reference.items():
        if expected.dtype.kind != "f" or not expected.ndim:
            continue
        found = candidate[name]
        rows = zip(expected, found, strict=True) if len(expected) == len(found) else [(expected, found)]
        lowest = min([lowest, *(cosine(left, right) for left, right in rows)])
    return lowest


def tolerance(measured: float) -> float:
    """The cosine below which a self-test fails: what was measured less a margin.

    Other CPUs sum in another order and may round INT8 products differently, so the margin
    grows with the distance from 1.
    """
    return max(-1.0, measured - MARGIN_FLOOR - MARGIN_SHARE * (1.0 - measured))


def _mean_cosine(pairs: list[tuple[Array, Array]]) -> float:
    if all(left.size < MINIMUM_ROW for left, _ in pairs):
        left, right = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
        return cosine(left, right)
    return float(np.mean([cosine(left, right) for left, right in pairs]))


def best_classes(output: Array) -> Array:
    """Best class along the last axis, flat; a single score per row means class 1 from ½ up.

    Whole numbers are classes already. What is not finite has no best class: -1, which no label is.
    """
    if output.dtype.kind in "iub":
        return output.ravel().astype(np.int64)
    if output.dtype.kind == "f" and not np.isfinite(output).all():
        return np.full(max(1, output.size // (output.shape[-1] if output.ndim > 1 else 1)), -1, np.int64)
    if output.ndim and output.shape[-1] > 1 and output.ndim > 1:
        return np.asarray(output.argmax(axis=-1)).ravel()
    return (output.astype(np.float64).ravel() >= 0.5).astype(np.int64)


def _top1_agreement(pairs: list[tuple[Array, Array]], *, classifier: bool) -> float:
    shapes = {left.shape for left, _ in pairs} | {right.shape for _, right in pairs}
    if len(shapes) == 1 and not classifier and len(pairs) > 2:
        left, right = (np.stack([pair[side].ravel() for pair in pairs]).astype(np.float64) for side in (0, 1))
        if _is_embedding(left):
            return float(np.mean(_nearest(left) == _nearest(right)))
    agreements = [
        np.mean(best_classes(left) == best_classes(right))
        for left, right in pairs
        if left.shape == right.shape
    ]
    return float(np.sum(agreements) / len(pairs)) if pairs else 0.0


def _is_embedding(rows: Array) -> bool:
    """Rows of length 1 that are no probabilities."""
    unit = np.abs(np.linalg.norm(rows, axis=1) - 1.0) < UNIT_TOLERANCE
    return bool(unit.all() and (rows < 0).any())


def _nearest(rows: Array) -> Array:
    scores = np.nan_to_num(rows @ rows.T)
    np.fill_diagonal(scores, -np.inf)
    return np.asarray(scores.argmax(axis=1))
