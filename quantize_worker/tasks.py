"""The worker's two tasks. They fetch, run the child, store, and answer by task name.

A task may run twice, on two workers at once: files are content-addressed, a checkpoint is the
same whoever writes it, and the registry ignores messages of a stale attempt.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, Literal

import msgspec

from blobstore import BlobError, BlobMissing, BlobStore, DigestMismatch
from quantize_worker import app as settings
from quantize_worker import storage
from quantize_worker.app import app
from quantize_worker.contract import (
    CONTRACT_VERSION,
    HEARTBEAT_S,
    QUEUE_CONTROL,
    TASK_BUILD,
    TASK_BUILD_RESULT,
    TASK_INSPECT,
    TASK_INSPECT_RESULT,
    TASK_PROGRESS,
    TIME_LIMIT_S,
    BuildRequest,
    BuildResult,
    InspectRequest,
    InspectResult,
    Progress,
    Source,
    from_wire,
    to_wire,
)
from quantize_worker.errors import (
    Cancelled,
    ModelRefused,
    SandboxCrashed,
    SandboxOutOfMemory,
    SandboxTimeout,
    WorkerError,
)
from quantize_worker.sandbox import Sandbox
from quantize_worker.steps.confinement import Limits
from quantize_worker.steps.exchange import (
    ARTIFACT_FOLDER,
    CALIBRATION_FILE,
    CHUNKS_FOLDER,
    EVALUATION_FILE,
    SOURCE_FOLDER,
    Job,
    Outcome,
    Step,
)

logger = logging.getLogger(__name__)

INSPECT_LIMIT_S = 600.0
SILENCE_BASE_S = 60.0  # a parse that says nothing for longer is stuck
SILENCE_S_PER_GB = 60.0
_TOOLS = ("onnx", "onnxruntime", "numpy", "zstandard")

Send = Callable[[str, msgspec.Struct], None]


@dataclass(frozen=True)
class Desk:
    """All that a job needs from outside.

    ``send`` takes a task name and the message for it.
    """

    store: BlobStore
    sandbox: Sandbox
    work: Path
    memory_bytes: int
    send: Send
    worker: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    heartbeat_s: float = HEARTBEAT_S
    inspect_limit_s: float = INSPECT_LIMIT_S
    build_limit_s: float = TIME_LIMIT_S
    silence_base_s: float = SILENCE_BASE_S


@app.task(name=TASK_INSPECT)
def inspect(message: dict[str, Any]) -> None:
    """Celery task: inspect a model version."""
    run_inspect(from_wire(message, InspectRequest), _desk())


@app.task(name=TASK_BUILD)
def build(message: dict[str, Any]) -> None:
    """Celery task: make a build."""
    run_build(from_wire(message, BuildRequest), _desk())


def run_inspect(request: InspectRequest, desk: Desk) -> None:
    """Inspect a version and send one InspectResult, whatever happens. Cancelled: none."""
    answer = _Answer(request.version, request.attempt)
    try:
        _check_contract(request.contract)
        job = Job(kind="inspect", files=request.source.files, limits=_inspect_limits(request.source, desk))
        with (
            storage.job_folder(desk.work) as folder,
            _Pulse(desk, "version", request.version, request.attempt) as pulse,
        ):
            _fetch(request.source, folder, desk)
            outcome = desk.sandbox.run(folder, job, pulse.at, pulse.stop)
        desk.send(TASK_INSPECT_RESULT, answer.inspected(outcome))
    except Cancelled:
        logger.info("inspection of %s was cancelled", request.version)
    except (WorkerError, BlobError, OSError) as error:
        logger.warning("inspection of %s: %s", request.version, error)
        desk.send(TASK_INSPECT_RESULT, answer.not_inspected(error))


def run_build(request: BuildRequest, desk: Desk) -> None:
    """Make a build and send one BuildResult, whatever happens."""
    started = time.monotonic()
    answer = _Answer(request.build, request.attempt)
    try:
        _check_contract(request.contract)
        result = answer.built(_built(request, desk))
    except Cancelled as error:
        result = answer.failed("cancelled", error.code, error.message, "")
    except (WorkerError, BlobError, OSError) as error:
        logger.warning("build %s: %s", request.build, error)
        result = answer.failed("failed", _code(error), _sentence(error), _fault(error))
    desk.send(TASK_BUILD_RESULT, msgspec.structs.replace(result, seconds=time.monotonic() - started))


def _built(request: BuildRequest, desk: Desk) -> Outcome:
    """Run a build, going on from the checkpoint of an earlier attempt if there is one."""
    key = storage.checkpoint_key(request.source, request.recipe, _tool_versions())
    with (
        storage.job_folder(desk.work) as folder,
        _Pulse(desk, "build", request.build, request.attempt) as pulse,
    ):
        _fetch(request.source, folder, desk)
        done = storage.resume(desk.store, key, folder / ARTIFACT_FOLDER)

        def on_step(step: Step) -> None:
            if step.done:
                storage.store_chunks(desk.store, step.done, folder / CHUNKS_FOLDER)
                storage.write_checkpoint(desk.store, key, step.done)
            pulse.at(step)

        limits = Limits(wall_s=desk.build_limit_s, memory_bytes=desk.memory_bytes)
        job = Job(
            kind="build",
            files=request.source.files,
            limits=limits,
            recipe=request.recipe,
            facts=request.facts,
            done=done,
        )
        outcome = desk.sandbox.run(folder, job, on_step, pulse.stop)
        if outcome.artifact is not None:
            kept = {file.path for file in done}
            fresh = [file for file in outcome.artifact.files if file.path not in kept]
            storage.store_chunks(desk.store, fresh, folder / CHUNKS_FOLDER)
    storage.drop_checkpoint(desk.store, key)
    return outcome


class _Pulse:
    """Sends progress at every step and every heartbeat, and looks for the cancel marker as often."""

    def __init__(self, desk: Desk, kind: Literal["build", "version"], subject: str, attempt: int) -> None:
        self._desk, self._kind, self._subject, self._attempt = desk, kind, subject, attempt
        self._step, self._share = "fetch", 0.0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.stop = threading.Event()

    def __enter__(self) -> _Pulse:
        self.at(Step(step="fetch", share=0.0))
        if self.stop.is_set():
            raise Cancelled("The job was cancelled before it began.")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def at(self, step: Step) -> None:
        """Note a step and tell the registry, if it is news; look for the cancel marker."""
        with self._lock:
            news = step.step != self._step or step.share >= self._share + 0.05 or step.share == 0.0
            self._step, self._share = step.step, min(max(step.share, 0.0), 1.0)
            if news:
                self._tell()

    def _beat(self) -> None:
        while not self._over.wait(self._desk.heartbeat_s):
            with self._lock:
                self._tell()

    def _tell(self) -> None:
        if storage.is_cancelled(self._desk.store, self._subject, self._attempt):
            self.stop.set()
        progress = Progress(
            subject=self._subject,
            subject_kind=self._kind,
            attempt=self._attempt,
            step=self._step[:40],
            share=self._share,
            worker=self._desk.worker,
        )
        try:
            self._desk.send(TASK_PROGRESS, progress)
        except Exception as error:  # a lost progress message must not end the job
            logger.warning("progress of %s was not sent: %s", self._subject, error)


@dataclass(frozen=True)
class _Answer:
    """Result messages of one attempt."""

    subject: str
    attempt: int

    def inspected(self, outcome: Outcome) -> InspectResult:
        if outcome.status == "ready":
            return InspectResult(
                version=self.subject, attempt=self.attempt, status="ready", facts=outcome.facts
            )
        status: Literal["refused", "failed"] = "refused" if outcome.status == "refused" else "failed"
        return self._inspect_result(status, outcome.code, outcome.message)

    def not_inspected(self, error: Exception) -> InspectResult:
        """Whatever the model made the child do is the model's fault; the rest is ours."""
        if isinstance(error, ModelRefused):
            return self._inspect_result("refused", error.code, error.message)
        if isinstance(error, (SandboxTimeout, SandboxOutOfMemory)):
            message = f"Checking the model was given up: {error.message} Simplify the model or split it."
            return self._inspect_result("refused", "resource_limit", message)
        if isinstance(error, SandboxCrashed):
            message = f"Checking the model crashed ONNX Runtime: {error.message} Export it again."
            return self._inspect_result("refused", "invalid_model", message)
        return self._inspect_result("failed", _code(error), _sentence(error))

    def built(self, outcome: Outcome) -> BuildResult:
        if outcome.artifact is None or outcome.quality is None:
            return self.failed("failed", outcome.code, outcome.message, outcome.fault or "system")
        return BuildResult(
            build=self.subject,
            attempt=self.attempt,
            status="built",
            artifact=outcome.artifact,
            quality=outcome.quality,
        )

    def failed(
        self,
        status: Literal["failed", "cancelled"],
        code: str,
        message: str,
        fault: Literal["", "model", "system"],
    ) -> BuildResult:
        return BuildResult(
            build=self.subject, attempt=self.attempt, status=status, code=code, message=message, fault=fault
        )

    def _inspect_result(self, status: Literal["refused", "failed"], code: str, message: str) -> InspectResult:
        return InspectResult(
            version=self.subject, attempt=self.attempt, status=status, code=code, message=message
        )


def _fetch(source: Source, folder: Path, desk: Desk) -> None:
    storage.fetch_source(desk.store, source, folder / SOURCE_FOLDER)
    storage.fetch_set(desk.store, source.evaluation, folder / EVALUATION_FILE)
    storage.fetch_set(desk.store, source.calibration, folder / CALIBRATION_FILE)


def _inspect_limits(source: Source, desk: Desk) -> Limits:
    size = sum(file.size_bytes for file in source.files)
    silence_s = desk.silence_base_s + SILENCE_S_PER_GB * size / 1e9
    return Limits(wall_s=desk.inspect_limit_s, memory_bytes=desk.memory_bytes, silence_s=silence_s)


def _check_contract(contract: int) -> None:
    if contract != CONTRACT_VERSION:
        raise WorkerError(
            f"The worker speaks contract {CONTRACT_VERSION}, the request {contract}; update the older."
        )


def _tool_versions() -> dict[str, str]:
    return {name: package_version(name) for name in _TOOLS}


def _code(error: Exception) -> str:
    return str(getattr(error, "code", "worker_failed"))


def _sentence(error: Exception) -> str:
    if isinstance(error, (BlobMissing, DigestMismatch, WorkerError)):
        return str(error)
    return f"The worker could not finish the job ({error}); it can be tried again."


def _fault(error: Exception) -> Literal["model", "system"]:
    return "model" if isinstance(error, ModelRefused) else "system"


def _desk() -> Desk:
    return Desk(
        store=settings.blob_store(),
        sandbox=settings.sandbox(),
        work=settings.work_folder(),
        memory_bytes=settings.job_memory_bytes(),
        send=_publish,
    )


def _publish(task: str, message: msgspec.Struct) -> None:
    app.send_task(task, args=[to_wire(message)], queue=QUEUE_CONTROL)
