"""Run a model on samples in a process of its own: outputs, latency, peak memory, provider, quality.

:mod:`quantize_worker.steps.measuring` is that process. One :class:`Runner` measures any number of builds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quantize_worker.contract import QualityReport
from quantize_worker.errors import SandboxCrashed, SandboxOutOfMemory, WorkerError
from quantize_worker.steps import references as reference_file
from quantize_worker.steps.measuring import INPUT, LABELS, Figures, Request
from quantize_worker.steps.providers import CPU_PROVIDER
from quantize_worker.steps.samples import SampleSet

__all__ = ["CPU_PROVIDER", "Figures", "Measured", "MeasuredError", "Runner", "is_out_of_memory", "measure"]

Array = NDArray[Any]
ENDING_S = 10.0
# One thread, so that a fork is safe; and without telemetry, which would start more (ONNX Runtime reads it
# when it is loaded).
_ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class MeasuredError(WorkerError):
    """ONNX Runtime refused to load or run the model; ``message`` is its own."""

    code = "runtime_refused"


class Measured(msgspec.Struct, kw_only=True):
    """``outputs`` are one per sample kept: all of them, or the golden ones where a gate has judged.

    ``batch`` are those of the golden samples as one batch, if the model takes it.
    """

    figures: Figures
    outputs: list[dict[str, Array]]
    batch: dict[str, Array]

    @property
    def finite(self) -> bool:
        """Whether no output was NaN or infinite; a gate stops at the first that is."""
        return self.figures.finite

    @property
    def quality(self) -> QualityReport | None:
        """The gate's verdict, where there were references."""
        return self.figures.quality


class Runner:
    """A warm measuring process for many builds; it is started when first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def run(self, request: Request, on_sample: Callable[[], None]) -> int:
        """Measure; the exit status of the process that did, negative for a signal."""
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(request) + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            return self._ended()
        for byte in iter(lambda: process.stdout.read(1), b""):  # type: ignore[union-attr]
            if byte == b"\n":
                return int(process.stdout.readline() or self._ended())
            on_sample()
        return self._ended()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            command = [sys.executable, "-m", "quantize_worker.steps.measuring", str(os.getpid())]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | _ENVIRONMENT
            )
        return self._process

    def _ended(self) -> int:
        """The status of the process itself, which should not have ended; never 0."""
        process = self._process
        assert process is not None
        return process.wait() or 1


def measure(
    model: Path,
    samples: SampleSet,
    folder: Path,
    *,
    provider: str,
    golden: int,
    references: Path | None = None,
    floors: Sequence[float] = (),
    runner: Runner | None = None,
    lean: bool = False,
    on_share: Callable[[float], None] = lambda share: None,
) -> Measured:
    """Run the samples: all of them, or until the gate knows enough.

    Args:
        model: an ONNX file with its external data beside it.
        samples: what to run, in order.
        folder: a scratch folder.
        provider: execution provider to ask for; one that is not there falls back to the CPU's.
        golden: how many of the first samples to run as one batch as well.
        references: what FP32 makes of the samples (:mod:`quantize_worker.steps.references`); with them the
            gate judges, and only golden samples' outputs are kept.
        floors: of the classes that wait; without any, the gate sees all samples.
        runner: a warm process; without one, one is started for this model.
        lean: for models too large to be copied into memory; slower.
        on_share: called after each sample with the share done.

    Raises:
        MeasuredError: if ONNX Runtime refuses the model or a sample.
        MemoryError, SandboxOutOfMemory, SandboxCrashed: if it could not get to the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    request = Request(
        model=str(model.resolve()),
        samples=str(_written(samples, folder.resolve() / "samples.npz")),
        rows=samples.rows,
        outputs=str(folder.resolve() / "outputs.npz"),
        figures=str(folder.resolve() / "figures.json"),
        provider=provider,
        golden=golden,
        references=str(references.resolve()) if references else "",
        floors=list(floors),
        stacked=samples.stacked,
        lean=lean,
    )
    with _running(runner) as process:
        _check_end(process.run(request, _counter(len(samples), on_share)))
    return _found(request)


def is_out_of_memory(message: str) -> bool:
    """Whether ONNX Runtime's words mean that memory was refused."""
    return "Failed to allocate" in message or "bad_alloc" in message or "bad allocation" in message


def _found(request: Request) -> Measured:
    figures = msgspec.json.decode(Path(request.figures).read_bytes(), type=Figures)
    if is_out_of_memory(figures.error):
        raise MemoryError(figures.error)
    if figures.error:
        raise MeasuredError(figures.error)
    with reference_file.read(Path(request.outputs)) as stored:
        return Measured(figures=figures, outputs=list(stored), batch=stored.batch())


def _written(samples: SampleSet, path: Path) -> Path:
    arrays = {f"{INPUT}{name}": values for name, values in samples.inputs.items()}
    if samples.labels is not None:
        arrays[LABELS] = samples.labels
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@contextmanager
def _running(runner: Runner | None) -> Iterator[Runner]:
    if runner is not None:
        yield runner
        return
    with Runner() as own:
        yield own


def _counter(total: int, on_share: Callable[[float], None]) -> Callable[[], None]:
    done = 0

    def on_sample() -> None:
        nonlocal done
        done += 1
        on_share(done / total)

    return on_sample


def _check_end(code: int) -> None:
    if code in (-9, 9, 137):
        raise SandboxOutOfMemory("Running the model was stopped: it needs more memory than a job may use.")
    if code:
        raise SandboxCrashed(f"Running the model crashed the runtime (exit status {code}).")
