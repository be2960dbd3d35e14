"""Whether a built artifact is good enough for a class: pure, with the reason in words."""

from __future__ import annotations

import msgspec

from quantize_worker.contract import QualityReport, Target


class Verdict(msgspec.Struct, kw_only=True, frozen=True):
    accepted: bool
    reason: str


def judge(*, quality: QualityReport, size_bytes: int, target: Target) -> Verdict:
    """Hold what was measured against the class's floor and storage budget.

    Args:
        quality: measured against the FP32 source on the evaluation set.
        size_bytes: of the artifact, installed.
        target: the class as it was when the build was asked for.
    """
    figures = f"{quality.metric} {quality.value:.4f} on {quality.samples} samples"
    if not quality.value >= target.quality_floor:  # also refuses NaN
        return Verdict(accepted=False, reason=f"{figures} is below the floor {target.quality_floor:.4f}")
    if size_bytes > target.storage_bytes:
        return Verdict(
            accepted=False,
            reason=f"{size_bytes:,} bytes are more than the class's storage budget {target.storage_bytes:,}",
        )
    return Verdict(accepted=True, reason=f"{figures} holds the floor {target.quality_floor:.4f}")
