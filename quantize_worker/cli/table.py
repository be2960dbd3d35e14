"""What became of the classes: a table for people, an object for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from quantize_worker.engine import Tailored, TailorReport
from quantize_worker.plan import describe
from quantize_worker.planning.words import in_bytes, in_ms

HEADINGS = ("class", "outcome", "size", "quality", "memory", "latency", "formats", "reason")
RIGHT = (2, 3, 4, 5)
NOTHING = "-"


def table(report: TailorReport) -> str:
    """One line per class, and what the reader must know to judge it."""
    rows = [HEADINGS, *(_row(report, each) for each in report.tailored)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    return "\n".join([*(_line(row, widths) for row in rows), *_notes(report)])


def summary(report: TailorReport) -> dict[str, Any]:
    """The figures of all classes, as plain JSON types."""
    return {
        "unverified": report.facts.synthetic_samples,
        "seconds": round(report.seconds, 3),
        "classes": [_figures(report, each) for each in report.tailored],
    }


def _row(report: TailorReport, each: Tailored) -> tuple[str, ...]:
    floor = f"(floor {each.target.quality_floor:g})"
    attempt = each.attempts[-1] if each.attempts else None
    if each.plan is None or attempt is None or attempt.quality is None:
        return (each.target.name, each.outcome, NOTHING, f"- {floor}", NOTHING, NOTHING, NOTHING, each.reason)
    return (
        each.target.name,
        each.outcome,
        in_bytes(attempt.size_bytes),
        f"{attempt.quality.value:.4f} {floor}",
        in_bytes(attempt.memory_bytes),
        in_ms(attempt.latency_ms),
        describe(each.plan.recipe, report.facts),
        each.reason,
    )


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.rjust(width) if column in RIGHT else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _notes(report: TailorReport) -> Iterator[str]:
    if report.facts.synthetic_samples:
        yield "Unverified: there is no evaluation set; quality is measured on generated inputs."
    emulated = [each.target.name for each in report.tailored if each.target.emulated]
    if emulated:
        yield f"Emulated: the CPU stands in for the accelerator of {', '.join(emulated)}."


def _figures(report: TailorReport, each: Tailored) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": each.target.name,
        "outcome": each.outcome,
        "reason": each.reason,
        "folder": each.folder,
        "quality_floor": each.target.quality_floor,
        "emulated": each.target.emulated,
        "attempts": len(each.attempts),
    }
    if each.plan is not None and each.attempts and each.attempts[-1].quality is not None:
        attempt, quality = each.attempts[-1], each.attempts[-1].quality
        found |= {
            "formats": describe(each.plan.recipe, report.facts),
            "size_bytes": attempt.size_bytes,
            "metric": quality.metric,
            "quality": quality.value,
            "cosine": quality.cosine,
            "memory_bytes": attempt.memory_bytes,
            "latency_ms": attempt.latency_ms,
            "provider": attempt.provider,
        }
    return found
