"""Which job runs next, and where. Pure: events in, placements out, clock passed in.

One lane stands for one accelerator and runs one job at a time. Jobs wait in one queue and are
bound to a lane only when it is free (late binding), the most urgent first: urgency is that of the
priority class, plus ageing, so that background work is delayed but never starved. A full queue
sheds the least urgent job.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

AGEING_S = 2.0  # waiting this long lifts a job by one class
QUEUE_LIMIT = 256


class Priority(IntEnum):
    """Classes, the most urgent first."""

    INTERACTIVE = 0
    NORMAL = 1
    BACKGROUND = 2


@dataclass(frozen=True)
class Job:
    """A unit of work. ``lanes`` are those that can run it, the preferred one first."""

    number: int
    priority: Priority
    lanes: tuple[str, ...]
    arrived_s: float


@dataclass(frozen=True)
class Arrived:
    job: Job


@dataclass(frozen=True)
class Finished:
    lane: str


@dataclass(frozen=True)
class Placement:
    """Run ``job`` on ``lane`` now."""

    job: Job
    lane: str


@dataclass(frozen=True)
class Shed:
    """``job`` is refused: the queue is full of more urgent work, or no lane can run it."""

    job: Job
    reason: str


Decision = Placement | Shed


class Scheduler:
    """State of lanes and queue. It starts nothing itself; the caller carries decisions out.

    Args:
        lanes: names of the lanes, all idle.
        queue_limit: jobs that may wait.
    """

    def __init__(self, lanes: Iterable[str], *, queue_limit: int = QUEUE_LIMIT) -> None:
        self._idle = set(lanes)
        self._lanes = frozenset(self._idle)
        self._queue: list[Job] = []
        self._limit = queue_limit

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._queue)

    def handle(self, event: Arrived | Finished, *, now_s: float) -> list[Decision]:
        """Take an event in and say what to start or refuse.

        Args:
            event: a job has come, or a lane has finished its job.
            now_s: the caller's monotonic clock, in seconds.
        """
        if isinstance(event, Finished):
            self._idle.add(event.lane)
            return list(self._place(now_s))
        if not self._lanes.intersection(event.job.lanes):
            return [Shed(event.job, "no lane runs this job")]
        self._queue.append(event.job)
        decisions: list[Decision] = list(self._place(now_s))
        if len(self._queue) > self._limit:
            last = max(self._queue, key=lambda job: self._rank(job, now_s))
            self._queue.remove(last)
            decisions.append(Shed(last, "the queue is full"))
        return decisions

    def _place(self, now_s: float) -> Iterable[Placement]:
        for job in sorted(self._queue, key=lambda job: self._rank(job, now_s)):
            lane = next((lane for lane in job.lanes if lane in self._idle), None)
            if lane is not None:
                self._idle.remove(lane)
                self._queue.remove(job)
                yield Placement(job, lane)

    @staticmethod
    def _rank(job: Job, now_s: float) -> tuple[float, int]:
        return job.priority - (now_s - job.arrived_s) / AGEING_S, job.number
