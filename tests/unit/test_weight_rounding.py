"""Rounding of weights: bounds on errors, packing, and that the better methods are better."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize_worker.steps.gptq import cost, descend, metric, propagate
from quantize_worker.steps.grids import Grid, nearest, search
from quantize_worker.steps.rewrite.channels import round_channels
from quantize_worker.steps.rewrite.scratch import Scratch
from quantize_worker.steps.weights import pack_nibbles, unpack_nibbles

BLOCK = 32


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(7)


def correlated(generator: np.random.Generator, columns: int) -> np.ndarray:
    """Second moments of activations that live in few directions."""
    mixing = generator.standard_normal((max(1, columns // 4), columns))
    rows = generator.standard_normal((512, len(mixing))) @ mixing + 0.1 * generator.standard_normal(
        (512, columns)
    )
    return (rows.T @ rows / 512).astype(np.float32)


def searched(weight: np.ndarray, *, bits: int = 4, symmetric: bool = False, block: int = BLOCK) -> Grid:
    return search(weight, np.ones(len(weight), np.float32), bits=bits, block=block, symmetric=symmetric)


def restored(steps: np.ndarray, grid: Grid) -> np.ndarray:
    return steps * np.repeat(grid.scales, grid.block, axis=0)[: len(steps)]


def relative_error(weight: np.ndarray, found: np.ndarray) -> float:
    return float(
        np.square(weight - found, dtype=np.float64).sum() / np.square(weight, dtype=np.float64).sum()
    )


def test_int8_is_within_half_a_step_per_channel(generator: np.random.Generator, tmp_path: Path) -> None:
    weight = (generator.standard_normal((16, 40)) * np.logspace(-3, 3, 40)).astype(np.float32)
    with Scratch(tmp_path) as scratch:
        rounded = round_channels(weight, (1,), scratch)
    assert np.all(np.abs(rounded.values * rounded.scales - weight) <= rounded.scales * 0.5001)
    assert np.abs(rounded.values).max() == 127


def test_int8_of_zeros(tmp_path: Path) -> None:
    with Scratch(tmp_path) as scratch:
        rounded = round_channels(np.zeros((3, 4), np.float32), (0,), scratch)
    assert not rounded.values.any()
    assert np.isfinite(rounded.scales).all()


def test_nibbles_are_packed_low_half_first() -> None:
    packed = pack_nibbles(np.array([[1, 2, 3]], np.uint8))
    assert packed.tolist() == [[0x21, 0x03]]


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_packed_nibbles_come_back(count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 16, (3, count), dtype=np.uint8)
    np.testing.assert_array_equal(unpack_nibbles(pack_nibbles(values), count), values)


@pytest.mark.parametrize(("bits", "symmetric", "error"), [(4, False, 0.01), (4, True, 0.02), (8, True, 1e-4)])
def test_a_grid_covers_its_block(
    bits: int, symmetric: bool, error: float, generator: np.random.Generator
) -> None:
    weight = generator.standard_normal((64, 9)).astype(np.float32)
    grid = searched(weight, bits=bits, symmetric=symmetric)
    steps = nearest(weight, grid)
    assert relative_error(weight, restored(steps, grid)) < error
    values = steps + np.repeat(grid.zeros, BLOCK, axis=0)
    assert values.min() >= 0
    assert values.max() <= (1 << bits) - 1
    if symmetric:
        assert (grid.zeros == 1 << (bits - 1)).all()


def test_codes_of_scales_are_bytes_and_rows_may_differ_much(generator: np.random.Generator) -> None:
    weight = (generator.standard_normal((128, 6)) * np.logspace(-6, 6, 6)).astype(np.float32)
    grid = searched(weight)
    assert grid.codes.min() >= 1
    assert grid.codes.max() <= 255
    assert (grid.codes == np.rint(grid.codes)).all()
    for row in range(6):  # none drowns in the scale of another
        assert relative_error(weight[:, row], restored(nearest(weight, grid), grid)[:, row]) < 0.02


def test_a_grid_keeps_zero_exact(generator: np.random.Generator) -> None:
    weight = generator.standard_normal((64, 4)).astype(np.float32) + 5
    weight[::3] = 0
    grid = searched(weight)
    assert not restored(nearest(weight, grid), grid)[::3].any()


def test_a_block_of_zeros_stays_so() -> None:
    weight = np.zeros((64, 2), np.float32)
    weight[:32, 0] = 1.0
    grid = searched(weight)
    found = restored(nearest(weight, grid), grid)
    assert np.isfinite(found).all()
    assert not found[32:].any()
    assert not found[:, 1].any()


def test_searched_ranges_beat_the_full_range(generator: np.random.Generator) -> None:
    weight = generator.standard_t(3, (128, 64)).astype(np.float32)  # heavy tails
    blocks = weight.reshape(-1, BLOCK, 64)
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    scale = (high - low) / 15
    zero = np.rint(-low / scale)
    plain = (np.clip(np.rint(blocks / scale) + zero, 0, 15) - zero) * scale
    grid = searched(weight)
    found = restored(nearest(weight, grid), grid)
    assert relative_error(weight, found) < relative_error(weight, plain.reshape(weight.shape))


def test_importance_spares_the_columns_that_matter(generator: np.random.Generator) -> None:
    weight = generator.standard_t(3, (64, 64)).astype(np.float32)
    importance = np.full(64, 0.01, np.float32)
    importance[:8] = 10
    grids = [
        search(weight, costs, bits=4, block=BLOCK, symmetric=False)
        for costs in (np.ones(64, np.float32), importance)
    ]
    errors = [np.square(restored(nearest(weight, grid), grid) - weight)[:8].sum() for grid in grids]
    assert errors[1] < errors[0]


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([16, 48, 64, 200]), st.sampled_from([16, 32, 128]), st.booleans(), st.integers(0, 2**16)
)
def test_feedback_is_never_worse_than_plain_rounding(
    columns: int, block: int, symmetric: bool, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((columns, 24)).astype(np.float32)
    prepared = metric(correlated(generator, columns), 0.01)
    assert prepared is not None
    padding = -columns % block
    padded = np.pad(weight, ((0, padding), (0, 0)))
    costs = np.pad(prepared.importance, (0, padding))
    grid = search(padded, costs, bits=4, block=block, symmetric=symmetric)
    plain = cost(restored(nearest(padded, grid), grid)[:columns] - weight, prepared.moments).sum()
    [steps] = propagate(weight, [grid], prepared)
    spread = cost(restored(steps, grid) - weight, prepared.moments).sum()
    descend(weight, steps, grid, prepared, 2)
    final = cost(restored(steps, grid) - weight, prepared.moments).sum()
    assert final <= spread * (1 + 1e-4)
    assert final <= plain * (1 + 1e-4)


@pytest.mark.parametrize("columns", [64, 300])
def test_gptq_lowers_the_error_of_the_output(columns: int, generator: np.random.Generator) -> None:
    weight = generator.standard_normal((columns, 48)).astype(np.float32)
    prepared = metric(correlated(generator, columns), 0.01)
    assert prepared is not None
    padded = np.pad(weight, ((0, -columns % BLOCK), (0, 0)))
    grid = searched(padded)
    [steps] = propagate(weight, [grid], prepared)
    plain = cost(restored(nearest(padded, grid), grid)[:columns] - weight, prepared.moments).sum()
    assert cost(restored(steps, grid) - weight, prepared.moments).sum() < 0.7 * plain


def test_formats_side_by_side_are_as_if_alone(generator: np.random.Generator) -> None:
    weight = generator.standard_normal((128, 16)).astype(np.float32)
    prepared = metric(correlated(generator, 128), 0.01)
    assert prepared is not None
    grids = [searched(weight, block=block, symmetric=block == 16) for block in (16, 32, 128)]
    together = propagate(weight, grids, prepared)
    for grid, steps in zip(grids, together, strict=True):
        alone = propagate(weight, [grid], prepared)[0]
        assert np.mean(steps != alone) < 0.01  # products of other widths may differ in the last bit


def test_the_factor_is_of_the_inverse(generator: np.random.Generator) -> None:
    moments = correlated(generator, 40)
    prepared = metric(moments, 0.01)
    assert prepared is not None
    pivots = 1 / np.sqrt(prepared.importance[prepared.order])
    upper = prepared.factor * pivots[:, None]
    inverse = np.linalg.inv(prepared.moments.astype(np.float64))[np.ix_(prepared.order, prepared.order)]
    np.testing.assert_allclose(upper.T @ upper, inverse, rtol=1e-3, atol=1e-5 * np.abs(inverse).max())


@pytest.mark.parametrize("moments", [np.zeros((32, 32)), np.full((32, 32), np.nan), -np.eye(32)])
def test_moments_without_inverse_are_refused(moments: np.ndarray) -> None:
    assert metric(moments.astype(np.float32), 0.01) is None
