"""Waiting times, with jitter so that a fleet does not come back all at once."""

from __future__ import annotations

from collections.abc import Callable

JITTER = 0.2
SHORTEST_INTERVAL_S = 0.2
LONGEST_INTERVAL_S = 86_400.0


def jittered(interval_s: float, draw: Callable[[], float]) -> float:
    """``interval_s`` times [0.8 .. 1.2], within what any server may ask for.

    Args:
        interval_s: seconds; what the server set.
        draw: uniform in [0, 1).
    """
    bounded = min(max(interval_s, SHORTEST_INTERVAL_S), LONGEST_INTERVAL_S)
    return bounded * (1.0 - JITTER + 2.0 * JITTER * draw())


class Backoff:
    """Exponential waiting with full jitter on its upper half.

    Args:
        draw: uniform in [0, 1).
        base_s: first wait.
        ceiling_s: longest wait.
    """

    def __init__(self, draw: Callable[[], float], *, base_s: float = 0.5, ceiling_s: float = 60.0) -> None:
        self._draw = draw
        self._base_s = base_s
        self._ceiling_s = ceiling_s
        self.failures = 0

    def next_s(self) -> float:
        """Count a failure and say how long to wait."""
        wait = min(self._base_s * 2.0 ** min(self.failures, 30), self._ceiling_s)
        self.failures += 1
        return wait * (0.5 + 0.5 * self._draw())

    def reset(self) -> None:
        """It worked again."""
        self.failures = 0
