"""Placement: one job per lane, the most urgent first, late binding, ageing, shedding."""

from __future__ import annotations

import pytest

from device_agent.scheduler import AGEING_S, Arrived, Finished, Job, Placement, Priority, Scheduler, Shed

INTERACTIVE, NORMAL, BACKGROUND = Priority


def job(
    number: int, priority: Priority = NORMAL, *, lanes: tuple[str, ...] = ("cpu",), at: float = 0.0
) -> Job:
    return Job(number=number, priority=priority, lanes=lanes, arrived_s=at)


def placed(decisions: list[Placement | Shed]) -> list[tuple[int, str]]:
    return [(one.job.number, one.lane) for one in decisions if isinstance(one, Placement)]


def test_an_idle_lane_takes_a_job_at_once() -> None:
    scheduler = Scheduler(["cpu"])
    assert placed(scheduler.handle(Arrived(job(1)), now_s=0)) == [(1, "cpu")]


def test_a_busy_lane_is_given_nothing_until_it_finishes() -> None:
    scheduler = Scheduler(["cpu"])
    scheduler.handle(Arrived(job(1)), now_s=0)
    assert scheduler.handle(Arrived(job(2)), now_s=0) == []
    assert scheduler.waiting == 1
    assert placed(scheduler.handle(Finished("cpu"), now_s=1)) == [(2, "cpu")]


def test_the_most_urgent_waits_least() -> None:
    scheduler = Scheduler(["cpu"])
    for number, priority in enumerate((NORMAL, BACKGROUND, NORMAL, INTERACTIVE)):
        scheduler.handle(Arrived(job(number, priority)), now_s=0)
    order = [placed(scheduler.handle(Finished("cpu"), now_s=0))[0][0] for _ in range(3)]
    assert order == [3, 2, 1]


def test_ageing_lifts_background_above_new_work() -> None:
    scheduler = Scheduler(["cpu"])
    scheduler.handle(Arrived(job(0)), now_s=0)
    scheduler.handle(Arrived(job(1, BACKGROUND, at=0.0)), now_s=0)
    later = 3 * AGEING_S
    scheduler.handle(Arrived(job(2, INTERACTIVE, at=later)), now_s=later)
    assert placed(scheduler.handle(Finished("cpu"), now_s=later)) == [(1, "cpu")]


def test_jobs_are_bound_to_the_lane_that_is_free_first() -> None:
    scheduler = Scheduler(["cpu", "npu"])
    both = ("npu", "cpu")
    assert placed(scheduler.handle(Arrived(job(1, lanes=both)), now_s=0)) == [(1, "npu")]
    assert placed(scheduler.handle(Arrived(job(2, lanes=both)), now_s=0)) == [(2, "cpu")]
    scheduler.handle(Arrived(job(3, lanes=both)), now_s=0)
    assert placed(scheduler.handle(Finished("cpu"), now_s=0)) == [(3, "cpu")]


def test_a_job_does_not_wait_behind_one_for_another_lane() -> None:
    scheduler = Scheduler(["cpu", "npu"])
    scheduler.handle(Arrived(job(1, lanes=("npu",))), now_s=0)
    scheduler.handle(Arrived(job(2, INTERACTIVE, lanes=("npu",))), now_s=0)
    assert placed(scheduler.handle(Arrived(job(3, BACKGROUND, lanes=("cpu",))), now_s=0)) == [(3, "cpu")]


def test_a_job_that_no_lane_runs_is_refused() -> None:
    (decision,) = Scheduler(["cpu"]).handle(Arrived(job(1, lanes=("gpu",))), now_s=0)
    assert isinstance(decision, Shed)
    assert "no lane" in decision.reason


@pytest.mark.parametrize(("late", "shed"), [(INTERACTIVE, 1), (BACKGROUND, 3)])
def test_a_full_queue_sheds_the_least_urgent(late: Priority, shed: int) -> None:
    scheduler = Scheduler(["cpu"], queue_limit=2)
    for number, priority in enumerate((NORMAL, BACKGROUND, NORMAL)):
        scheduler.handle(Arrived(job(number, priority)), now_s=0)
    (decision,) = scheduler.handle(Arrived(job(3, late)), now_s=0)
    assert isinstance(decision, Shed)
    assert decision.job.number == shed
    assert scheduler.waiting == 2
