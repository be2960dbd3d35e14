"""Summaries of what devices measured: latency histograms that can be merged, and quantiles of them.

Bucket i counts requests that took at most ``LATENCY_BUCKET_BOUNDS_MS[i]`` and longer than the
bound before; one more bucket is open upwards. Bounds are a factor of 2**(1/2) apart, so that a
quantile read off a bucket is within 19 % of the true one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from device_agent.protocol.messages import LATENCY_BUCKET_BOUNDS_MS

BUCKETS = len(LATENCY_BUCKET_BOUNDS_MS) + 1


def merge(histograms: Iterable[Sequence[int]]) -> list[int]:
    """The sum of histograms; an empty input gives an empty histogram.

    Raises:
        ValueError: if one has another number of buckets than this version's.
    """
    total = [0] * BUCKETS
    for histogram in histograms:
        if len(histogram) != BUCKETS:
            raise ValueError(f"a latency histogram has {len(histogram)} buckets, expected {BUCKETS}")
        for index, count in enumerate(histogram):
            total[index] += count
    return total


def quantile(histogram: Sequence[int], q: float) -> float | None:
    """The latency in ms below which a share ``q`` of the requests lies.

    Interpolated geometrically inside its bucket. A quantile in the open bucket is given as that
    bucket's lower bound (it is at least that). None where nothing was counted: no evidence is
    not "fast".
    """
    total = sum(histogram)
    if total == 0:
        return None
    rank = q * total
    below = 0
    for index, count in enumerate(histogram):
        if count and below + count >= rank:
            return _inside(index, (rank - below) / count)
        below += count
    return LATENCY_BUCKET_BOUNDS_MS[-1]


def _inside(index: int, share: float) -> float:
    """A point in bucket ``index``, ``share`` of its way from the lower to the upper bound."""
    if index >= len(LATENCY_BUCKET_BOUNDS_MS):
        return LATENCY_BUCKET_BOUNDS_MS[-1]
    upper = LATENCY_BUCKET_BOUNDS_MS[index]
    lower = LATENCY_BUCKET_BOUNDS_MS[index - 1] if index else upper / math.sqrt(2)
    return lower * (upper / lower) ** min(max(share, 0.0), 1.0)


def error_ratio(*, requests: int, errors: int) -> float | None:
    """Errors per request; None where there were no requests."""
    return errors / requests if requests else None
