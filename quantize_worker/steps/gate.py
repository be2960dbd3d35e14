"""The gate: is a build good enough for the classes that wait for it? It stops as soon as that is clear.

Every sample gets a score whose mean over the gate set is the build's quality: the cosine to FP32, or
with labels the accuracy relative to FP32's. The mean of the scores seen so far has an interval that
holds at all sample counts at once, so looking after every sample spoils nothing: the asymptotic
confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit
theory and asymptotic confidence sequences" (2021, arXiv 2103.06476), theorem 2.2. When no floor lies
inside the interval any more, nothing that follows would change the verdict, and the gate stops. If
that never happens, the mean over the whole set decides.

The theorem is asymptotic: what it promises needs samples enough to show how much scores vary. So
at least :data:`MINIMUM_SAMPLES` are seen, and scores never count as varying less than they would at the
floor, or, with labels, than a coin that falls as often as the floor allows. A failure that the samples
seen do not show at all, because fewer than one in ten has it, can still be missed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quantize_worker.contract import QualityReport
from quantize_worker.steps.evaluate import (
    MINIMUM_ROW,
    best_classes,
    cosine,
    main_output,
    quality,
    share_correct,
)
from quantize_worker.steps.samples import SampleSet

Array = NDArray[Any]
Named = dict[str, Array]
CONFIDENCE = 0.999
MINIMUM_SAMPLES = 32
SPREAD_SHARE = 0.5  # of what a floor allows to lose: the least that cosines count as varying
SMALLEST_SPREAD = 1e-6
SHUFFLE_SEED = 20_26


def shuffled(samples: SampleSet) -> SampleSet:
    """The samples in a fixed random order, so that the first ones stand for all."""
    return samples.chosen(np.random.default_rng(SHUFFLE_SEED).permutation(len(samples)))


def labels_by_sample(samples: SampleSet) -> Array:
    """Labels of a set that has some, a row per sample."""
    assert samples.labels is not None
    return samples.labels.reshape(len(samples), -1)


def half_width(spread: float, count: int, *, confidence: float = CONFIDENCE) -> float:
    """Half the width of the interval after ``count`` scores of standard deviation ``spread``.

    Tightest at :data:`MINIMUM_SAMPLES`, by the paper's rule for rho.
    """
    alpha = 1.0 - confidence
    doubled = -2.0 * math.log(alpha)
    rho = (doubled + math.log(doubled + 1.0)) / MINIMUM_SAMPLES  # rho squared
    grown = count * rho + 1.0
    return spread * math.sqrt(2.0 * grown / (count**2 * rho) * math.log(math.sqrt(grown) / alpha))


@dataclass(frozen=True)
class Scores:
    """Scores seen so far, and what they say about floors.

    Args:
        values: one per sample.
        counted: scores count right and wrong answers, instead of being cosines.
        confidence: of the interval.
    """

    values: Sequence[float]
    counted: bool = False
    confidence: float = CONFIDENCE

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    def interval(self, floor: float) -> tuple[float, float]:
        """Where the mean of all scores lies, as far as it matters for one floor."""
        half = half_width(self._spread(floor), len(self.values), confidence=self.confidence)
        return self.mean - half, self.mean + half if self.counted else min(1.0, self.mean + half)

    def decided(self, floors: Sequence[float]) -> bool:
        """Whether it is clear on which side of every floor the mean lies."""
        if len(self.values) < MINIMUM_SAMPLES or not floors:
            return False
        bounds = [(floor, *self.interval(floor)) for floor in floors]
        return all(floor < low or floor > high for floor, low, high in bounds)

    def nearest(self, floors: Sequence[float]) -> float:
        return min(floors, key=lambda floor: abs(floor - self.mean))

    def _spread(self, floor: float) -> float:
        """The standard deviation that scores would have if their mean were the floor.

        What a build loses varies in proportion to how much it loses: few samples that happened to
        lose little would otherwise look both better and steadier than they are.
        """
        seen = float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 1.0
        if self.counted:
            return max(seen, math.sqrt(floor * (1.0 - floor)), SMALLEST_SPREAD)
        allowed, lost = 1.0 - floor, max(1.0 - self.mean, SMALLEST_SPREAD)
        return max(seen, seen * allowed / lost, SPREAD_SHARE * allowed, SMALLEST_SPREAD)


class Gate:
    """Judges a build, sample by sample.

    Args:
        references: what FP32 makes of the samples, in their order.
        labels: one row per sample, or None.
        floors: of the classes that wait; without any, all samples are seen.
        confidence: with which the gate may stop early.
    """

    def __init__(
        self,
        references: Sequence[Named],
        labels: Array | None,
        floors: Sequence[float],
        *,
        confidence: float = CONFIDENCE,
    ) -> None:
        self._references, self._floors, self._confidence = references, floors, confidence
        self._seen: list[Named] = []
        self._scores: list[float] = []
        self._labels = None if labels is None else labels.reshape(len(labels), -1)[: len(references)]
        self._name = main_output(references[:1])
        self._right = self._source_right()
        self._source_accuracy = float(np.mean(self._right)) if self._right else 0.0

    @property
    def counted(self) -> bool:
        """Whether scores count right answers; a source that is never right is compared by cosine."""
        return self._source_accuracy > 0.0

    def add(self, outputs: Named) -> bool:
        """Score the next sample; whether enough has been seen."""
        index = len(self._seen)
        self._seen.append(outputs)
        self._scores.append(self._score(index, outputs[self._name]))
        return len(self._seen) == len(self._references) or self._clear()

    def report(self) -> QualityReport:
        """Quality on what has been seen."""
        count = len(self._seen)
        labels = None if self._labels is None else self._labels[:count].reshape(-1)
        found = quality(self._references[:count], self._seen, labels)
        if count == len(self._references) or not self._clear():
            return found
        return self._early(found)

    def _early(self, found: QualityReport) -> QualityReport:
        """The estimate for the whole set: with labels, FP32's accuracy on all of it is known."""
        scores = self._stream()
        low, high = scores.interval(scores.nearest(self._floors))
        value = min(1.0, scores.mean)
        changes: dict[str, Any] = {"value": value, "confidence": self._confidence, "interval": (low, high)}
        if self.counted:
            changes |= {
                "accuracy": scores.mean * self._source_accuracy,
                "source_accuracy": self._source_accuracy,
            }
        return msgspec.structs.replace(found, **changes)

    def _clear(self) -> bool:
        return self._stoppable() and self._stream().decided(self._floors)

    def _stream(self) -> Scores:
        return Scores(self._scores, self.counted, self._confidence)

    def _stoppable(self) -> bool:
        """A single number has no direction: its cosine is taken over all samples together."""
        return self.counted or self._references[0][self._name].size >= MINIMUM_ROW

    def _score(self, index: int, output: Array) -> float:
        if not self.counted:
            return cosine(self._references[index][self._name], output)
        assert self._labels is not None
        own = share_correct(best_classes(output), self._labels[index])
        # of the same mean as own / accuracy over the whole set, but FP32's luck so far is taken out
        return 1.0 + (own - self._right[index]) / self._source_accuracy

    def _source_right(self) -> list[float]:
        if self._labels is None:
            return []
        pairs = zip(self._references, self._labels, strict=True)
        return [share_correct(best_classes(sample[self._name]), labels) for sample, labels in pairs]
