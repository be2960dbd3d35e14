"""The report as data: what the engine answers, with what a reader asks next."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from quantize_worker.contract import (
    MeasuredBuild,
    ModelFacts,
    ParetoPoint,
    SourceFile,
    TailorPlan,
    Target,
)
from quantize_worker.engine import Attempt, Tailored, TailorReport
from quantize_worker.plan import Nearest, Rejection, consider, describe

RECORD_FORMAT = 1
REPORT_JSON, REPORT_HTML = "report.json", "report.html"


class ClassRecord(msgspec.Struct, kw_only=True, frozen=True):
    """What became of one class.

    ``formats`` is the share of the layers' weights per format of the last plan. ``unused`` are
    precisions that the class accepts and does not get. ``nearest`` says what would do for a class
    without a build. ``files`` are the build's, with their digests.
    """

    target: Target
    outcome: Literal["built", "impossible", "failed"]
    reason: str
    unverified: bool
    description: str = ""
    formats: dict[str, float] = {}
    plan: TailorPlan | None = None
    attempts: list[Attempt] = []
    unused: list[Rejection] = []
    nearest: Nearest | None = None
    pareto: list[ParetoPoint] = []
    files: list[SourceFile] = []

    @property
    def last(self) -> Attempt | None:
        """The attempt that counts: the accepted one, or the last that was rejected."""
        return self.attempts[-1] if self.attempts else None


class Record(msgspec.Struct, kw_only=True, frozen=True):
    """A whole tailoring."""

    format: int
    model: str
    source: list[SourceFile]
    seconds: float
    facts: ModelFacts
    classes: list[ClassRecord]


def record(report: TailorReport, classes: Sequence[ClassRecord], *, model: str) -> Record:
    return Record(
        format=RECORD_FORMAT,
        model=model,
        source=report.source,
        seconds=report.seconds,
        facts=report.facts,
        classes=list(classes),
    )


def class_record(facts: ModelFacts, each: Tailored, folder: Path) -> ClassRecord:
    """The record of one class.

    Args:
        folder: of its build; it need not exist.
    """
    outcome = consider(facts, each.target, _measured(each.attempts))
    return ClassRecord(
        target=each.target,
        outcome=each.outcome,
        reason=each.reason,
        unverified=facts.synthetic_samples,
        description=describe(each.plan.recipe, facts) if each.plan else "",
        formats=_shares(facts, each.plan) if each.plan else {},
        plan=each.plan,
        attempts=each.attempts,
        unused=outcome.rejections,
        nearest=None if each.outcome == "built" else outcome.nearest,
        pareto=each.pareto,
        files=_files(folder),
    )


def _measured(attempts: Sequence[Attempt]) -> list[MeasuredBuild]:
    return [
        MeasuredBuild(
            recipe=attempt.plan.recipe, quality=attempt.quality.value, cosine=attempt.quality.cosine
        )
        for attempt in attempts
        if attempt.quality is not None
    ]


def _shares(facts: ModelFacts, plan: TailorPlan) -> dict[str, float]:
    """Share of the weights per format, the largest first; weights that layers share count once."""
    formats = {choice.layer: choice.format for choice in plan.choices}
    weights = {layer.weight or layer.name: layer for layer in facts.layers}
    totals: dict[str, float] = {}
    for layer in weights.values():
        name = formats.get(layer.name, "fp32")
        totals[name] = totals.get(name, 0.0) + layer.parameters
    whole = sum(totals.values()) or 1.0
    return {name: totals[name] / whole for name in sorted(totals, key=lambda name: (-totals[name], name))}


def _files(folder: Path) -> list[SourceFile]:
    if not folder.is_dir():
        return []
    return [
        SourceFile(
            path=path.relative_to(folder).as_posix(), sha256=_sha256(path), size_bytes=path.stat().st_size
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != REPORT_JSON
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
