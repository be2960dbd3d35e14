"""Bad input through a whole inspection: each has its code and a sentence, and good exports pass."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from quantize_worker.pipeline import run
from quantize_worker.sandbox import Sandbox
from quantize_worker.steps.confinement import Limits
from quantize_worker.steps.exchange import CALIBRATION_FILE, EVALUATION_FILE, SOURCE_FOLDER, Job, Outcome
from tests import exports
from tests.exports import listed
from tests.integration import onnx_models

Array = NDArray[Any]
LIMITS = Limits(wall_s=120, memory_bytes=4 << 30)
X = np.random.default_rng(0).standard_normal((40, onnx_models.FEATURES)).astype(np.float32)
LABELS = np.arange(40) % onnx_models.CLASSES


def upload(folder: Path, model: onnx.ModelProto | bytes) -> Path:
    (folder / SOURCE_FOLDER).mkdir(parents=True)
    content = model if isinstance(model, bytes) else model.SerializeToString()
    (folder / SOURCE_FOLDER / "model.onnx").write_bytes(content)
    return folder


def inspect(folder: Path) -> Outcome:
    files = listed(folder / SOURCE_FOLDER)
    return run(folder, Job(kind="inspect", files=files, limits=LIMITS), lambda step: None)


def broken_weight() -> onnx.ModelProto:
    model = onnx_models.classifier()
    value = numpy_helper.to_array(model.graph.initializer[0]).copy()
    value[3, 5] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(value, "w1"))
    return model


def newer() -> onnx.ModelProto:
    model = onnx_models.classifier()
    model.opset_import[0].version = 99
    return model


MODELS: dict[str, tuple[Callable[[], onnx.ModelProto | bytes], str, str]] = {
    "text": (lambda: b"hello, this is no model at all", "not_onnx", "torch.onnx.export"),
    "half a file": (
        lambda: onnx_models.classifier().SerializeToString()[:-2000],
        "truncated",
        "upload it again",
    ),
    "opset": (newer, "unknown_opset", "opset 99"),
    "NaN": (broken_weight, "non_finite_weights", "'w1'"),
    "custom": (exports.custom, "unsupported_operator", "'odd'"),
    "logarithm": (onnx_models.logarithmic, "non_finite_outputs", "generated inputs"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_refused(name: str, tmp_path: Path) -> None:
    make, code, words = MODELS[name]
    outcome = inspect(upload(tmp_path, make()))
    assert (outcome.status, outcome.code) == ("refused", code), outcome.message
    assert words in outcome.message


SETS: dict[str, tuple[str, dict[str, Array], str]] = {
    "labels": (EVALUATION_FILE, {"x": X, "labels": LABELS[:-1]}, "wrong_labels"),
    "names": (CALIBRATION_FILE, {"y": X}, "wrong_input_names"),
    "shape": (CALIBRATION_FILE, {"x": X[:, 1:]}, "wrong_sample_shape"),
    "NaN": (CALIBRATION_FILE, {"x": np.full_like(X, np.nan)}, "invalid_samples"),
    "type": (EVALUATION_FILE, {"x": X.astype(str)}, "invalid_samples"),
}


@pytest.mark.parametrize("name", SETS)
def test_sets_that_are_refused(name: str, tmp_path: Path) -> None:
    file, arrays, code = SETS[name]
    folder = upload(tmp_path, onnx_models.classifier())
    np.savez(folder / file, **arrays)  # type: ignore[arg-type]
    outcome = inspect(folder)
    assert (outcome.status, outcome.code) == ("refused", code), outcome.message
    assert file.removesuffix(".npz") in outcome.message


def test_outputs_that_are_no_numbers_on_the_evaluation_set(tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.logarithmic())
    np.savez(folder / EVALUATION_FILE, x=X)
    outcome = inspect(folder)
    assert (outcome.status, outcome.code) == ("refused", "non_finite_outputs")
    assert "evaluation set" in outcome.message


@pytest.mark.parametrize(
    "make",
    [
        exports.cnn,
        exports.gru,
        exports.lstm,
        exports.decoder,
        exports.conditional,
        exports.trees,
        exports.scalar_input,
    ],
    ids=lambda make: make.__name__,
)
def test_exports_of_every_kind_are_inspected(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    outcome = inspect(upload(tmp_path, make()))
    assert outcome.status == "ready", outcome.message
    assert outcome.facts is not None
    assert outcome.facts.synthetic_samples
    assert any(layer.quantizable for layer in outcome.facts.layers)


def test_an_evaluation_set_also_calibrates_but_on_other_samples(tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.classifier())
    np.savez(folder / EVALUATION_FILE, x=X, labels=LABELS)
    outcome = inspect(folder)
    assert outcome.status == "ready", outcome.message
    with (
        np.load(folder / "analysis" / "gate.npz") as gate,
        np.load(folder / "analysis" / "calibration.npz") as other,
    ):
        judged = {row.tobytes() for row in gate["input/x"]}
        assert len(judged) == 30
        assert not judged & {row.tobytes() for row in other["input/x"]}


def test_a_full_disk_fails_the_job_and_says_so(tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.embedder())
    limits = Limits(wall_s=120, memory_bytes=4 << 30, file_bytes=50_000)
    job = Job(kind="inspect", files=listed(folder / SOURCE_FOLDER), limits=limits)
    outcome = Sandbox().run(folder, job, lambda step: None, threading.Event())
    assert (outcome.status, outcome.code, outcome.fault) == ("failed", "disk_full", "system")
