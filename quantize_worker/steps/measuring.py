"""The measuring process: runs models on samples, each in a fork of its own.

``python -m quantize_worker.steps.measuring <parent's process id>`` reads a :class:`Request` a line and
answers each with the exit status of the fork that did it; before that comes a dot a sample. The
process itself imports ONNX Runtime but never uses it: a fork starts at once, takes its memory with it
when it ends, and may crash.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quantize_worker.contract import QualityReport
from quantize_worker.steps import memory, references
from quantize_worker.steps.confinement import die_with_parent
from quantize_worker.steps.evaluate import all_finite
from quantize_worker.steps.gate import Gate, labels_by_sample
from quantize_worker.steps.providers import assigned, open_session
from quantize_worker.steps.samples import SampleSet

Array = NDArray[Any]
Named = dict[str, Array]
WARM_UP_RUNS = 2
TIMED_RUNS = 20  # at least, where there are so many samples
MAXIMUM_OUTPUT_BYTES = 256 << 20  # of all samples together; what lies beyond is not kept
MAXIMUM_SECONDS = 120.0  # a slow model is measured on fewer samples
MINIMUM_SAMPLES = 8
INPUT, LABELS = "input/", "labels"


class Request(msgspec.Struct, kw_only=True, frozen=True):
    """What to measure. Paths are absolute; ``references`` is empty for FP32 itself."""

    model: str
    samples: str  # .npz: input/<name>, and labels if there are any
    rows: int  # of a sample
    outputs: str  # .npz to write
    figures: str  # JSON to write
    provider: str
    golden: int
    references: str = ""
    floors: list[float] = []
    stacked: bool = False
    lean: bool = False


class Figures(msgspec.Struct, kw_only=True, frozen=True):
    """What a run costs, one sample at a time on one thread, and what it is worth.

    ``memory_bytes`` is the growth of peak resident memory over the idle process, program files apart;
    of it, ``anonymous_bytes`` cannot be read again from a file. ``assigned`` counts nodes per provider,
    ``provider`` got most of them. ``kept`` samples have outputs; ``batched`` if the golden samples also
    ran as one batch.
    """

    latency_p50_ms: float = 0.0
    memory_bytes: int = 0
    anonymous_bytes: int = 0
    provider: str = ""
    assigned: dict[str, int] = {}
    kept: int = 0
    batched: bool = False
    finite: bool = True
    quality: QualityReport | None = None
    error: str = ""


def main(parent: int) -> int:
    """Serve requests from standard input until it ends."""
    die_with_parent(parent)
    import onnxruntime  # here, so that forks need not

    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=Request)
        status = _forked(onnxruntime, request)
        _say(f"\n{status}\n")
    return 0


def _forked(runtime: Any, request: Request) -> int:
    """Measure in a child; its exit status, negative for a signal. There is one thread: forking is safe."""
    own = os.getpid()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        die_with_parent(own)
        measure_here(runtime, request)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)  # at once: nothing of the runtime needs to be taken down


def measure_here(runtime: Any, request: Request) -> None:
    """Do what is asked and write the files."""
    outputs: list[Named] = []
    batch: Named = {}
    try:
        figures = _run(runtime, request, outputs, batch)
    except MemoryError as error:
        figures = Figures(error=f"bad allocation {error}")
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        figures = Figures(error=str(error))
    with Path(request.outputs).open("wb") as file:
        np.savez(file, **references.keyed(outputs, batch))  # type: ignore[arg-type]
    Path(request.figures).write_bytes(msgspec.json.encode(figures))


def _run(runtime: Any, request: Request, outputs: list[Named], batch: Named) -> Figures:
    samples = _samples(request)
    memory.reset_peak()
    idle = memory.now()
    session = open_session(runtime, Path(request.model), request.provider, lean=request.lean)
    seen = _Seen(request, samples, outputs)
    try:
        times = _run_samples(session, samples, seen)
        after = memory.now()
        highest = memory.peak()
        batch.update(_run_batch(session, samples, request.golden))
        ran = assigned(session)
        return Figures(
            latency_p50_ms=float(np.median(times)) * 1e3,
            memory_bytes=max(0, highest - idle.resident - (after.libraries - idle.libraries)),
            anonymous_bytes=max(0, after.anonymous - idle.anonymous),
            provider=next(iter(ran)),
            assigned=ran,
            kept=len(outputs),
            batched=bool(batch),
            finite=seen.finite and all_finite([batch]),
            quality=seen.quality(),
        )
    finally:
        seen.close()


class _Seen:
    """Takes outputs sample by sample: keeps them, or holds them against FP32's."""

    def __init__(self, request: Request, samples: SampleSet, outputs: list[Named]) -> None:
        self._outputs, self._golden, self._size = outputs, request.golden, 0
        self.finite, self._enough = True, False
        self._gate: Gate | None = None
        self._references: references.References | None = None
        if request.references:
            labels = None if samples.labels is None else labels_by_sample(samples)
            self._references = references.read(Path(request.references))
            self._gate = Gate(self._references, labels, request.floors)

    def add(self, answers: Named) -> bool:
        """Take the next sample's; whether enough has been seen."""
        self.finite = self.finite and all_finite([answers])
        if self._gate is None:
            self._size += sum(answer.nbytes for answer in answers.values())
            if self._size <= MAXIMUM_OUTPUT_BYTES or not self._outputs:
                self._outputs.append(answers)
            return False
        if len(self._outputs) < self._golden:
            self._outputs.append(answers)
        if not self._enough:  # what follows is run for its latency only
            self._enough = self._gate.add(answers) or not self.finite
        return self._enough

    def quality(self) -> QualityReport | None:
        return None if self._gate is None else self._gate.report()

    def close(self) -> None:
        if self._references is not None:
            self._references.close()


def _run_samples(session: Any, samples: SampleSet, seen: _Seen) -> list[float]:
    """Seconds per sample, until there are no more, enough is known or it takes too long."""
    names = [output.name for output in session.get_outputs()]
    for _ in range(WARM_UP_RUNS):
        session.run(names, samples.sample(0))
    times: list[float] = []
    began = time.perf_counter()
    for index in range(len(samples)):
        sample = samples.sample(index)
        start = time.perf_counter()
        answers = session.run(names, sample)
        times.append(time.perf_counter() - start)
        _say(".")
        if seen.add(dict(zip(names, answers, strict=True))) and len(times) >= min(TIMED_RUNS, len(samples)):
            break
        if time.perf_counter() - began > MAXIMUM_SECONDS and index + 1 >= MINIMUM_SAMPLES:
            break
    return times


def _run_batch(session: Any, samples: SampleSet, golden: int) -> Named:
    """Outputs of the first samples as one batch; empty if the model refuses: it may fix its batch."""
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, samples.batch(golden)), strict=True))
    except Exception:  # the same: any refusal means "one sample at a time"
        return {}


def _samples(request: Request) -> SampleSet:
    with np.load(request.samples, allow_pickle=False) as stored:
        inputs = {name[len(INPUT) :]: stored[name] for name in stored.files if name.startswith(INPUT)}
        labels = stored[LABELS] if LABELS in stored.files else None
        return SampleSet(inputs, labels, request.rows, stacked=request.stacked)


def _say(text: str) -> None:
    """To the parent, at once; a dot a sample is progress."""
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
