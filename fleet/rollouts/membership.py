"""Who is in a rollout: a rule of salt, device and threshold, not rows. Pure.

A device's cohort value is fixed for a rollout and spread evenly over [0, 1); it is in while the
value lies below the threshold of its class's track. Opening a group raises the threshold.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

EVERYBODY = 1.0  # cohort values are below it


def cohort(*, salt: str, device_id: str) -> float:
    """The device's value in [0, 1): the first eight bytes of SHA-256 over salt and device id."""
    digest = hashlib.sha256(f"{salt}{device_id}".encode()).digest()
    # Values next to 1 would round up to it and belong to nobody.
    return min(int.from_bytes(digest[:8], "big") / 2**64, math.nextafter(1.0, 0.0))


def threshold_for(*, share: float, minimum: int, cohorts: Sequence[float], current: float = 0.0) -> float:
    """The threshold of a group: its share, but enough for ``minimum`` devices, and never less than now.

    Args:
        share: of the class's devices, in (0, 1].
        minimum: devices that the group should have at least, if there are so many.
        cohorts: values of the class's matching devices, in any order.
        current: threshold of the group before.
    """
    threshold = max(share, current)
    if minimum > 0 and cohorts:
        last = sorted(cohorts)[min(minimum, len(cohorts)) - 1]
        threshold = max(threshold, math.nextafter(last, math.inf))
    return min(threshold, EVERYBODY)


def keeps_offer(
    *, rollout_state: str, track_state: str, admitted: bool, assignment_state: str | None
) -> bool:
    """Whether a device may have the rollout's build now.

    What is active stays active unless the rollout was rolled back; what failed is not offered
    again (an operator's retry makes it "offered"). While rollout or track are paused, and after
    a cancellation, nobody new is let in and who has not finished loses the offer.

    Args:
        admitted: the device matches and its cohort value is below the track's threshold.
        assignment_state: None where the device has not acted yet.
    """
    if rollout_state in ("draft", "rolled_back") or track_state == "rolled_back":
        return False
    if assignment_state == "active":
        return True
    if assignment_state in ("failed", "rolled_back"):
        return False
    open_rollout = rollout_state in ("running", "finished")
    open_track = track_state in ("running", "soaking", "finished")
    return admitted and open_rollout and open_track
