"""What the demo prints: progress lines and the closing table."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


class Log:
    """Progress lines with the seconds since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def __call__(self, text: str) -> None:
        print(f"[{self.seconds:5.1f} s] {text}", flush=True)


@dataclass(frozen=True)
class Row:
    """One device class in the closing table."""

    class_name: str
    precision: str
    description: str  # the mix of precisions in words
    size_bytes: int
    quality: float
    latency_p50_ms: float
    devices: int
    state: str

    def as_json(self) -> dict[str, Any]:
        return {
            "class": self.class_name,
            "precision": self.precision,
            "build": self.description,
            "size_bytes": self.size_bytes,
            "quality": round(self.quality, 4),
            "latency_p50_ms": round(self.latency_p50_ms, 2),
        }


def table(rows: list[Row], source_bytes: int) -> str:
    """The closing table as text."""
    lines = [
        f"{'class':<14}{'build':<34}{'size':>9}{'of FP32':>9}{'quality':>9}{'p50 latency':>13}{'devices':>9}  state",
        "-" * 107,
    ]
    for row in rows:
        lines.append(
            f"{row.class_name:<14}{row.description[:33]:<34}{row.size_bytes / 1e6:>6.1f} MB"
            f"{row.size_bytes / source_bytes:>8.0%} {row.quality:>8.4f}{row.latency_p50_ms:>10.1f} ms"
            f"{row.devices:>9}  {row.state}"
        )
    lines.append(
        "quality: mean cosine to FP32 on held-out docstrings; latency: median of the device's own self-test, one\n"
        "sentence at a time. All phones are emulated: NPU and GPU classes ran on this machine's CPU."
    )
    return "\n".join(lines)
