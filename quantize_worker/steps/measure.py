"""Run a model on samples in a process of its own: outputs, latency, peak memory, provider.

``python -m quantize_worker.steps.measure`` is that process; :func:`measure` starts it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quantize_worker.errors import SandboxCrashed, SandboxOutOfMemory, WorkerError
from quantize_worker.steps.confinement import die_with_parent
from quantize_worker.steps.samples import SampleSet

Array = NDArray[Any]
WARM_UP_RUNS = 2
MAXIMUM_OUTPUT_BYTES = 256 << 20  # of all samples together; what lies beyond is not kept
MAXIMUM_SECONDS = 120.0  # a slow model is measured on fewer samples
MINIMUM_SAMPLES = 8
CPU_PROVIDER = "CPUExecutionProvider"


class MeasuredError(WorkerError):
    """ONNX Runtime refused to load or run the model; ``message`` is its own."""

    code = "runtime_refused"


class Figures(msgspec.Struct, kw_only=True, frozen=True):
    """What a run costs: one sample at a time, on one thread."""

    latency_p50_ms: float
    memory_bytes: int  # growth of peak resident memory over the idle process
    provider: str
    kept: int  # samples whose outputs were kept
    batched: bool  # whether the golden samples also ran as one batch
    error: str = ""


class Measured(msgspec.Struct, kw_only=True):
    figures: Figures
    outputs: list[dict[str, Array]]  # one per sample kept
    batch: dict[str, Array]  # outputs of the golden samples as one batch, if the model takes it


def measure(
    model: Path,
    samples: SampleSet,
    folder: Path,
    *,
    provider: str,
    golden: int,
    on_share: Callable[[float], None] = lambda share: None,
) -> Measured:
    """Run every sample.

    Args:
        model: an ONNX file with its external data beside it.
        samples: what to run, in order.
        folder: a scratch folder.
        provider: execution provider to ask for; one that is not there falls back to the CPU's.
        golden: how many of the first samples to run as one batch as well.
        on_share: called after each sample with the share done.

    Raises:
        MeasuredError: if ONNX Runtime refuses the model or a sample.
        MemoryError, SandboxOutOfMemory, SandboxCrashed: if it could not get to the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inputs, outputs, figures = folder / "inputs.npz", folder / "outputs.npz", folder / "figures.json"
    np.savez(inputs, **samples.inputs)  # type: ignore[arg-type]
    arguments = [
        str(model),
        str(inputs),
        str(samples.rows),
        str(outputs),
        str(figures),
        provider,
        str(golden),
    ]
    command = [sys.executable, "-m", "quantize_worker.steps.measure", str(os.getpid()), *arguments]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for index, _ in enumerate(iter(lambda: process.stdout.read(1), b"")):  # type: ignore[union-attr]
            on_share((index + 1) / len(samples))
    _check_end(process.returncode)
    found = msgspec.json.decode(figures.read_bytes(), type=Figures)
    if is_out_of_memory(found.error):
        raise MemoryError(found.error)
    if found.error:
        raise MeasuredError(found.error)
    with np.load(outputs, allow_pickle=False) as stored:
        kept = [_named(stored, f"{index}/") for index in range(found.kept)]
        return Measured(figures=found, outputs=kept, batch=_named(stored, "batch/"))


def is_out_of_memory(message: str) -> bool:
    """Whether ONNX Runtime's words mean that memory was refused."""
    return "Failed to allocate" in message or "bad_alloc" in message or "bad allocation" in message


def _check_end(code: int) -> None:
    if code in (-9, 9, 137):
        raise SandboxOutOfMemory("Running the model was stopped: it needs more memory than a job may use.")
    if code:
        raise SandboxCrashed(f"Running the model crashed the runtime (exit status {code}).")


def _named(stored: Any, prefix: str) -> dict[str, Array]:
    return {name[len(prefix) :]: stored[name] for name in stored.files if name.startswith(prefix)}


def main(arguments: Sequence[str]) -> int:
    """The measuring process."""
    die_with_parent(int(arguments[0]))
    model, inputs, rows, outputs, figures, provider, golden = arguments[1:]
    with np.load(inputs, allow_pickle=False) as stored:
        samples = SampleSet({name: stored[name] for name in stored.files}, None, int(rows))
    kept: dict[str, Array] = {}
    try:
        found = _run(Path(model), samples, kept, provider, int(golden))
    except MeasuredError as error:
        found = Figures(
            latency_p50_ms=0, memory_bytes=0, provider="", kept=0, batched=False, error=error.message
        )
    np.savez(outputs, **kept)  # type: ignore[arg-type]
    Path(figures).write_bytes(msgspec.json.encode(found))
    return 0


def _run(model: Path, samples: SampleSet, kept: dict[str, Array], provider: str, golden: int) -> Figures:
    import onnxruntime

    idle = _resident_bytes()
    try:
        session = _session(onnxruntime, model, provider)
        names = [output.name for output in session.get_outputs()]
        times, count = _run_samples(session, names, samples, kept)
        memory = _peak_bytes() - idle
        batched = _run_batch(session, names, samples, kept, golden)
    except MemoryError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise MeasuredError(str(error)) from error
    return Figures(
        latency_p50_ms=float(np.median(times)) * 1e3,
        memory_bytes=max(memory, 0),
        provider=session.get_providers()[0],
        kept=count,
        batched=batched,
    )


def _session(onnxruntime: Any, model: Path, provider: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    available = onnxruntime.get_available_providers()
    wanted = [name for name in (provider,) if name in available and name != CPU_PROVIDER]
    return onnxruntime.InferenceSession(str(model), options, providers=[*wanted, CPU_PROVIDER])


def _run_samples(
    session: Any, names: list[str], samples: SampleSet, kept: dict[str, Array]
) -> tuple[list[float], int]:
    for _ in range(WARM_UP_RUNS):
        session.run(names, samples.sample(0))
    times, count, size, began = [], 0, 0, time.perf_counter()
    for index in range(len(samples)):
        sample = samples.sample(index)
        start = time.perf_counter()
        answers = session.run(names, sample)
        times.append(time.perf_counter() - start)
        print(".", end="", flush=True)  # noqa: T201  a byte a sample: progress for the parent
        size += sum(answer.nbytes for answer in answers)
        if size <= MAXIMUM_OUTPUT_BYTES or not count:
            kept.update({f"{index}/{name}": answer for name, answer in zip(names, answers, strict=True)})
            count += 1
        if time.perf_counter() - began > MAXIMUM_SECONDS and index + 1 >= MINIMUM_SAMPLES:
            break
    return times, count


def _run_batch(
    session: Any, names: list[str], samples: SampleSet, kept: dict[str, Array], golden: int
) -> bool:
    """Whether the first samples also run as one batch; a model may fix its batch inside."""
    batch = {name: values[: golden * samples.rows] for name, values in samples.inputs.items()}
    try:
        answers = session.run(names, batch)
    except Exception:  # the same: any refusal means "one sample at a time"
        return False
    kept.update({f"batch/{name}": answer for name, answer in zip(names, answers, strict=True)})
    return True


def _resident_bytes() -> int:
    """Resident memory now; the peak is set back to it where the kernel allows."""
    with suppress(OSError):  # the peak then includes what starting the process took
        Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def _peak_bytes() -> int:
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
