"""The worker's Celery tasks: decode the message, do the job, answer through the broker."""

from __future__ import annotations

from typing import Any

import msgspec

from quantize_worker import app as settings
from quantize_worker.app import app
from quantize_worker.contract import (
    QUEUE_CONTROL,
    TASK_BUILD,
    TASK_CANDIDATES,
    TASK_INSPECT,
    BuildRequest,
    CandidatesRequest,
    InspectRequest,
    from_wire,
    to_wire,
)
from quantize_worker.desk import Desk
from quantize_worker.jobs import run_build, run_candidates, run_inspect
from quantize_worker.limits import job_memory_bytes


@app.task(name=TASK_INSPECT)
def inspect(message: dict[str, Any]) -> None:
    """Celery task: inspect a model version."""
    run_inspect(from_wire(message, InspectRequest), _desk())


@app.task(name=TASK_CANDIDATES)
def candidates(message: dict[str, Any]) -> None:
    """Celery task: make and weigh the candidates of a batch of layers."""
    run_candidates(from_wire(message, CandidatesRequest), _desk())


@app.task(name=TASK_BUILD)
def build(message: dict[str, Any]) -> None:
    """Celery task: make a build."""
    run_build(from_wire(message, BuildRequest), _desk())


def _desk() -> Desk:
    return Desk(
        store=settings.blob_store(),
        sandbox=settings.sandbox(),
        work=settings.work_folder(),
        memory_bytes=job_memory_bytes(),
        send=_publish,
    )


def _publish(task: str, message: msgspec.Struct) -> None:
    app.send_task(task, args=[to_wire(message)], queue=QUEUE_CONTROL)
