"""Progress of a step as progress of the job."""

from __future__ import annotations

import time
from collections.abc import Callable

from quantize_worker.steps.exchange import Report, Step

REPORT_S = 1.0


def shares(report: Report, step: str, start: float, end: float) -> Callable[[float], None]:
    """A callback that reports shares of a step as shares of the job, once a second at most."""
    report(Step(step=step, share=start))
    last = time.monotonic()

    def on_share(share: float) -> None:
        nonlocal last
        if time.monotonic() - last > REPORT_S:
            last = time.monotonic()
            report(Step(step=step, share=start + (end - start) * min(max(share, 0.0), 1.0)))

    return on_share
