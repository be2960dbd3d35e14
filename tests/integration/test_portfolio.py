"""Models other than transformers keep their labels when they are tailored, or the class is told why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from quantize_worker.contract import Precision, Target
from quantize_worker.engine import Tailored, tailor
from quantize_worker.sandbox import Sandbox, find_bubblewrap
from tests.integration import portfolio
from tests.integration.portfolio import Trained

CLASSES: dict[str, list[Precision]] = {
    "four-bit": ["int4", "int8", "fp32"],
    "dynamic": ["int8-dynamic", "fp32"],
    "npu": ["int8-qdq"],
    "half": ["fp16"],
}


def device_class(name: str) -> Target:
    return Target(
        name=name,
        version=1,
        accelerator="cpu",
        execution_provider="CPUExecutionProvider",
        emulated=True,
        precisions=CLASSES[name],
        memory_bytes=4 << 30,
        storage_bytes=4 << 30,
        quality_floor=0.98,
    )


def tailored(trained: Trained, folder: Path, names: list[str]) -> tuple[dict[str, Tailored], Path]:
    source, out, work = folder / "source", folder / "out", folder / "work"
    for place in (source, out, work):
        place.mkdir()
    (source / "model.onnx").write_bytes(trained.model.SerializeToString())
    half = len(trained.x) // 2
    np.savez(source / "calibration.npz", x=trained.calibration)
    np.savez(source / "gate.npz", x=trained.x[:half], labels=trained.labels[:half])
    report = tailor(
        source / "model.onnx",
        [device_class(name) for name in names],
        out=out,
        sandbox=Sandbox(bubblewrap=find_bubblewrap()),
        memory_bytes=16 << 30,
        work=work,
        calibration=source / "calibration.npz",
        evaluation=source / "gate.npz",
    )
    return {each.target.name: each for each in report.tailored}, out


def accuracy(model: Path | bytes, trained: Trained) -> float:
    """On the samples that builds were not judged on."""
    half = len(trained.x) // 2
    session = ort.InferenceSession(
        str(model) if isinstance(model, Path) else model, providers=["CPUExecutionProvider"]
    )
    guesses = session.run(["scores"], {"x": trained.x[half:]})[0].argmax(axis=-1)
    return float(np.mean(guesses == trained.labels[half:]))


@pytest.mark.parametrize(
    "train",
    [portfolio.convolutional_classifier, portfolio.gru_classifier, portfolio.lstm_tagger],
    ids=["cnn", "gru", "lstm"],
)
def test_labels_survive_in_every_class(train: Callable[[], Trained], tmp_path: Path) -> None:
    trained = train()
    exact = accuracy(trained.model.SerializeToString(), trained)
    assert exact > 0.9
    found, out = tailored(trained, tmp_path, list(CLASSES))
    for name, each in found.items():
        assert each.outcome == "built", f"{name}: {each.reason}"
        assert accuracy(out / name / "model.onnx", trained) >= exact - 0.02, name


def test_a_tree_ensemble_is_carried_as_it_is_or_refused_with_the_reason(tmp_path: Path) -> None:
    trained = portfolio.tree_ensemble()
    exact = accuracy(trained.model.SerializeToString(), trained)
    found, out = tailored(trained, tmp_path, ["four-bit", "npu"])
    assert found["four-bit"].outcome == "built"
    assert accuracy(out / "four-bit" / "model.onnx", trained) == exact
    assert found["npu"].outcome == "impossible"
    assert "no layer" in found["npu"].reason
