"""Models other than transformers: does their accuracy survive tailoring for four classes?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks import workshop
from benchmarks.catalogue import Context
from benchmarks.errors import BenchmarkFailed
from benchmarks.figures import Figure
from benchmarks.peers.catalogue import TORCH
from benchmarks.peers.runner import QUIET, SINGLE
from benchmarks.reference import Array, samples
from benchmarks.spent import spend
from benchmarks.workshop import Sets, device_class
from quantize_worker.engine import Tailored

DESCRIPTION = (
    "digits CNN, GRU classifier, LSTM tagger and tree ensemble: label accuracy after tailoring, four classes"
)
PREDICTION = """
CNN, GRU and LSTM keep their accuracy within 0.3 points in all four classes; what cannot take a class's
precision is left as it is or stored in less. The forest has no weights that shrink: classes that only take
integers do not carry it, and say so.
"""
ENVIRONMENTS = {"sklearn": (TORCH, ("scikit-learn==1.9.1", "skl2onnx==1.20.0", "onnx==1.23.2"))}

MODELS = {"cnn": "digits CNN", "gru": "GRU classifier", "lstm": "LSTM tagger", "forest": "tree ensemble"}
FLOOR = 0.995  # of FP32's accuracy
POINTS_GOAL = 0.5
CLASSES = (
    device_class("int4", ("int4", "int8", "fp32"), floor=FLOOR, objective="size"),
    device_class("dynamic", ("int8-dynamic", "fp32"), floor=FLOOR, objective="size"),
    device_class("npu", ("int8-qdq",), floor=FLOOR, objective="size", accelerator="npu", emulated=True),
    device_class("half", ("fp16",), floor=FLOOR, objective="size", accelerator="gpu", emulated=True),
)


@dataclass(frozen=True)
class Task:
    """A model with the half of the digits that it has not been trained on, split again.

    Args:
        gate: what builds are judged on.
        report: what accuracy is stated on.
    """

    model: Path
    calibration: Path
    gate: Path
    report: Path


def run(context: Context) -> list[Figure]:
    """Train, tailor for four classes, and compare accuracies.

    Raises:
        BenchmarkFailed: the models could not be trained.
    """
    folder = _trained(context)
    return [figure for name in MODELS for figure in _figures(name, _task(folder, name), context.scratch)]


def _trained(context: Context) -> Path:
    python = context.environments.pythons.get("sklearn")
    if python is None:
        raise BenchmarkFailed(f"models cannot be trained: {context.environments.failures.get('sklearn')}")
    folder = context.scratch / "models"
    folder.mkdir()
    script = context.root / "benchmarks" / "peers" / "portfolio_training.py"
    command = [str(python), str(script), str(folder)]
    spent = spend(command, folder=folder, environment={**QUIET, **SINGLE})
    if spent.code != 0:
        raise BenchmarkFailed(f"training ended with code {spent.code}: {spent.output_tail}")
    print(f"  trained in {spent.wall_s:.0f} s", flush=True)
    return folder


def _task(folder: Path, name: str) -> Task:
    """The held-out half again in two: one judges builds, the other is reported."""
    with np.load(folder / f"{name}-evaluation.npz") as arrays:
        held_out = dict(arrays)
    middle = len(held_out["labels"]) // 2
    halves = {"gate": slice(None, middle), "report": slice(middle, None)}
    for half, part in halves.items():
        np.savez(folder / f"{name}-{half}.npz", **{key: values[part] for key, values in held_out.items()})
    files = {half: folder / f"{name}-{half}.npz" for half in halves}
    return Task(folder / f"{name}.onnx", folder / f"{name}-calibration.npz", **files)


def _figures(name: str, task: Task, scratch: Path) -> Iterator[Figure]:
    exact = accuracy(task.model, task.report)
    sets = Sets(task.model, task.calibration, task.gate)
    report, out = workshop.tailored(sets, CLASSES, scratch, name)
    print(f"  {MODELS[name]}: FP32 {exact:.4f}, {report.facts.source_bytes / 1e3:.0f} kB", flush=True)
    for each in report.tailored:
        if each.outcome == "built":
            yield _kept(name, each, exact, accuracy(out / each.folder / "model.onnx", task.report), out)
        else:
            yield _not_carried(name, each)


def _kept(name: str, each: Tailored, exact: float, found: float, out: Path) -> Figure:
    lost = 100 * (exact - found)
    size = workshop.model_bytes(out / each.folder) / 1e3
    print(f"    {each.target.name}: {found:.4f}, {size:.0f} kB", flush=True)
    against = f"points of accuracy lost against FP32's {exact:.4f}, {size:.0f} kB"
    return _figure(name, each, round(lost, 3), against)


def _not_carried(name: str, each: Tailored) -> Figure:
    """A class that cannot carry the model is listed with the reason; a build that failed is no reason."""
    print(f"    {each.target.name}: {each.outcome}, not carried: {each.reason}", flush=True)
    explained = each.outcome == "impossible" and bool(each.reason)
    return _figure(name, each, 0.0 if explained else 100.0, f"not carried: {each.reason or each.outcome}")


def _figure(name: str, each: Tailored, value: float, against: str) -> Figure:
    return Figure(
        name=f"points_lost/{name}/{each.target.name}",
        value=value,
        goal=POINTS_GOAL,
        better="lower",
        against=against,
    )


def accuracy(model: Path, labelled: Path) -> float:
    """Share of labels that the first floating-point output's best class hits."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    scores = next(output.name for output in session.get_outputs() if output.type == "tensor(float)")
    guesses = [session.run([scores], feed)[0].argmax(axis=-1) for feed in samples(labelled)]
    with np.load(labelled) as arrays:
        labels: Array = arrays["labels"]
    return float(np.mean(np.concatenate(guesses) == labels))
