"""Latency histograms: merged, and quantiles read off them."""

from __future__ import annotations

import itertools
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.protocol.messages import LATENCY_BUCKET_BOUNDS_MS as BOUNDS
from fleet.telemetry.health import BUCKETS, error_ratio, merge, quantile


def histogram(*latencies_ms: float) -> list[int]:
    counts = [0] * BUCKETS
    for latency in latencies_ms:
        counts[next((i for i, bound in enumerate(BOUNDS) if latency <= bound), len(BOUNDS))] += 1
    return counts


def test_nothing_measured_has_no_quantile() -> None:
    assert quantile(merge([]), 0.5) is None
    assert error_ratio(requests=0, errors=0) is None


def test_merge_adds_up() -> None:
    assert merge([histogram(1, 2), histogram(2, 50)]) == histogram(1, 2, 2, 50)


def test_merge_refuses_another_form() -> None:
    with pytest.raises(ValueError, match=f"3 buckets, expected {BUCKETS}"):
        merge([[1, 2, 3]])


@pytest.mark.parametrize("q", [0.0, 0.5, 0.95, 1.0])
def test_one_bucket_gives_a_value_inside_it(q: float) -> None:
    value = quantile(histogram(7.0, 7.0, 7.0), q)
    assert value is not None
    assert 5.6 < value <= 8.0


def test_below_the_first_bound() -> None:
    value = quantile(histogram(0.1), 0.5)
    assert value is not None
    assert 0 < value <= BOUNDS[0]


def test_beyond_the_last_bound_is_at_least_that() -> None:
    assert quantile(histogram(20_000, 30_000), 0.5) == BOUNDS[-1]


@settings(deadline=None)
@given(st.lists(st.floats(0.3, 15_000), min_size=1, max_size=200))
def test_a_quantile_is_within_its_bucket(latencies: list[float]) -> None:
    counts = histogram(*latencies)
    median = statistics.quantiles([*latencies, *latencies], n=2)[0] if latencies else 0
    found = quantile(counts, 0.5)
    assert found is not None
    lower = min(sorted(latencies)[(len(latencies) - 1) // 2], median)
    upper = max(sorted(latencies)[len(latencies) // 2], median)
    step = 2**0.5
    assert lower / step <= found * (1 + 1e-9)
    assert found <= upper * step * (1 + 1e-9)


@settings(deadline=None)
@given(st.lists(st.floats(0.3, 20_000), min_size=1, max_size=50))
def test_quantiles_rise(latencies: list[float]) -> None:
    values = [quantile(histogram(*latencies), q / 20) or 0 for q in range(21)]
    assert all(before <= after for before, after in itertools.pairwise(values))


def test_error_ratio() -> None:
    assert error_ratio(requests=8, errors=2) == 0.25
