"""Folders of jobs, as the worker lays them out, and the three jobs run in them without a sandbox."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from quantize_worker.contract import (
    PRECISIONS,
    AnalysisFile,
    ModelFacts,
    Precision,
    Recipe,
    Target,
)
from quantize_worker.pipeline import run
from quantize_worker.steps.confinement import Limits
from quantize_worker.steps.exchange import (
    ANALYSIS_FOLDER,
    ARTIFACT_FOLDER,
    FIRST_STAGE,
    SOURCE_FOLDER,
    Built,
    Job,
    Outcome,
    Step,
)
from tests.exports import listed
from tests.integration import onnx_models

LIMITS = Limits(wall_s=120, memory_bytes=16 << 30)
CPU = "CPUExecutionProvider"
EVERYWHERE: dict[Precision, str] = {  # the format that stands for a precision, where a layer can take it
    "fp32": "fp32",
    "fp16": "fp16-stored",
    "int8": "int8-b32",
    "int8-dynamic": "int8-dynamic",
    "int8-qdq": "int8-qdq",
    "int8-qdq16": "int8-qdq16",
    "int4": "int4-b32",
}


def upload(folder: Path, model: onnx.ModelProto | bytes) -> Path:
    """A job's folder with this model as its source."""
    source = folder / SOURCE_FOLDER
    source.mkdir(parents=True, exist_ok=True)
    content = model if isinstance(model, bytes) else model.SerializeToString()
    (source / "model.onnx").write_bytes(content)
    return folder


def features(count: int, seed: int = 5) -> np.ndarray:
    """Samples for models that take 64 features."""
    return np.random.default_rng(seed).standard_normal((count, onnx_models.FEATURES)).astype(np.float32)


@dataclass
class Done:
    """A job's outcome and the steps that it reported."""

    outcome: Outcome
    steps: list[Step] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(step.step for step in self.steps))

    @property
    def facts(self) -> ModelFacts:
        assert self.outcome.status == "ready", self.outcome.message
        assert self.outcome.facts is not None
        return self.outcome.facts

    @property
    def built(self) -> Built:
        """What became of the only recipe."""
        assert len(self.outcome.builds) == 1, self.outcome.message
        return self.outcome.builds[0]


def do(folder: Path, job: Job) -> Done:
    steps: list[Step] = []
    return Done(run(folder, job, steps.append), steps)


def inspect(folder: Path, **fields: Any) -> Done:
    files = listed(folder / SOURCE_FOLDER)
    return do(folder, Job(kind="inspect", files=files, limits=LIMITS, **fields))


def candidates(folder: Path, layers: list[str]) -> Done:
    job = Job(kind="candidates", files=[], limits=LIMITS, layers=layers, stages=[FIRST_STAGE])
    return do(folder, job)


def build(folder: Path, *recipes: Recipe, **fields: Any) -> Done:
    """Build in a folder that holds an analysis; ``stages=[]``: only the source."""
    fields = {"stages": [FIRST_STAGE], **fields}
    files = listed(folder / SOURCE_FOLDER)
    return do(folder, Job(kind="build", files=files, limits=LIMITS, recipes=list(recipes), **fields))


def moved(folder: Path, files: Sequence[AnalysisFile], other: Path) -> Path:
    """Another job's folder, with these files of an analysis and nothing else, as the blob store brings them."""
    for file in files:
        path = other / ANALYSIS_FOLDER / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / ANALYSIS_FOLDER / file.path, path)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
    return other


def artifact(folder: Path, index: int = 0) -> Path:
    return folder / ARTIFACT_FOLDER / str(index)


def operators(folder: Path, index: int = 0) -> set[str]:
    """Of an artifact."""
    model = onnx.load(artifact(folder, index) / "model.onnx", load_external_data=False)
    return {node.op_type for node in model.graph.node}


def recipe(precision: Precision, layers: dict[str, str] | None = None, **fields: Any) -> Recipe:
    return Recipe(
        precision=precision,
        accelerator="cpu",
        execution_provider=CPU,
        emulated=False,
        layers=layers or {},
        **fields,
    )


def uniform(facts: ModelFacts, precision: Precision) -> Recipe:
    """Every layer that can in the precision's usual format."""
    name = EVERYWHERE[precision]
    layers = {layer.name: name for layer in facts.layers if name in layer.formats and name != "fp32"}
    return recipe(precision, layers)


def target(*precisions: Precision, **fields: Any) -> Target:
    """A class with room for anything, that accepts these precisions or all."""
    wanted: dict[str, Any] = {
        "name": "any",
        "version": 1,
        "accelerator": "cpu",
        "execution_provider": CPU,
        "emulated": False,
        "precisions": list(precisions or PRECISIONS),
        "memory_bytes": 1 << 40,
        "storage_bytes": 1 << 40,
        "quality_floor": 0.99,
    }
    return Target(**{**wanted, **fields})


class Inspected:
    """A model's source and analysis in a folder; builds are made in copies of the latter."""

    def __init__(self, folder: Path, model: onnx.ModelProto | bytes) -> None:
        self.folder, self.source = folder, upload(folder, model)
        self.done = inspect(folder)
        self.facts = self.done.facts

    def copy(self, name: str) -> Path:
        return moved(
            self.folder, self.done.outcome.files, self.folder.with_name(f"{self.folder.name}-{name}")
        )
