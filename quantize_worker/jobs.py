"""The worker's three jobs. They fetch, run the child, store, and answer by task name.

A job may run twice, on two workers at once: files are content-addressed, a checkpoint is the
same whoever writes it, and the registry ignores messages of a stale attempt.
"""

from __future__ import annotations

import logging
import time
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Literal

import msgspec

from blobstore import BlobError
from quantize_worker import storage
from quantize_worker.answers import Answer, code_of, fault_of, sentence_of
from quantize_worker.contract import (
    CONTRACT_VERSION,
    OLDEST_CONTRACT_VERSION,
    TASK_BUILD_RESULT,
    TASK_CANDIDATES_RESULT,
    TASK_INSPECT_RESULT,
    BuildRequest,
    CandidatesRequest,
    CandidatesResult,
    InspectRequest,
    Source,
)
from quantize_worker.desk import Desk, Pulse
from quantize_worker.errors import Cancelled, WorkerError
from quantize_worker.steps.confinement import Limits
from quantize_worker.steps.exchange import (
    ANALYSIS_FOLDER,
    ARTIFACT_FOLDER,
    CALIBRATION_FILE,
    CHUNKS_FOLDER,
    EVALUATION_FILE,
    FIRST_STAGE,
    SOURCE_FOLDER,
    Job,
    Outcome,
    Step,
)

logger = logging.getLogger(__name__)

SILENCE_S_PER_GB = 60.0
_TOOLS = ("onnx", "onnxruntime", "numpy", "zstandard")


def run_inspect(request: InspectRequest, desk: Desk) -> None:
    """Inspect a version and send one InspectResult, whatever happens. Cancelled: none."""
    answer = Answer(request.version, request.attempt)
    try:
        _check_contract(request.contract)
        with (
            storage.job_folder(desk.work) as folder,
            Pulse(desk, "version", request.version, request.attempt) as pulse,
        ):
            result = answer.inspected(_inspected(request, folder, desk, pulse))
        desk.send(TASK_INSPECT_RESULT, result)
    except Cancelled:
        logger.info("inspection of %s was cancelled", request.version)
    except (WorkerError, BlobError, OSError) as error:
        logger.warning("inspection of %s: %s", request.version, error)
        desk.send(TASK_INSPECT_RESULT, answer.not_inspected(error))


def _inspected(request: InspectRequest, folder: Path, desk: Desk, pulse: Pulse) -> Outcome:
    """Inspect, going on from the stages of an earlier attempt; what is found is stored."""
    source = request.source
    _fetch(source, folder, desk)
    stages = _Stages(desk, storage.stages_key(source, [], _tool_versions()), folder, pulse)
    job = Job(
        kind="inspect",
        files=source.files,
        limits=_inspect_limits(source, desk),
        stages=stages.done,
        batch_parameters=desk.batch_parameters,
    )
    outcome = desk.sandbox.run(folder, job, stages.at, pulse.stop)
    if outcome.facts is not None:
        storage.store_analysis(desk.store, outcome.files, folder / ANALYSIS_FOLDER)
        index = storage.write_index(desk.store, outcome.files)
        outcome.facts = msgspec.structs.replace(outcome.facts, analysis=[index])
        stages.drop()
    return outcome


def run_candidates(request: CandidatesRequest, desk: Desk) -> None:
    """Make a batch of candidates and send one CandidatesResult, whatever happens."""
    try:
        _check_contract(request.contract)
        with (
            storage.job_folder(desk.work) as folder,
            Pulse(desk, "batch", request.batch, request.attempt) as pulse,
        ):
            result = _candidates(request, folder, desk, pulse)
    except Cancelled as error:
        result = _no_candidates(request, "cancelled", error.code, error.message)
    except (WorkerError, BlobError, OSError) as error:
        logger.warning("candidates %s: %s", request.batch, error)
        result = _no_candidates(request, "failed", code_of(error), sentence_of(error))
    desk.send(TASK_CANDIDATES_RESULT, result)


def _candidates(request: CandidatesRequest, folder: Path, desk: Desk, pulse: Pulse) -> CandidatesResult:
    storage.fetch_analysis(desk.store, request.facts.analysis, None, folder / ANALYSIS_FOLDER)
    limits = Limits(wall_s=desk.build_limit_s, memory_bytes=desk.memory_bytes)
    job = Job(
        kind="candidates",
        files=request.source.files,
        limits=limits,
        facts=request.facts,
        layers=request.layers,
        stages=[FIRST_STAGE],
    )
    outcome = desk.sandbox.run(folder, job, pulse.at, pulse.stop)
    if outcome.status != "ready":
        return _no_candidates(request, "failed", outcome.code, outcome.message)
    storage.store_analysis(desk.store, outcome.files, folder / ANALYSIS_FOLDER)
    return CandidatesResult(
        batch=request.batch,
        attempt=request.attempt,
        status="ready",
        layers=outcome.layers,
        analysis=storage.write_index(desk.store, outcome.files),
    )


def _no_candidates(
    request: CandidatesRequest, status: Literal["failed", "cancelled"], code: str, message: str
) -> CandidatesResult:
    return CandidatesResult(
        batch=request.batch, attempt=request.attempt, status=status, code=code, message=message
    )


def run_build(request: BuildRequest, desk: Desk) -> None:
    """Make a build and send one BuildResult, whatever happens."""
    started = time.monotonic()
    answer = Answer(request.build, request.attempt)
    try:
        _check_contract(request.contract)
        result = answer.built(_built(request, desk))
    except Cancelled as error:
        result = answer.failed("cancelled", error.code, error.message, "")
    except (WorkerError, BlobError, OSError) as error:
        logger.warning("build %s: %s", request.build, error)
        result = answer.failed("failed", code_of(error), sentence_of(error), fault_of(error))
    desk.send(TASK_BUILD_RESULT, msgspec.structs.replace(result, seconds=time.monotonic() - started))


def _built(request: BuildRequest, desk: Desk) -> Outcome:
    """Run a build, going on from the checkpoint of an earlier attempt if there is one."""
    key = storage.checkpoint_key(request.source, request.recipe, _tool_versions())
    with (
        storage.job_folder(desk.work) as folder,
        Pulse(desk, "build", request.build, request.attempt) as pulse,
    ):
        analysis = request.facts.analysis
        storage.fetch_analysis(desk.store, analysis, request.recipe, folder / ANALYSIS_FOLDER)
        if not analysis:  # inspected by a worker of contract 1: the child prepares the source itself
            _fetch(request.source, folder, desk)
        done = storage.resume(desk.store, key, folder / ARTIFACT_FOLDER / "0")

        def on_step(step: Step) -> None:
            if step.done:
                storage.store_chunks(desk.store, step.done, folder / CHUNKS_FOLDER)
                storage.write_checkpoint(desk.store, key, step.done)
            pulse.at(step)

        job = Job(
            kind="build",
            files=request.source.files,
            limits=Limits(wall_s=desk.build_limit_s, memory_bytes=desk.memory_bytes),
            facts=request.facts,
            recipes=[request.recipe],
            floors=[request.floors],
            stages=[FIRST_STAGE] if analysis else [],
            done=done,
        )
        outcome = desk.sandbox.run(folder, job, on_step, pulse.stop)
        for built in outcome.builds:
            if built.artifact is not None:
                kept = {file.path for file in done}
                fresh = [file for file in built.artifact.files if file.path not in kept]
                storage.store_chunks(desk.store, fresh, folder / CHUNKS_FOLDER)
    storage.drop_checkpoint(desk.store, key)
    return outcome


class _Stages:
    """Stores the stages of an inspection as they end, so that a successor goes on after them."""

    def __init__(self, desk: Desk, key: str, folder: Path, pulse: Pulse) -> None:
        self._desk, self._key, self._pulse = desk, key, pulse
        self._folder = folder / ANALYSIS_FOLDER
        self._noted = storage.resume_stages(desk.store, key, self._folder)
        self.done = list(self._noted.stages)

    def at(self, step: Step) -> None:
        if step.stage:
            storage.store_analysis(self._desk.store, step.files, self._folder)
            self._noted.stages.append(step.stage)
            self._noted.files.extend(step.files)
            storage.write_stages(self._desk.store, self._key, self._noted)
        self._pulse.at(step)

    def drop(self) -> None:
        storage.drop_checkpoint(self._desk.store, self._key)


def _fetch(source: Source, folder: Path, desk: Desk) -> None:
    storage.fetch_source(desk.store, source, folder / SOURCE_FOLDER)
    storage.fetch_set(desk.store, source.evaluation, folder / EVALUATION_FILE)
    storage.fetch_set(desk.store, source.calibration, folder / CALIBRATION_FILE)


def _inspect_limits(source: Source, desk: Desk) -> Limits:
    size = sum(file.size_bytes for file in source.files)
    silence_s = desk.silence_base_s + SILENCE_S_PER_GB * size / 1e9
    return Limits(wall_s=desk.inspect_limit_s, memory_bytes=desk.memory_bytes, silence_s=silence_s)


def _check_contract(contract: int) -> None:
    if not OLDEST_CONTRACT_VERSION <= contract <= CONTRACT_VERSION:
        raise WorkerError(
            f"The worker speaks contracts {OLDEST_CONTRACT_VERSION} to {CONTRACT_VERSION}, the request {contract}; update the older."
        )


def _tool_versions() -> dict[str, str]:
    return {name: package_version(name) for name in _TOOLS}
