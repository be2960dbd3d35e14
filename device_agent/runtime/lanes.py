"""Lanes: one dedicated thread per accelerator, fed by the pure scheduler."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import onnxruntime

from device_agent.errors import InferenceError
from device_agent.scheduler import Arrived, Decision, Finished, Job, Placement, Priority, Scheduler

Work = Callable[[Any], Any]  # takes onnxruntime.RunOptions


class _Task(NamedTuple):
    work: Work
    future: Future[Any]


class Lanes:
    """Runs work on lanes, the most urgent first.

    Args:
        names: one lane per accelerator.
        clock_s: monotonic seconds.
    """

    def __init__(self, names: Sequence[str], *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._scheduler = Scheduler(names)
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._tasks: dict[int, _Task] = {}
        self._running: dict[str, Any] = {}
        self._inboxes: dict[str, queue.SimpleQueue[_Task | None]] = {n: queue.SimpleQueue() for n in names}
        self._threads = [
            threading.Thread(target=self._serve, args=(name,), name=f"lane-{name}", daemon=True)
            for name in names
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Work, *, lanes: Sequence[str], priority: Priority) -> Future[Any]:
        """Queue ``work``; its future fails with InferenceError 503 when it is shed."""
        task = _Task(work, Future())
        with self._lock:
            job = Job(
                number=next(self._numbers),
                priority=priority,
                lanes=tuple(lanes),
                arrived_s=self._clock_s(),
            )
            self._tasks[job.number] = task
            decisions = self._scheduler.handle(Arrived(job), now_s=self._clock_s())
        self._carry_out(decisions)
        return task.future

    def close(self) -> None:
        """Stop the threads; a running job is terminated, waiting ones fail."""
        with self._lock:
            waiting, self._tasks = list(self._tasks.values()), {}
            for options in self._running.values():
                options.terminate = True
        for task in waiting:
            task.future.cancel()
        for inbox in self._inboxes.values():
            inbox.put(None)
        for thread in self._threads:
            thread.join(timeout=2.0)

    def _carry_out(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            with self._lock:
                task = self._tasks.pop(decision.job.number, None)
            if isinstance(decision, Placement):
                # a task cancelled by close() still has to free its lane
                self._inboxes[decision.lane].put(task or _Task(lambda options: None, Future()))
            elif task is not None:
                message = f"the device is too busy: {decision.reason}; try again"
                task.future.set_exception(InferenceError(message, status=503, code="overloaded"))

    def _serve(self, lane: str) -> None:
        while (task := self._inboxes[lane].get()) is not None:
            if task.future.set_running_or_notify_cancel():
                self._run(lane, task)
            with self._lock:
                decisions = self._scheduler.handle(Finished(lane), now_s=self._clock_s())
            self._carry_out(decisions)

    def _run(self, lane: str, task: _Task) -> None:
        options = onnxruntime.RunOptions()
        with self._lock:
            self._running[lane] = options
        try:
            task.future.set_result(task.work(options))
        except BaseException as error:
            task.future.set_exception(error)
        finally:
            with self._lock:
                self._running.pop(lane, None)
