"""How close a build is to its FP32 source: one arithmetic for everyone, apart from the product's own gate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.reference import Array


@dataclass(frozen=True)
class Similarity:
    """Of sentence vectors.

    Args:
        cosine: mean over sentences, of a build's vector with FP32's.
        top1: share of sentences whose nearest other sentence, by cosine, is FP32's nearest.
    """

    cosine: float
    top1: float

    @property
    def loss(self) -> float:
        """1 - cosine."""
        return 1.0 - self.cosine


def similarity(reference: Array, candidate: Array) -> Similarity:
    """Compare vectors of the same sentences.

    Args:
        reference, candidate: (sentences, width), any length.
    """
    left, right = _unit(reference), _unit(candidate)
    cosines = (left * right).sum(axis=1)
    agree = _nearest(left) == _nearest(right)
    return Similarity(cosine=float(np.mean(cosines)), top1=float(np.mean(agree)))


def _unit(vectors: Array) -> Array:
    """Each row scaled to length 1 in double precision; NaN and infinity count as no likeness at all."""
    finite = np.where(np.isfinite(vectors), vectors, 0.0).astype(np.float64)
    lengths = np.linalg.norm(finite, axis=1, keepdims=True)
    return finite / np.maximum(lengths, 1e-12)


def _nearest(unit: Array) -> Array:
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -np.inf)
    return likeness.argmax(axis=1)
