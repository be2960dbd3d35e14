"""Progress on standard error: one line with a bar on a terminal, else a line per step."""

from __future__ import annotations

import shutil
from typing import TextIO

BAR_WIDTH = 24
_CLEAR = "\r\x1b[K"


class Progress:
    """What runs now.

    Args:
        stream: where to write.
        bar: whether to redraw one line (a terminal) or to write a line per step.
    """

    def __init__(self, stream: TextIO, *, bar: bool) -> None:
        self._stream, self._bar = stream, bar
        self._last: tuple[str, str] | None = None
        self._drawn = ""

    def step(self, subject: str, step: str, share: float) -> None:
        """Called with each report of the engine: ``share`` of ``subject`` done, in [0, 1]."""
        if self._bar:
            self._draw(f"{subject:<8}{_bar(share)} {100 * share:3.0f} %  {step}")
        elif (subject, step) != self._last:
            print(f"{subject}: {step} ({100 * share:.0f} %)", file=self._stream, flush=True)
        self._last = (subject, step)

    def end(self) -> None:
        """Take the bar away."""
        if self._drawn:
            self._stream.write(_CLEAR)
            self._stream.flush()
            self._drawn = ""

    def _draw(self, line: str) -> None:
        line = line[: shutil.get_terminal_size().columns - 1]
        if line != self._drawn:
            self._stream.write(_CLEAR + line)
            self._stream.flush()
            self._drawn = line


def _bar(share: float) -> str:
    full = round(BAR_WIDTH * min(max(share, 0.0), 1.0))
    return "█" * full + "░" * (BAR_WIDTH - full)
