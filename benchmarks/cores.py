"""How much of two cores a benchmark really has: others may be using the machine too."""

from __future__ import annotations

import multiprocessing
import time

LOOPS = 4_000_000


def available_cores(count: int = 2) -> float:
    """How many times the work of one process ``count`` of them do at once; 2.0 where two cores are free.

    The median of three tries.
    """
    tries = sorted(_ratio(count) for _ in range(3))
    return tries[1]


def _ratio(count: int) -> float:
    alone = _seconds(1)
    return count * alone / _seconds(count)


def _seconds(processes: int) -> float:
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(processes + 1)
    running = [context.Process(target=_spin, args=(gate,)) for _ in range(processes)]
    for process in running:
        process.start()
    gate.wait()
    started = time.perf_counter()
    for process in running:
        process.join()
    return time.perf_counter() - started


def _spin(gate: multiprocessing.synchronize.Barrier) -> None:
    total = 0
    gate.wait()
    for number in range(LOOPS):
        total += number & 7
