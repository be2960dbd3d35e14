"""What parent and sandboxed child tell each other, and the names of files in a job's folder.

This module imports nothing heavy: the parent, which never loads ONNX Runtime, reads it too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from quantize_worker.contract import (
    ArtifactDescription,
    ArtifactFile,
    ModelFacts,
    QualityReport,
    Recipe,
    SourceFile,
)
from quantize_worker.steps.confinement import Limits

REQUEST_FILE = "request.json"
RESULT_FILE = "result.json"
SOURCE_FOLDER = "source"
ARTIFACT_FOLDER = "artifact"
CHUNKS_FOLDER = "chunks"
EVALUATION_FILE = "evaluation.npz"
CALIBRATION_FILE = "calibration.npz"


class Job(msgspec.Struct, kw_only=True):
    """What the child is asked for. ``done`` are the files an earlier attempt has finished."""

    kind: Literal["inspect", "build"]
    files: list[SourceFile]
    limits: Limits
    recipe: Recipe | None = None
    facts: ModelFacts | None = None
    done: list[ArtifactFile] = []


class Step(msgspec.Struct, kw_only=True):
    """A line of progress. ``done`` lists files whose chunks are complete and may be stored."""

    step: str
    share: float
    done: list[ArtifactFile] = []


class Outcome(msgspec.Struct, kw_only=True):
    """The child's answer."""

    status: Literal["ready", "built", "refused", "failed"]
    facts: ModelFacts | None = None
    artifact: ArtifactDescription | None = None
    quality: QualityReport | None = None
    code: str = ""
    message: str = ""
    fault: Literal["", "model", "system"] = ""


Report = Callable[[Step], None]
