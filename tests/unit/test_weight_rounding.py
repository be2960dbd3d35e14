"""Rounding of weights: bounds on errors, packing, and that the better methods are better."""

from __future__ import annotations

import numpy as np
import pytest

from quantize_worker.steps.calibration import Activation
from quantize_worker.steps.gptq import propagate
from quantize_worker.steps.weights import (
    Blockwise,
    pack_nibbles,
    relative_error,
    round_int4,
    round_int8,
)

BLOCK = 32


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(7)


def output_error(weight: np.ndarray, rounded: Blockwise, activations: np.ndarray) -> float:
    restored = rounded.dequantized(weight.shape[1])
    return relative_error(activations @ weight.T, activations @ restored.T)


def correlated(generator: np.random.Generator, columns: int) -> np.ndarray:
    mixing = generator.standard_normal((columns // 4, columns)).astype(np.float32)
    return (generator.standard_normal((512, columns // 4)) @ mixing).astype(np.float32)


def test_int8_is_within_half_a_step_per_channel(generator: np.random.Generator) -> None:
    weight = (generator.standard_normal((16, 40)) * np.logspace(-3, 3, 40)).astype(np.float32)
    rounded = round_int8(weight, axis=1)
    restored = rounded.values * rounded.scales
    assert np.all(np.abs(restored - weight) <= rounded.scales * 0.5001)
    assert np.abs(rounded.values).max() == 127


def test_int8_of_zeros() -> None:
    rounded = round_int8(np.zeros((3, 4), np.float32), axis=0)
    assert not rounded.values.any()
    assert np.isfinite(rounded.scales).all()


@pytest.mark.parametrize("columns", [32, 64, 50])
def test_int4_restores_shape_and_stays_close(columns: int, generator: np.random.Generator) -> None:
    weight = generator.standard_normal((9, columns)).astype(np.float32)
    rounded = round_int4(weight, block=BLOCK)
    assert rounded.values.max() <= 15
    assert rounded.dequantized(columns).shape == weight.shape
    assert relative_error(weight, rounded.dequantized(columns)) < 0.01


def test_int4_keeps_zero_exact(generator: np.random.Generator) -> None:
    weight = generator.standard_normal((4, 64)).astype(np.float32) + 5
    weight[:, ::3] = 0
    assert not round_int4(weight, block=BLOCK).dequantized(64)[:, ::3].any()


def test_searched_ranges_beat_the_full_range(generator: np.random.Generator) -> None:
    weight = generator.standard_t(3, (64, 128)).astype(np.float32)  # heavy tails
    low, high = weight.reshape(-1, BLOCK).min(axis=1), weight.reshape(-1, BLOCK).max(axis=1)
    scale = ((high - low) / 15)[:, None]
    zero = np.rint(-low[:, None] / scale)
    blocks = weight.reshape(-1, BLOCK)
    plain = (np.clip(np.rint(blocks / scale) + zero, 0, 15) - zero) * scale
    searched = round_int4(weight, block=BLOCK).dequantized(128)
    assert relative_error(weight, searched) < relative_error(weight, plain.reshape(weight.shape))


def test_importance_spares_the_columns_that_matter(generator: np.random.Generator) -> None:
    weight = generator.standard_t(3, (64, 64)).astype(np.float32)
    importance = np.full(64, 0.01, np.float32)
    importance[:8] = 10
    plain, weighed = (round_int4(weight, block=BLOCK, importance=i) for i in (None, importance))
    errors = [np.square(r.dequantized(64) - weight)[:, :8].sum() for r in (plain, weighed)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("columns", [64, 300])
def test_gptq_lowers_the_error_of_the_output(columns: int, generator: np.random.Generator) -> None:
    weight = generator.standard_normal((48, columns)).astype(np.float32)
    activations = correlated(generator, columns)
    plain = round_int4(weight, block=BLOCK)
    better = propagate(weight, plain, activations.T @ activations)
    assert output_error(weight, better, activations) < 0.7 * output_error(weight, plain, activations)
    np.testing.assert_array_equal(better.scales, plain.scales)


def test_gptq_gives_up_on_a_matrix_without_inverse(generator: np.random.Generator) -> None:
    weight = generator.standard_normal((4, 32)).astype(np.float32)
    plain = round_int4(weight, block=BLOCK)
    assert propagate(weight, plain, np.zeros((32, 32), np.float32)) is plain


def test_nibbles_are_packed_low_half_first() -> None:
    packed = pack_nibbles(np.array([[1, 2, 3]], np.uint8))
    assert packed.tolist() == [[0x21, 0x03]]


def test_relative_error_of_nothing() -> None:
    assert relative_error(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)) == 0.0


def test_an_outlier_does_not_widen_the_range_of_an_activation(generator: np.random.Generator) -> None:
    values = generator.standard_normal((100, 100)).astype(np.float32)
    values[0, 0] = 100.0
    activation = Activation()
    activation.widen(values)
    activation.count(values)
    low, high = activation.best_range(16)
    assert -5 < low < -1
    assert high < 50
    assert activation.best_range(1 << 16) == pytest.approx((values.min(), 100.0), rel=0.1)
    assert activation.low <= 0 <= activation.high


def test_a_constant_activation_has_a_range() -> None:
    activation = Activation()
    zeros = np.zeros((3, 4), np.float32)
    activation.widen(zeros)
    activation.count(zeros)
    activation.weigh(zeros)
    assert activation.best_range(256) == (0.0, 0.0)
    assert activation.importance() is None
