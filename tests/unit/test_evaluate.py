"""Quality figures, from outputs alone."""

from __future__ import annotations

import numpy as np
import pytest

from quantize_worker.steps.evaluate import cosine, lowest_row_cosine, main_output, quality, tolerance


def outputs(rows: np.ndarray, name: str = "y") -> list[dict[str, np.ndarray]]:
    return [{name: rows[i : i + 1]} for i in range(len(rows))]


CLASSES = np.eye(4, dtype=np.float32) * 3
LABELS = np.arange(4)


def test_equal_outputs_are_perfect() -> None:
    report = quality(outputs(CLASSES), outputs(CLASSES), None)
    assert (report.metric, report.value, report.top1_agreement) == ("cosine", 1.0, 1.0)


def test_accuracy_is_relative_to_the_source() -> None:
    worse = CLASSES[[0, 1, 3, 2]]
    report = quality(outputs(CLASSES), outputs(worse), LABELS)
    assert (report.metric, report.value, report.accuracy, report.source_accuracy) == (
        "accuracy",
        0.5,
        0.5,
        1.0,
    )
    assert report.top1_agreement == 0.5


def test_better_than_the_source_is_one() -> None:
    report = quality(outputs(CLASSES[[0, 1, 3, 2]]), outputs(CLASSES), LABELS)
    assert (report.value, report.accuracy, report.source_accuracy) == (1.0, 1.0, 0.5)


def test_a_source_that_is_never_right_is_compared_by_cosine() -> None:
    worse = CLASSES[[0, 1, 3, 2]]
    report = quality(outputs(CLASSES), outputs(worse), np.full(4, 9))
    assert (report.metric, report.value, report.source_accuracy) == ("cosine", 0.5, 0.0)


def test_embeddings_agree_on_nearest_neighbours() -> None:
    angles = np.array([0.0, 0.1, 2.0, 2.1, 4.0, 4.1])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert quality(outputs(rows), outputs(rows * 0.5), None).top1_agreement == 1.0
    mixed = rows[[0, 2, 4, 1, 3, 5]]
    assert quality(outputs(rows), outputs(mixed), None).top1_agreement < 1.0


def test_a_sample_more_on_one_side_is_left_out() -> None:
    assert quality(outputs(CLASSES), outputs(CLASSES[:3]), LABELS).samples == 3


def test_single_numbers_are_compared_as_one_vector() -> None:
    rows = np.array([[1.0], [-2.0], [0.01]], np.float32)
    close = rows + np.float32(0.02)
    assert quality(outputs(rows), outputs(close), None).cosine > 0.99


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_has_no_quality(bad: float) -> None:
    assert cosine(np.array([1.0, 2.0]), np.array([1.0, bad])) == 0.0


def test_cosine_of_zeros() -> None:
    zero = np.zeros(3)
    assert cosine(zero, zero) == 1.0
    assert cosine(zero, np.ones(3)) == 0.0
    assert cosine(np.ones(3), np.ones(4)) == 0.0


def test_the_main_output_is_the_first_of_floats() -> None:
    sample: dict[str, np.ndarray] = {"label": np.zeros(1, np.int64), "p": np.zeros((1, 2), np.float32)}
    assert main_output([sample]) == "p"
    assert main_output([{"label": np.zeros(1, np.int64)}]) == "label"


def test_the_lowest_row_counts() -> None:
    reference = {"y": np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), "label": np.array([1, 2])}
    candidate = {"y": np.array([[1.0, 0.0], [1.0, 1.0]], np.float32), "label": np.array([1, 3])}
    assert lowest_row_cosine(reference, candidate) == pytest.approx(np.sqrt(0.5))


def test_tolerance_leaves_a_margin() -> None:
    assert tolerance(1.0) == pytest.approx(0.998)
    assert tolerance(0.98) == pytest.approx(0.968)
    assert tolerance(-1.0) == -1.0
