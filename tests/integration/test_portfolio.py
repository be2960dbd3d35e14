"""Networks that are no transformers, with labels, tailored to four classes without a server, in the real sandbox."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantize_worker.contract import Target
from quantize_worker.engine import Tailored, tailor
from quantize_worker.sandbox import Sandbox, find_bubblewrap
from tests.integration import portfolio
from tests.integration.job_folders import target

FLOOR = 0.99
CLASSES = [
    target(name="small", quality_floor=FLOOR),
    target("int8-qdq", "int8-qdq16", name="npu", quality_floor=FLOOR),
    target("fp16", name="gpu", accelerator="gpu", emulated=True, quality_floor=FLOOR),
    target("fp32", "int8-dynamic", name="fast", objective="latency", quality_floor=FLOOR),
]


def tailored(trained: portfolio.Trained, folder: Path, classes: list[Target]) -> dict[str, Tailored]:
    for name in ("work", "out"):
        (folder / name).mkdir()
    (folder / "model.onnx").write_bytes(trained.model.SerializeToString())
    np.savez(folder / "calibration.npz", x=trained.calibration)
    np.savez(folder / "evaluation.npz", x=trained.x, labels=trained.labels)
    report = tailor(
        folder / "model.onnx",
        classes,
        out=folder / "out",
        sandbox=Sandbox(bubblewrap=find_bubblewrap()),
        memory_bytes=8 << 30,
        work=folder / "work",
        calibration=folder / "calibration.npz",
        evaluation=folder / "evaluation.npz",
    )
    assert report.facts.accuracy is not None
    assert report.facts.accuracy > 0.9
    assert not list((folder / "work").iterdir())
    return {one.target.name: one for one in report.tailored}


@pytest.mark.parametrize(
    "make",
    [
        portfolio.convolutional_classifier,
        portfolio.gru_classifier,
        portfolio.lstm_tagger,
        portfolio.tree_ensemble,
    ],
    ids=lambda make: make.__name__,
)
def test_labels_stay_right(make: Callable[[], portfolio.Trained], tmp_path: Path) -> None:
    found = tailored(make(), tmp_path, CLASSES)
    assert list(found) == [one.name for one in CLASSES]
    for name, one in found.items():
        if make is portfolio.tree_ensemble and name in ("npu", "gpu"):
            assert one.outcome == "impossible", one.reason  # it holds thresholds, and no weights
            assert one.reason
            continue
        assert one.outcome == "built", (name, one.reason)
        quality = one.attempts[-1].quality
        assert quality is not None
        assert quality.metric == "accuracy"
        assert quality.value >= FLOOR
        assert (tmp_path / "out" / name / "model.onnx").exists()
