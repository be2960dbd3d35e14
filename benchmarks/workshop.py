"""Our side of a benchmark: the worker's engine on this machine, and classes of device to tailor for."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchmarkFailed
from quantize_worker.contract import ModelFacts, Precision, Recipe, SourceFile, Target
from quantize_worker.engine import Tailored, TailorReport, Workbench, tailor
from quantize_worker.formats import FORMATS
from quantize_worker.sandbox import Sandbox, find_bubblewrap
from quantize_worker.steps.exchange import Built

CPU_PROVIDER = "CPUExecutionProvider"
MEMORY_BYTES = 64 << 30  # of address space
AMPLE_BYTES = 8 << 30
WEIGHT_ONLY: tuple[Precision, ...] = ("int4", "int8", "fp16", "fp32")
MODEL_FILES = ("model.onnx", "model.data")


@dataclass(frozen=True)
class Sets:
    """A model and the sets that our side may see."""

    model: Path
    calibration: Path | None
    gate: Path | None


def sandbox(*, confined: bool = True) -> Sandbox:
    """The worker's. Without bubblewrap where processor time counts: it does not hand on what its children took."""
    return Sandbox(bubblewrap=find_bubblewrap() if confined else None)


def workbench(folder: Path) -> Workbench:
    """The engine in a new folder."""
    folder.mkdir(parents=True)
    return Workbench(folder, sandbox(), memory_bytes=MEMORY_BYTES)


def reopened(folder: Path, files: list[SourceFile]) -> Workbench:
    """The engine in a folder in which a model was inspected by another process."""
    bench = Workbench(folder, sandbox(), memory_bytes=MEMORY_BYTES)
    bench.files = files
    return bench


def inspected(bench: Workbench, sets: Sets) -> ModelFacts:
    return bench.inspect(sets.model, calibration=sets.calibration, evaluation=sets.gate)


def tailored(
    sets: Sets, targets: Sequence[Target], scratch: Path, name: str, *, confined: bool = True
) -> tuple[TailorReport, Path]:
    """Tailor from nothing; the report and the folder with one folder per class that got a build."""
    out, work = scratch / f"{name}-out", scratch / f"{name}-work"
    for folder in (out, work):
        folder.mkdir(parents=True)
    report = tailor(
        sets.model,
        targets,
        out=out,
        sandbox=sandbox(confined=confined),
        memory_bytes=MEMORY_BYTES,
        work=work,
        calibration=sets.calibration,
        evaluation=sets.gate,
    )
    return report, out


def require_built(each: Tailored) -> Tailored:
    """The same, if it got a build.

    Raises:
        BenchmarkFailed: saying why it got none.
    """
    if each.outcome != "built":
        raise BenchmarkFailed(f"class {each.target.name} got no build: {each.reason}")
    return each


def require_artifact(built: Built) -> Built:
    """The same, if there is an artifact.

    Raises:
        BenchmarkFailed: saying why there is none.
    """
    if built.artifact is None:
        raise BenchmarkFailed(f"a build failed: {built.code}: {built.message}")
    return built


def layers_of(each: Tailored) -> str:
    """What makes the bytes of a class's build: the formats of its layers; "" without a build."""
    if each.plan is None:
        return ""
    recipe = each.plan.recipe
    return f"{recipe.precision if not recipe.layers else ''}{sorted(recipe.layers.items())}{recipe.products}"


def model_bytes(folder: Path) -> int:
    """Size of a build without its self-test data, which peers do not have."""
    return sum((folder / name).stat().st_size for name in MODEL_FILES if (folder / name).exists())


def device_class(
    name: str, precisions: Sequence[Precision], *, floor: float = 0.0, **changes: object
) -> Target:
    """A class of device; ``changes`` replace fields of the contract's Target."""
    fields: dict[str, object] = {
        "version": 1,
        "accelerator": "cpu",
        "execution_provider": CPU_PROVIDER,
        "emulated": False,
        "memory_bytes": AMPLE_BYTES,
        "storage_bytes": AMPLE_BYTES,
        **changes,
    }
    return Target(name=name, precisions=list(precisions), quality_floor=floor, **fields)  # type: ignore[arg-type]


def uniform(facts: ModelFacts, form: str, *, operators: Sequence[str], products: str = "") -> Recipe:
    """The recipe that gives one format to every layer of some operators that can take it."""
    layers = {
        layer.name: form for layer in facts.layers if layer.operator in operators and form in layer.formats
    }
    return Recipe(
        precision=FORMATS[form].precision,
        accelerator="cpu",
        execution_provider=CPU_PROVIDER,
        emulated=False,
        layers=layers,
        products=products,
    )


@dataclass
class Stopwatch:
    """Seconds of a stretch of work; processor seconds are of children that have ended (not confined ones)."""

    wall_s: float = 0.0
    cpu_s: float = 0.0


@contextmanager
def timed() -> Iterator[Stopwatch]:
    watch = Stopwatch()
    started, before = time.monotonic(), _children_cpu_s()
    yield watch
    watch.wall_s, watch.cpu_s = time.monotonic() - started, _children_cpu_s() - before


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
