"""Tailor a model to device classes on this machine, without any server.

The same steps as the service's, in the same sandbox: one job inspects, planning is pure, one job
builds all recipes of a round. A build below its class's floor is replanned once with what was
measured; then the most careful plan, if there is one, is tried; then the class is reported.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from quantize_worker import storage
from quantize_worker.contract import (
    AnalysisFile,
    MeasuredBuild,
    ModelFacts,
    ParetoPoint,
    QualityReport,
    Recipe,
    SourceFile,
    TailorPlan,
    Target,
)
from quantize_worker.errors import BuildFailed, ModelRefused, WorkerError
from quantize_worker.plan import consider, pareto
from quantize_worker.sandbox import Sandbox
from quantize_worker.steps.confinement import Limits
from quantize_worker.steps.exchange import (
    ARTIFACT_FOLDER,
    CALIBRATION_FILE,
    EVALUATION_FILE,
    FIRST_STAGE,
    SOURCE_FOLDER,
    Built,
    Job,
    Step,
)

logger = logging.getLogger(__name__)

ROUNDS = 3  # the plan, the plan corrected by what was measured, the most careful one
WALL_S = 6 * 3600.0
PARETO_POINTS = 50

OnStep = Callable[[str, str, float], None]  # subject, step, share


class Attempt(msgspec.Struct, kw_only=True):
    """One build for a class: what was predicted is in ``plan``, what was measured beside it."""

    plan: TailorPlan
    verdict: Literal["accepted", "rejected", "failed"]
    reason: str
    quality: QualityReport | None = None
    size_bytes: int = 0
    memory_bytes: int = 0
    latency_ms: float = 0.0
    provider: str = ""
    seconds: float = 0.0


class Tailored(msgspec.Struct, kw_only=True):
    """What became of one class. ``folder`` holds model.onnx, model.data and golden.npz if built."""

    target: Target
    plan: TailorPlan | None = None
    attempts: list[Attempt] = []
    outcome: Literal["built", "impossible", "failed"] = "impossible"
    reason: str = ""
    folder: str = ""
    pareto: list[ParetoPoint] = []


class TailorReport(msgspec.Struct, kw_only=True):
    facts: ModelFacts
    tailored: list[Tailored]
    seconds: float
    source: list[SourceFile]


class Workbench:
    """One model on this machine: its files, its analysis and its builds, in one folder.

    Args:
        folder: an empty folder, removed by the caller.
        sandbox: where everything that parses runs.
        memory_bytes: what one job may use.
        on_step: called with subject, step and share while a job runs.
        stop: set by another thread to end the running job.
    """

    def __init__(
        self,
        folder: Path,
        sandbox: Sandbox,
        *,
        memory_bytes: int,
        on_step: OnStep = lambda subject, step, share: None,
        stop: threading.Event | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self._sandbox, self._on_step = sandbox, on_step
        self._limits = Limits(wall_s=WALL_S, memory_bytes=memory_bytes)
        self._stop = stop or threading.Event()
        self.files: list[SourceFile] = []
        self.analysis: list[AnalysisFile] = []

    def inspect(
        self, source: Path, *, calibration: Path | None = None, evaluation: Path | None = None
    ) -> ModelFacts:
        """Take a model in and find out what planning needs.

        Args:
            source: an ``.onnx`` file (external data beside it is taken along), or a folder.
            calibration, evaluation: ``.npz`` files, inputs by name and optional ``labels``.

        Raises:
            ModelRefused: if the model or a set is at fault.
            WorkerError: if our side failed.
        """
        self.files = take_in(source, self.folder / SOURCE_FOLDER)
        for path, name in ((evaluation, EVALUATION_FILE), (calibration, CALIBRATION_FILE)):
            if path is not None:
                _copy(path, self.folder / name)
        job = Job(kind="inspect", files=self.files, limits=self._limits)
        outcome = self._sandbox.run(self.folder, job, self._step("inspect"), self._stop)
        if outcome.status == "refused":
            raise ModelRefused(outcome.code, outcome.message)
        if outcome.facts is None:
            raise BuildFailed(outcome.code or "worker_failed", outcome.message, fault="system")
        self.analysis = outcome.files
        return outcome.facts

    def build(
        self, facts: ModelFacts, recipes: Sequence[Recipe], floors: Sequence[Sequence[float]]
    ) -> list[Built]:
        """Build recipes, one entry each; their files are in :meth:`artifact` until the next call.

        Args:
            floors: per recipe, the quality floors of the classes that wait for it.
        """
        shutil.rmtree(self.folder / ARTIFACT_FOLDER, ignore_errors=True)
        job = Job(
            kind="build",
            files=self.files,
            limits=self._limits,
            facts=facts,
            recipes=list(recipes),
            floors=[list(each) for each in floors],
            stages=[FIRST_STAGE],
            chunked=False,
        )
        outcome = self._sandbox.run(self.folder, job, self._step("build"), self._stop)
        if len(outcome.builds) != len(recipes):
            raise BuildFailed(outcome.code or "worker_failed", outcome.message, fault="system")
        return outcome.builds

    def artifact(self, index: int) -> Path:
        return self.folder / ARTIFACT_FOLDER / str(index)

    def _step(self, subject: str) -> Callable[[Step], None]:
        return lambda step: self._on_step(subject, step.step, step.share)


def tailor(
    source: Path,
    targets: Sequence[Target],
    *,
    out: Path,
    sandbox: Sandbox,
    memory_bytes: int,
    work: Path,
    calibration: Path | None = None,
    evaluation: Path | None = None,
    learned: bool = False,
    on_step: OnStep = lambda subject, step, share: None,
    stop: threading.Event | None = None,
) -> TailorReport:
    """Make the best build for every class that can carry the model, under ``out/<class>/``.

    Args:
        source: an ``.onnx`` file or a folder (see :meth:`Workbench.inspect`).
        targets: the classes; their names must differ.
        out: an existing folder; a class's folder appears in it whole or not at all.
        work: where the job has its folder.
        learned: learn the rounding of INT4 weights (slower, closer).

    Raises:
        ModelRefused: if the model or a set is at fault.
        WorkerError: if our side failed.
    """
    started = time.monotonic()
    with storage.job_folder(work) as folder:
        bench = Workbench(folder, sandbox, memory_bytes=memory_bytes, on_step=on_step, stop=stop)
        facts = bench.inspect(source, calibration=calibration, evaluation=evaluation)
        tailored = [_planned(facts, target) for target in targets]
        rounds = _Rounds(bench, facts, out, learned=learned)
        for number in range(ROUNDS):
            if not rounds.run(tailored, number):
                break
        seconds = time.monotonic() - started
        return TailorReport(facts=facts, tailored=tailored, seconds=seconds, source=bench.files)


def _planned(facts: ModelFacts, target: Target) -> Tailored:
    outcome = consider(facts, target)
    return Tailored(
        target=target, reason=outcome.impossible, pareto=pareto(facts, target, points=PARETO_POINTS)
    )


class _Rounds:
    """Builds what the classes ask for, round by round; equal recipes are built once."""

    def __init__(self, bench: Workbench, facts: ModelFacts, out: Path, *, learned: bool) -> None:
        self._bench, self._facts, self._out, self._learned = bench, facts, out, learned
        self._measured: dict[str, MeasuredBuild] = {}

    def run(self, tailored: list[Tailored], number: int) -> bool:
        """One round; False if no class asked for a build."""
        wanted: dict[str, list[tuple[Tailored, TailorPlan]]] = {}
        for each in tailored:
            plan = self._next(each, number)
            if plan is not None:
                wanted.setdefault(_key(plan.recipe), []).append((each, plan))
        groups = list(wanted.values())
        if not groups:
            return False
        recipes = [group[0][1].recipe for group in groups]
        floors = [[each.target.quality_floor for each, _ in group] for group in groups]
        for index, built in enumerate(self._bench.build(self._facts, recipes, floors)):
            for each, plan in groups[index]:
                self._settle(each, plan, built, self._bench.artifact(index))
        return True

    def _next(self, each: Tailored, number: int) -> TailorPlan | None:
        """The plan to try next. The first round takes the first candidate, later ones replan."""
        if each.outcome == "built" or (number and not each.attempts):
            return None
        outcome = consider(self._facts, each.target, list(self._measured.values()) if number else ())
        tried = {_key(attempt.plan.recipe) for attempt in each.attempts}
        order = outcome.candidates if number < ROUNDS - 1 else outcome.candidates[::-1]
        plans = [self._as_asked(plan) for plan in order]
        return next((plan for plan in plans if _key(plan.recipe) not in tried), None)

    def _as_asked(self, plan: TailorPlan) -> TailorPlan:
        int4 = any(name.startswith("int4") for name in plan.recipe.layers.values())
        if not (self._learned and int4):
            return plan
        return msgspec.structs.replace(plan, recipe=msgspec.structs.replace(plan.recipe, learned=True))

    def _settle(self, each: Tailored, plan: TailorPlan, built: Built, folder: Path) -> None:
        attempt = _attempt(each.target, plan, built)
        each.attempts.append(attempt)
        if attempt.quality is not None:
            self._measured[_key(plan.recipe)] = MeasuredBuild(
                recipe=plan.recipe, quality=attempt.quality.value, cosine=attempt.quality.cosine
            )
        each.reason, each.plan = attempt.reason, plan
        if attempt.verdict == "accepted":
            each.outcome = "built"
            each.folder = each.target.name
            _deliver(folder, self._out / each.target.name)
        else:
            each.outcome = "failed" if attempt.verdict == "failed" else "impossible"


def _attempt(target: Target, plan: TailorPlan, built: Built) -> Attempt:
    if built.artifact is None or built.quality is None:
        return Attempt(plan=plan, verdict="failed", reason=built.message, seconds=built.seconds)
    quality, size = built.quality, built.artifact.size_bytes
    accepted, reason = _verdict(target, quality, size, built.artifact.memory_bytes)
    return Attempt(
        plan=plan,
        verdict="accepted" if accepted else "rejected",
        reason=reason + _remarks(target, quality, built.artifact.provider, built.artifact.latency_p50_ms),
        quality=quality,
        size_bytes=size,
        memory_bytes=built.artifact.memory_bytes,
        latency_ms=built.artifact.latency_p50_ms,
        provider=built.artifact.provider,
        seconds=built.seconds,
    )


def _verdict(target: Target, quality: QualityReport, size: int, memory: int) -> tuple[bool, str]:
    """Whether a build is good enough and fits, and why."""
    figure = f"{quality.metric} {quality.value:.4f}"
    if not quality.value >= target.quality_floor:  # NaN is not
        return False, f"{figure} is below the floor {target.quality_floor:g}"
    if size > target.storage_bytes:
        return False, f"{size:,} bytes are more than the class's storage budget {target.storage_bytes:,}"
    if memory > target.memory_bytes:
        return False, f"{memory:,} bytes of memory are more than the class's budget {target.memory_bytes:,}"
    return True, f"{figure} holds the floor {target.quality_floor:g}"


def _remarks(target: Target, quality: QualityReport, provider: str, latency_ms: float) -> str:
    """What a reader of the figures should know."""
    found = []
    if quality.metric == "cosine" and quality.source_accuracy is not None:
        found.append("FP32 matches none of the labels, so outputs were compared instead")
    if provider != target.execution_provider:
        found.append(f"measured on {provider}, for {target.execution_provider} is not on this machine")
    if target.latency_ms is not None and latency_ms > target.latency_ms:
        found.append(f"{latency_ms:.2f} ms here are over the class's {target.latency_ms:g} ms")
    return f" ({'; '.join(found)})" if found else ""


def take_in(source: Path, folder: Path) -> list[SourceFile]:
    """Copy a model's files under ``folder``, as an upload would bring them.

    An ``.onnx`` file brings the files beside it that could be its external data; which of them it
    names is found out in the sandbox.

    Raises:
        ModelRefused: missing_file.
    """
    if not source.exists():
        raise ModelRefused("missing_file", f"There is no {source}; give an .onnx file or a folder.")
    root = source if source.is_dir() else source.parent
    files = []
    for path in _members(source):
        relative = path.relative_to(root).as_posix()
        digest = _copy(path, folder / relative)
        files.append(SourceFile(path=relative, sha256=digest, size_bytes=path.stat().st_size))
    return sorted(files, key=lambda file: (file.path != source.name, file.path))


def _members(source: Path) -> Iterator[Path]:
    """Files of a source. Beside an ``.onnx`` file only those that its own bytes name are taken."""
    if source.is_dir():
        yield from (path for path in sorted(source.rglob("*")) if path.is_file())
        return
    yield source
    content = source.read_bytes()
    for path in sorted(source.parent.rglob("*")):
        if path != source and path.is_file() and path.suffix != ".onnx":
            relative = path.relative_to(source.parent).as_posix()
            if relative.encode() in content:
                yield path


def _copy(path: Path, destination: Path) -> str:
    """Link or copy a file; returns its SHA-256. The sandbox must not be able to change the original."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, destination)
    with destination.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _deliver(artifact: Path, destination: Path) -> None:
    """Copy a build to its class's folder: whole or not at all."""
    staged = destination.with_name(f".{destination.name}.part")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for path in storage.plain_files(artifact):  # the sandbox wrote them: links are not followed
        shutil.copyfile(path, staged / path.name, follow_symlinks=False)
    shutil.rmtree(destination, ignore_errors=True)
    os.replace(staged, destination)


def _key(recipe: Recipe) -> str:
    """Equal for recipes whose bytes are equal: who runs them makes no difference."""
    return msgspec.json.encode(recipe, order="sorted").decode()


__all__ = ["Attempt", "TailorReport", "Tailored", "Workbench", "WorkerError", "tailor"]
