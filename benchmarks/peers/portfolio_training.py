"""Trains the portfolio on scikit-learn's bundled digits: what models other than transformers are tailored on.

    python portfolio_training.py OUT_FOLDER

Runs under the interpreter of the environment with scikit-learn, PyTorch and skl2onnx. Writes, for each
of ``cnn``, ``gru``, ``lstm`` and ``forest``, ``<name>.onnx`` and two sets: ``<name>-calibration.npz``
(from the training half) and ``<name>-evaluation.npz`` (the other half, with ``labels``). Seeds are fixed.

The tasks: ``cnn`` sees pictures; ``gru`` reads a picture's rows one by one and names the digit;
``lstm`` tags every row with how much ink the rest of the picture below it will have, in four steps.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from torch import nn

EPOCHS = 40
CALIBRATION_SAMPLES = 128
OPSET = 17


class Cnn(nn.Module):
    """Two convolutions, pooling, two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 16, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


class Gru(nn.Module):
    """Rows of a picture through two GRU layers; the last state names the digit."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(8, 96, num_layers=2, batch_first=True)
        self.head = nn.Linear(96, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class Lstm(nn.Module):
    """Rows of a picture through a bidirectional LSTM; every row gets a tag."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(8, 64, batch_first=True, bidirectional=True)
        self.head = nn.Linear(128, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(x)[0])


def ink_tags(rows: np.ndarray) -> np.ndarray:
    """(pictures, 8): which quarter of its range the ink below each row falls into."""
    ink = rows.sum(axis=2)
    below = ink[:, ::-1].cumsum(axis=1)[:, ::-1] - ink
    edges = np.quantile(below, [0.25, 0.5, 0.75])
    return np.digitize(below, edges)


def train(model: nn.Module, x: np.ndarray, y: np.ndarray) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))
    order = np.random.default_rng(0)
    for _ in range(EPOCHS):
        for batch in np.array_split(order.permutation(len(x)), len(x) // 32):
            optimizer.zero_grad()
            scores = model(inputs[batch])
            loss = nn.functional.cross_entropy(scores.flatten(0, -2), labels[batch].flatten())
            loss.backward()
            optimizer.step()
    return model.eval()


def export(model: nn.Module, example: np.ndarray, path: Path) -> None:
    torch.onnx.export(
        model,
        (torch.from_numpy(example),),
        str(path),
        input_names=["x"],
        output_names=["scores"],
        dynamic_axes={"x": {0: "batch"}, "scores": {0: "batch"}},
        opset_version=OPSET,
        dynamo=False,
    )


def write_sets(out: Path, name: str, x: np.ndarray, y: np.ndarray, half: int) -> None:
    np.savez(out / f"{name}-calibration.npz", x=x[:CALIBRATION_SAMPLES])
    np.savez(out / f"{name}-evaluation.npz", x=x[half:], labels=y[half:])


def main(folder: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    out = Path(folder)
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    rows = (digits.images[order] / 16.0).astype(np.float32)  # (pictures, 8, 8)
    labels = digits.target[order].astype(np.int64)
    half = len(rows) // 2
    tasks = {
        "cnn": (Cnn(), rows[:, None], labels),
        "gru": (Gru(), rows, labels),
        "lstm": (Lstm(), rows, ink_tags(rows).astype(np.int64)),
    }
    for name, (model, x, y) in tasks.items():
        trained = train(model, x[:half], y[:half])
        export(trained, x[:2], out / f"{name}.onnx")
        write_sets(out, name, x, y, half)
    flat = rows.reshape(len(rows), 64)
    forest = RandomForestClassifier(60, max_depth=12, random_state=0, n_jobs=1).fit(
        flat[:half], labels[:half]
    )
    inputs = [("x", FloatTensorType([None, 64]))]
    model = to_onnx(forest, initial_types=inputs, target_opset=OPSET, options={"zipmap": False})
    (out / "forest.onnx").write_bytes(model.SerializeToString(deterministic=True))
    write_sets(out, "forest", flat, labels, half)


if __name__ == "__main__":
    main(*sys.argv[1:])
