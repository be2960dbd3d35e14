"""The early-stopping gate: what it lets pass, what it rejects, and how often it errs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from quantize_worker.steps.gate import (
    CONFIDENCE,
    MINIMUM_SAMPLES,
    Gate,
    Scores,
    half_width,
    labels_by_sample,
    shuffled,
)
from quantize_worker.steps.samples import SampleSet

SAMPLES, WIDTH, CLASSES = 128, 32, 4
Stream = Callable[[np.random.Generator, int], np.ndarray]


def directions(seed: int, count: int = SAMPLES) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)


def outputs(rows: np.ndarray) -> list[dict[str, np.ndarray]]:
    return [{"y": rows[i : i + 1]} for i in range(len(rows))]


def turned(rows: np.ndarray, loss: np.ndarray | float, seed: int) -> np.ndarray:
    """Rows whose cosines to the given ones are 1 - loss."""
    other = directions(seed + 1, len(rows)).astype(np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    other -= (other * unit).sum(axis=1, keepdims=True) * unit
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    cosines = 1.0 - np.minimum(np.broadcast_to(np.asarray(loss), len(rows)), 2.0)[:, None]
    return (cosines * unit + np.sqrt(1.0 - cosines**2) * other).astype(np.float32)


def judged(gate: Gate, candidate: list[dict[str, np.ndarray]]) -> int:
    """Feed samples until the gate has enough; how many it took."""
    for index, sample in enumerate(candidate):
        if gate.add(sample):
            return index + 1
    return len(candidate)


def spread_losses(mean: float, seed: int) -> np.ndarray:
    """Losses as real builds have them: skewed, of a spread of about half their mean."""
    return np.random.default_rng(seed).gamma(4.0, mean / 4.0, SAMPLES)


def test_a_clear_build_passes_at_the_minimum() -> None:
    reference = directions(0)
    gate = Gate(outputs(reference), None, [0.95])
    assert judged(gate, outputs(turned(reference, 0.004, 0))) == MINIMUM_SAMPLES
    report = gate.report()
    assert report.value == pytest.approx(0.996, abs=1e-4)
    assert (report.samples, report.confidence) == (MINIMUM_SAMPLES, CONFIDENCE)
    assert report.interval is not None
    assert 0.95 < report.interval[0] < report.value < report.interval[1] <= 1.0


def test_a_clearly_bad_build_is_rejected_at_the_minimum() -> None:
    reference = directions(0)
    gate = Gate(outputs(reference), None, [0.95, 0.9])
    assert judged(gate, outputs(turned(reference, 0.4, 0))) == MINIMUM_SAMPLES
    report = gate.report()
    assert report.interval is not None
    assert report.interval[1] < 0.9


def test_near_a_floor_the_whole_set_decides() -> None:
    reference = directions(0)
    gate = Gate(outputs(reference), None, [0.98])
    assert judged(gate, outputs(turned(reference, spread_losses(0.02, 0), 0))) == SAMPLES
    report = gate.report()
    assert (report.samples, report.confidence, report.interval) == (SAMPLES, None, None)


def test_every_floor_must_be_clear() -> None:
    reference = directions(0)
    candidate = outputs(turned(reference, spread_losses(0.02, 0), 0))
    assert judged(Gate(outputs(reference), None, [0.9]), candidate) == MINIMUM_SAMPLES
    assert judged(Gate(outputs(reference), None, [0.9, 0.98]), candidate) == SAMPLES
    # one floor passed and one failed: that is clear too
    assert judged(Gate(outputs(reference), None, [0.9, 0.9999]), candidate) == MINIMUM_SAMPLES


def test_without_floors_all_samples_are_seen() -> None:
    reference = directions(0)
    assert judged(Gate(outputs(reference), None, []), outputs(reference)) == SAMPLES


def test_samples_that_do_not_vary_stop_no_earlier() -> None:
    """Identical scores have no spread, but they are still a few samples only."""
    scores = Scores([0.985] * MINIMUM_SAMPLES)
    assert not scores.decided([0.98])
    assert not Scores([1.0] * (MINIMUM_SAMPLES - 1)).decided([0.5])
    assert Scores([1.0] * MINIMUM_SAMPLES).decided([0.98])


def test_right_answers_without_an_error_are_no_proof() -> None:
    """A coin that falls wrong in 2 of 100 shows 32 right ones in every second try."""
    assert not Scores([1.0] * MINIMUM_SAMPLES, counted=True).decided([0.98])
    assert Scores([1.0] * 1024, counted=True).decided([0.98])


def test_the_interval_shrinks_and_holds_its_level() -> None:
    widths = [half_width(1.0, count) for count in (32, 64, 128, 256)]
    assert widths == sorted(widths, reverse=True)
    # never below the interval of a fixed count at the same level: 3.29 standard errors
    assert all(width > 3.29 / np.sqrt(count) for width, count in zip(widths, (32, 64, 128, 256), strict=True))
    assert half_width(1.0, 32, confidence=0.99) < widths[0]


STREAMS: dict[str, Stream] = {
    "normal": lambda generator, count: generator.normal(0.98, 0.02, count),
    "skewed": lambda generator, count: 1.0 - generator.gamma(1.0, 0.02, count),
    "bounded": lambda generator, count: generator.beta(49.0, 1.0, count),
    "two-sided": lambda generator, count: 0.98 + 0.02 * generator.choice([-1.0, 1.0], count),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_mean_at_the_floor_is_seldom_called(name: str) -> None:
    """The true mean is the floor itself, the hardest case: a call on either side is an error."""
    generator, tries = np.random.default_rng(5), 400
    called = 0
    for _ in range(tries):
        stream = STREAMS[name](generator, 200)
        called += any(
            Scores(stream[:count].tolist()).decided([0.98]) for count in range(MINIMUM_SAMPLES, 201, 4)
        )
    assert called / tries <= 0.01  # asymptotic: 1 - CONFIDENCE, and little more for skewed ones


@pytest.mark.parametrize("seed", range(50))
def test_no_good_build_is_rejected_and_no_bad_one_passes(seed: int) -> None:
    reference = directions(seed)
    for loss in (0.001, 0.005, 0.015):
        gate = Gate(outputs(reference), None, [0.98])
        judged(gate, outputs(turned(reference, spread_losses(loss, seed), seed)))
        assert gate.report().value >= 0.98, loss
    for loss in (0.027, 0.05, 0.23, 0.5, 1.0):
        gate = Gate(outputs(reference), None, [0.98])
        judged(gate, outputs(turned(reference, spread_losses(min(loss, 0.6), seed), seed)))
        assert gate.report().value < 0.98, loss


def classes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a classifier that is right in nine of ten, and the labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, SAMPLES)
    guesses = np.where(generator.random(SAMPLES) < 0.9, labels, (labels + 1) % CLASSES)
    return np.eye(CLASSES, dtype=np.float32)[guesses] * 0.7 + np.float32(0.1), labels


def test_accuracy_is_relative_to_all_of_fp32s() -> None:
    reference, labels = classes(0)
    gate = Gate(outputs(reference), labels[:, None], [0.3])
    assert judged(gate, outputs(reference)) < SAMPLES
    report = gate.report()
    assert (report.metric, report.value) == ("accuracy", pytest.approx(1.0))
    assert report.source_accuracy == pytest.approx(np.mean(reference.argmax(axis=1) == labels))
    assert report.accuracy == report.source_accuracy


def test_wrong_classes_are_rejected_early() -> None:
    reference, labels = classes(1)
    gate = Gate(outputs(reference), labels[:, None], [0.95])
    assert judged(gate, outputs(np.roll(reference, 1, axis=1))) < SAMPLES
    assert gate.report().value < 0.5


def test_close_to_the_floor_accuracy_is_of_the_whole_set() -> None:
    reference, labels = classes(2)
    worse = reference.copy()
    worse[::20] = np.roll(worse[::20], 1, axis=1)
    gate = Gate(outputs(reference), labels[:, None], [0.97])
    assert judged(gate, outputs(worse)) == SAMPLES
    own, source = (np.mean(rows.argmax(axis=1) == labels) for rows in (worse, reference))
    assert gate.report().value == pytest.approx(own / source)


def test_a_source_that_is_never_right_is_judged_by_cosine() -> None:
    reference = directions(3)
    gate = Gate(outputs(reference), np.full((SAMPLES, 1), WIDTH + 1), [0.9])
    assert not gate.counted
    assert judged(gate, outputs(reference)) == MINIMUM_SAMPLES
    assert gate.report().metric == "cosine"


def test_single_numbers_are_judged_all_together() -> None:
    """A row of one number has a sign, not a direction."""
    reference = directions(4)[:, :1]
    gate = Gate(outputs(reference), None, [0.5])
    assert judged(gate, outputs(reference)) == SAMPLES


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_does_not_pass(bad: float) -> None:
    reference = directions(0)
    broken = reference.copy()
    broken[:, 3] = bad
    gate = Gate(outputs(reference), None, [0.5])
    judged(gate, outputs(broken))
    assert gate.report().value == 0.0


def test_shuffling_keeps_samples_and_labels_together() -> None:
    values = np.arange(24, dtype=np.float32).reshape(12, 2)
    samples = SampleSet({"x": values}, np.arange(12), rows=2)
    mixed = shuffled(samples)
    assert sorted(mixed.inputs["x"][:, 0]) == sorted(values[:, 0])
    assert not np.array_equal(mixed.inputs["x"], values)
    assert np.array_equal(mixed.inputs["x"][:, 0], 2.0 * mixed.labels)  # type: ignore[operator]
    assert np.array_equal(shuffled(samples).inputs["x"], mixed.inputs["x"])
    assert labels_by_sample(mixed).shape == (6, 2)
