"""What was predicted for a build against what was measured, in words for a report. Pure."""

from __future__ import annotations

from quantize_worker.contract import ArtifactDescription, QualityReport, TailorPlan

CLOSE = 0.005  # relative; nearer figures count as equal


def differences(plan: TailorPlan, artifact: ArtifactDescription, quality: QualityReport) -> list[str]:
    """A sentence per figure: size, quality loss, memory and latency.

    Memory and latency are predicted for the class's devices and measured on the worker, so they differ
    for that reason too. A figure that was not predicted is left out.
    """
    found = [
        _in_bytes("Size", plan.predicted_size_bytes, artifact.size_bytes),
        _loss(plan, quality),
        _in_bytes("Memory", plan.predicted_memory_bytes, artifact.memory_bytes),
        _latency(plan.predicted_latency_ms, artifact.latency_p50_ms),
    ]
    return [sentence for sentence in found if sentence]


def relative_error(predicted: float, measured: float) -> float:
    """(measured - predicted) / predicted; 0 where both are 0, infinite where only the prediction is."""
    if predicted:
        return (measured - predicted) / predicted
    return 0.0 if measured == 0 else float("inf")


def _in_bytes(what: str, predicted: int, measured: int) -> str:
    if not predicted:
        return ""
    return f"{what}: {predicted / 1e6:.2f} MB predicted, {measured / 1e6:.2f} MB measured{_by(predicted, measured)}."


def _loss(plan: TailorPlan, quality: QualityReport) -> str:
    """Of quality, as a share of FP32's: 1 - cosine, or the share of accuracy that is gone."""
    word = "accuracy lost" if quality.metric == "accuracy" else "1 - cosine"
    predicted, measured = 1.0 - plan.predicted_quality, 1.0 - quality.value
    seen = f" on {quality.samples} samples"
    if quality.confidence is not None:
        seen += f", enough to tell at {quality.confidence:.1%} confidence"
    return (
        f"Quality: {word} {predicted:.5f} predicted, {measured:.5f} measured{_by(predicted, measured)}{seen}."
    )


def _latency(predicted: float, measured: float) -> str:
    if not predicted:
        return ""
    return (
        f"Latency: {predicted:.2f} ms predicted, {measured:.2f} ms on the worker{_by(predicted, measured)}."
    )


def _by(predicted: float, measured: float) -> str:
    share = relative_error(predicted, measured)
    if abs(share) < CLOSE:
        return " (as predicted)"
    if share == float("inf"):
        return " (none was predicted)"
    return (
        f" ({abs(share):.0%} {'more' if share > 0 else 'less'})" if abs(share) >= 0.01 else f" ({share:+.1%})"
    )
