"""``python -m quantize_worker tailor`` as a person starts it: a real process, the real sandbox."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.integration.onnx_models import CLASSES, FEATURES, classifier
from tests.processes import until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model and two sets; temporary files go to ``temporary``."""
    onnx.save(classifier(), tmp_path / "model.onnx")
    generator = np.random.default_rng(3)
    for name in ("eval", "calibration"):
        values = generator.standard_normal((64, FEATURES)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", x=values)
    (tmp_path / "temporary").mkdir()
    return tmp_path


def target(place: Path, name: str, **changes: Any) -> list[str]:
    fields = {
        "name": name,
        "accelerator": "cpu",
        "precisions": ["int4", "int8"],
        "memory_bytes": 1 << 28,
        "storage_bytes": 1 << 26,
        "quality_floor": 0.95,
    }
    path = place / f"{name}.json"
    path.write_text(json.dumps(fields | changes))
    return ["--target", str(path)]


def start(place: Path, *arguments: str, memory_bytes: int = 8 << 30) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "quantize_worker", "tailor", *arguments]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(place / "temporary"),
        "POCKETFLEET_JOB_MEMORY_BYTES": str(memory_bytes),
    }
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(place: Path, *arguments: str, **limits: int) -> tuple[int, str, str]:
    process = start(place, *arguments, **limits)
    printed, errors = process.communicate(timeout=300)
    assert list((place / "temporary").iterdir()) == []
    return process.returncode, printed, errors


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("model.*")}


def test_every_class_is_built(place: Path) -> None:
    classes = [*target(place, "entry"), *target(place, "phone", precisions=["fp16"])]
    sets = ["--eval", "eval.npz", "--calibration", "calibration.npz"]
    code, printed, errors = run(place, "model.onnx", *classes, *sets, "--out", "out", "--json")
    assert code == 0, errors
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["class", "entry", "phone"]
    last = json.loads(lines[-1])
    assert (last["exit_code"], last["unverified"]) == (0, False)
    assert [(each["name"], each["outcome"]) for each in last["classes"]] == [
        ("entry", "built"),
        ("phone", "built"),
    ]
    assert "inspect: analyse" in errors
    assert "build: evaluate" in errors
    assert sorted(path.name for path in (place / "out").iterdir()) == [
        "entry",
        "phone",
        "report.html",
        "report.json",
    ]
    for name in ("entry", "phone"):
        folder = place / "out" / name
        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        assert session.run(None, {"x": np.zeros((2, FEATURES), np.float32)})[0].shape == (2, CLASSES)
        listed = {
            each["path"]: each["sha256"] for each in json.loads((folder / "report.json").read_text())["files"]
        }
        assert digests(folder).items() <= listed.items()
        assert {"model.onnx", "golden.npz"} <= listed.keys()

    first = digests(place / "out" / "entry")
    again = ["model.onnx", *target(place, "entry"), *sets, "--out", "out"]
    code, _, errors = run(place, *again)
    assert (code, "error: out_not_empty: " in errors) == (2, True)
    code, _, errors = run(place, *again, "--force")
    assert code == 0, errors
    assert digests(place / "out" / "entry") == first


def test_an_impossible_class_is_told_the_nearest_budget(place: Path) -> None:
    classes = [*target(place, "entry"), *target(place, "tiny", storage_bytes=100)]
    code, printed, errors = run(place, "model.onnx", *classes, "--out", "out", "--json")
    assert code == 1, errors
    last = json.loads(printed.splitlines()[-1])
    assert [each["outcome"] for each in last["classes"]] == ["built", "impossible"]
    assert last["unverified"] is True
    found = json.loads((place / "out" / "tiny" / "report.json").read_text())
    assert (found["nearest"]["budget"], found["nearest"]["allowed"]) == ("storage", 100)
    assert found["nearest"]["needed"] > 100
    assert [path.name for path in (place / "out" / "tiny").iterdir()] == ["report.json"]


def not_onnx(place: Path) -> None:
    (place / "model.onnx").write_bytes(b"this is no model")


def other_input(place: Path) -> None:
    np.savez(place / "eval.npz", y=np.zeros((4, FEATURES), np.float32))


def other_shape(place: Path) -> None:
    np.savez(place / "eval.npz", x=np.zeros((4, 3), np.float32))


def short_labels(place: Path) -> None:
    np.savez(place / "eval.npz", x=np.zeros((4, FEATURES), np.float32), labels=np.zeros(3, np.int64))


@pytest.mark.parametrize(
    ("spoil", "refusal"),
    [
        (not_onnx, "not_onnx"),
        (other_input, "wrong_input_names"),
        (other_shape, "wrong_sample_shape"),
        (short_labels, "wrong_labels"),
    ],
)
def test_bad_input_is_refused_with_its_code(place: Path, spoil: Any, refusal: str) -> None:
    spoil(place)
    arguments = ["model.onnx", *target(place, "entry"), "--eval", "eval.npz", "--out", "out", "--json"]
    code, printed, errors = run(place, *arguments)
    assert code == 2, errors
    assert errors.splitlines()[-1].startswith(f"error: {refusal}: ")
    assert json.loads(printed.splitlines()[-1])["error"]["code"] == refusal
    assert not (place / "out").exists()


def test_too_little_memory_is_our_failure(place: Path) -> None:
    arguments = ["model.onnx", *target(place, "entry"), "--out", "out"]
    code, printed, errors = run(place, *arguments, memory_bytes=150 << 20)
    assert (code, printed) == (3, "")
    assert errors.splitlines()[-1].startswith(("error: memory_limit: ", "error: worker_failed: "))
    assert not (place / "out").exists()


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_without_a_trace(place: Path, number: signal.Signals, expected: int) -> None:
    process = start(place, "model.onnx", *target(place, "entry"), "--out", "out")
    assert process.stderr is not None
    assert process.stderr.readline().startswith("inspect: ")
    assert until(lambda: list((place / "temporary").rglob("request.json")), "the job has started")
    process.send_signal(number)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == expected
    assert errors.splitlines()[-1].startswith("error: cancelled: ")
    assert printed == ""
    assert not (place / "out").exists()
    assert list((place / "temporary").iterdir()) == []


def test_who_tailors_never_loads_onnx_runtime() -> None:
    program = "import sys, quantize_worker.cli; print(sorted(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not any(f"'{name}'" in answer.stdout for name in ("onnxruntime", "onnx", "celery"))
