"""Asks tailoring workers for inspections and builds over their broker, as the registry does."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from celery import Celery
from kombu import Consumer, Message, Queue

from benchmarks.errors import BenchmarkFailed
from quantize_worker.contract import (
    QUEUE_CONTROL,
    TASK_BUILD,
    TASK_BUILD_RESULT,
    TASK_INSPECT,
    TASK_INSPECT_RESULT,
    BuildRequest,
    BuildResult,
    InspectRequest,
    InspectResult,
    Source,
    Target,
    celery_settings,
    from_wire,
    queue_for,
    to_wire,
)
from quantize_worker.plan import consider


class TailoringDesk:
    """Sends requests and waits for answers.

    Args:
        broker_url, broker_folder: see ``celery_settings``.
        target: the class that every model is built for.
    """

    def __init__(self, broker_url: str, broker_folder: str, target: Target) -> None:
        self._app = Celery("benchmark")
        self._app.conf.update(celery_settings(broker_url, broker_folder))
        self._target = target
        self._sources: dict[str, Source] = {}
        self._built: set[str] = set()

    def tailor(self, sources: list[Source], *, timeout_s: float) -> None:
        """Queue all inspections; plan and queue a build as each is answered; wait for the last build.

        Raises:
            BenchmarkFailed: one was not inspected or built, or not in time.
        """
        self._sources = {f"model-{number}": source for number, source in enumerate(sources)}
        for version, source in self._sources.items():
            request = InspectRequest(version=version, attempt=1, source=source)
            self._send(TASK_INSPECT, request, source)
        deadline = time.monotonic() + timeout_s
        with self._app.connection_for_read() as connection:
            queue = Queue(QUEUE_CONTROL)
            with Consumer(connection, queues=[queue], callbacks=[self._answered], accept=["json"]):
                while len(self._built) < len(self._sources):
                    if time.monotonic() > deadline:
                        raise BenchmarkFailed(f"not all models were built within {timeout_s:.0f} s")
                    _wait(connection)

    def _send(self, task: str, request: InspectRequest | BuildRequest, source: Source) -> None:
        queue = queue_for(source)
        self._app.send_task(task, args=[to_wire(request)], queue=queue)

    def _answered(self, body: Any, message: Message) -> None:
        message.ack()
        task, (wire,) = message.headers["task"], body[0]
        if task == TASK_INSPECT_RESULT:
            self._inspected(from_wire(wire, InspectResult))
        elif task == TASK_BUILD_RESULT:
            self._finished(from_wire(wire, BuildResult))

    def _inspected(self, result: InspectResult) -> None:
        if result.facts is None or result.batches:
            raise BenchmarkFailed(f"{result.version} was not inspected: {result.code} {result.message}")
        source = self._sources[result.version]
        plans: Iterable[Any] = consider(result.facts, self._target).candidates
        plan = next(iter(plans), None)
        if plan is None:
            raise BenchmarkFailed(f"no build fits {result.version}")
        request = BuildRequest(
            build=result.version,
            attempt=1,
            source=source,
            recipe=plan.recipe,
            facts=result.facts,
            floors=[self._target.quality_floor],
        )
        self._send(TASK_BUILD, request, source)

    def _finished(self, result: BuildResult) -> None:
        if result.status != "built":
            raise BenchmarkFailed(f"{result.build} was not built: {result.code} {result.message}")
        self._built.add(result.build)


def _wait(connection: Any) -> None:
    try:
        connection.drain_events(timeout=1.0)
    except TimeoutError:
        return
