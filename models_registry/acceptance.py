"""Whether a built artifact is good enough for a class: pure, with the reason in words."""

from __future__ import annotations

import math

import msgspec

from quantize_worker.contract import QualityReport, Target

FEW_SAMPLES = 16


class Verdict(msgspec.Struct, kw_only=True, frozen=True):
    accepted: bool
    reason: str


def judge(
    *,
    quality: QualityReport,
    size_bytes: int,
    target: Target,
    memory_bytes: int = 0,
    available: int = 0,
    generated: bool = False,
) -> Verdict:
    """Hold what was measured against the class's floor and its storage and memory budgets.

    Args:
        quality: measured against the FP32 source on the evaluation set.
        size_bytes: of the artifact, installed.
        target: the class as it was when the build was asked for.
        memory_bytes: peak of running it; 0: unknown.
        available: samples in the whole evaluation set.
        generated: there is no evaluation set, samples were made up.
    """
    figures = f"{_figure(quality)} on {_samples(quality, available, generated)}"
    floor = f"{target.quality_floor:g}"
    if quality.metric == "accuracy":
        figures, floor = f"{figures},", f"{100 * target.quality_floor:.6g} %"
    if not quality.value >= target.quality_floor:  # also refuses NaN
        return Verdict(accepted=False, reason=f"{figures} is below the floor {floor}")
    if size_bytes > target.storage_bytes:
        return Verdict(
            accepted=False,
            reason=f"{size_bytes:,} bytes are more than the class's storage budget {target.storage_bytes:,}",
        )
    if memory_bytes > target.memory_bytes:
        return Verdict(
            accepted=False,
            reason=f"{memory_bytes:,} bytes of memory are more than the class's budget {target.memory_bytes:,}",
        )
    return Verdict(accepted=True, reason=f"{figures} holds the floor {floor}")


def _figure(quality: QualityReport) -> str:
    """What was measured; an accuracy with what it is a share of."""
    if quality.metric != "accuracy":
        note = "" if quality.source_accuracy is None else " (FP32 matches none of the labels)"
        return f"cosine {_cut(quality.value, 4)}{note}"
    share = f"{_cut(100 * quality.value, 1)} % of FP32's"
    if quality.accuracy is None or quality.source_accuracy is None:
        return f"{share} accuracy,"
    return f"accuracy {quality.accuracy:.3f}, {share} {quality.source_accuracy:.3f},"


def _cut(value: float, digits: int) -> str:
    """Rounded down, so that what is below a floor never reads as if it held it."""
    if not math.isfinite(value):
        return str(value)
    scale = 10**digits
    return f"{math.floor(value * scale + 1e-6) / scale:.{digits}f}"


def _samples(quality: QualityReport, available: int, generated: bool) -> str:
    measured = quality.samples
    number = f"{measured} of {available}" if available > measured else f"{measured}"
    notes = ["unverified: generated inputs"] * generated + ["few samples"] * (measured < FEW_SAMPLES)
    if quality.confidence is not None:
        notes.append(f"enough for {100 * quality.confidence:.6g} % confidence")
    return f"{number} samples" + (f" ({', '.join(notes)})" if notes else "")
