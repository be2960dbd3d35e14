"""What parent and sandboxed child tell each other, and the names of files in a job's folder.

This module imports nothing heavy: the parent, which never loads ONNX Runtime, reads it too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from quantize_worker.contract import (
    AnalysisFile,
    ArtifactDescription,
    ArtifactFile,
    LayerFacts,
    ModelFacts,
    QualityReport,
    Recipe,
    SourceFile,
)
from quantize_worker.steps.confinement import Limits

REQUEST_FILE = "request.json"
RESULT_FILE = "result.json"
SOURCE_FOLDER = "source"
ANALYSIS_FOLDER = "analysis"
ARTIFACT_FOLDER = "artifact"  # one folder per recipe below it, by position
CHUNKS_FOLDER = "chunks"
EVALUATION_FILE = "evaluation.npz"
CALIBRATION_FILE = "calibration.npz"
FIRST_STAGE = "prepare"  # what batches and builds start from


class Job(msgspec.Struct, kw_only=True):
    """What the child is asked for.

    ``stages`` names what an earlier attempt, or the inspection, has finished: its files are in the
    analysis folder. ``done`` are the files of the first recipe's artifact that an earlier attempt
    has finished. A job of several recipes builds them one after the other.
    """

    kind: Literal["inspect", "candidates", "build"]
    files: list[SourceFile]
    limits: Limits
    facts: ModelFacts | None = None
    recipes: list[Recipe] = []
    floors: list[list[float]] = []  # per recipe, of the classes that wait for it
    layers: list[str] = []  # whose candidates are wanted
    stages: list[str] = []
    done: list[ArtifactFile] = []
    chunked: bool = True  # whether artifacts are also cut into chunks
    batch_parameters: int | None = None  # a model of more is analysed in batches of about as many


class Step(msgspec.Struct, kw_only=True):
    """A line of progress.

    ``done`` lists artifact files whose chunks are complete, ``stage`` and ``files`` a part of the
    analysis that is: both may be stored.
    """

    step: str
    share: float
    done: list[ArtifactFile] = []
    stage: str = ""
    files: list[AnalysisFile] = []


class Built(msgspec.Struct, kw_only=True):
    """What became of one recipe: artifact and quality, or a code and a sentence."""

    artifact: ArtifactDescription | None = None
    quality: QualityReport | None = None
    seconds: float = 0.0
    code: str = ""
    message: str = ""
    fault: Literal["", "model", "system"] = ""


class Outcome(msgspec.Struct, kw_only=True):
    """The child's answer: facts of an inspection, layers of a batch, or one entry per recipe."""

    status: Literal["ready", "built", "refused", "failed"]
    facts: ModelFacts | None = None
    layers: list[LayerFacts] = []
    batches: list[list[str]] = []
    files: list[AnalysisFile] = []
    builds: list[Built] = []
    code: str = ""
    message: str = ""
    fault: Literal["", "model", "system"] = ""


Report = Callable[[Step], None]
