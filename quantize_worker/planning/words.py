"""Figures in words."""

from __future__ import annotations

import math

SMALLEST_LOSS = 1e-6  # below, losses are not told apart


def in_bytes(count: float) -> str:
    """Bytes in the unit that reads best, from B to GB (decimal)."""
    for unit, size, digits in (("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 1)):
        if count >= size:
            return f"{count / size:.{digits}f} {unit}"
    return f"{count:.0f} B"


def in_ms(milliseconds: float) -> str:
    """Milliseconds with three digits that count."""
    return f"{_significant(milliseconds, 3)} ms"


def in_mwh(energy: float) -> str:
    """Milliwatt-hours with three digits that count."""
    return f"{_significant(energy, 3)} mWh"


def in_loss(loss: float) -> str:
    """A loss of quality with two digits that count."""
    if loss <= SMALLEST_LOSS:
        return "no loss" if loss <= 0 else f"less than {SMALLEST_LOSS:.6f} of loss"
    return f"{_significant(loss, 2)} of loss"


def needed_words(budget: str, value: float) -> str:
    """A need in its budget's own unit."""
    if budget in ("latency", "energy"):
        return in_ms(value) if budget == "latency" else in_mwh(value)
    return in_bytes(value)


def _significant(value: float, digits: int) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 9)}f}"
