"""What the control worker does: decode a message, call one service. All are idempotent."""

from __future__ import annotations

import logging
from typing import Any

from celery import shared_task
from django.db import InterfaceError, OperationalError
from django.utils import timezone

from models_registry.services import (
    batches,
    builds,
    inspections,
    leases,
    releases,
    signing,
    sweeper,
    uploads,
)
from quantize_worker.contract import (
    TASK_BUILD_RESULT,
    TASK_CANDIDATES_RESULT,
    TASK_INSPECT_RESULT,
    TASK_PROGRESS,
    BuildResult,
    CandidatesResult,
    InspectResult,
    Progress,
    from_wire,
)

log = logging.getLogger(__name__)

# A database that is busy or restarting would cost a result, and so the work behind it. At once,
# for a delayed message would hold up the queue (RabbitMQ's quorum queues count it as taken).
PATIENT: dict[str, Any] = {
    "autoretry_for": (OperationalError, InterfaceError),
    "retry_kwargs": {"max_retries": 5, "countdown": 0},
}


@shared_task(name=TASK_PROGRESS)
def progress(message: dict[str, Any]) -> None:
    leases.apply_progress(progress=from_wire(message, Progress))


@shared_task(name=TASK_INSPECT_RESULT, **PATIENT)
def inspect_result(message: dict[str, Any]) -> None:
    result = from_wire(message, InspectResult)
    if not inspections.apply_inspect_result(result=result):
        log.info("version %s: result of stale attempt %d ignored", result.version, result.attempt)


@shared_task(name=TASK_CANDIDATES_RESULT, **PATIENT)
def candidates_result(message: dict[str, Any]) -> None:
    result = from_wire(message, CandidatesResult)
    if not batches.apply_candidates_result(result=result):
        log.info("batch %s: result of stale attempt %d ignored", result.batch, result.attempt)


@shared_task(name=TASK_BUILD_RESULT, **PATIENT)
def build_result(message: dict[str, Any]) -> None:
    result = from_wire(message, BuildResult)
    if not builds.apply_build_result(result=result):
        log.info("build %s: result of stale attempt %d ignored", result.build, result.attempt)


@shared_task(name=releases.TASK_SIGN_RELEASE, **PATIENT)
def sign_release(message: dict[str, Any]) -> None:
    releases.publish_release(release_id=message["release"])


@shared_task(name="models_registry.sweep")
def sweep() -> None:
    counts = sweeper.sweep(now=timezone.now())
    if counts:
        log.info("sweep: %s", counts)


@shared_task(name="models_registry.refresh_timestamps")
def refresh_timestamps() -> None:
    refreshed = signing.refresh_timestamps(now=timezone.now())
    if refreshed:
        log.info("metadata signed anew: %s", refreshed)


@shared_task(name="models_registry.drop_orphaned_parts")
def drop_orphaned_parts() -> None:
    dropped = uploads.drop_orphaned_parts()
    if dropped:
        log.info("parts of uploads that were left over: %d dropped", dropped)
