"""Small classifiers that are no transformers, trained here in milliseconds: CNN, GRU, LSTM tagger, tree ensemble.

Their data are pictures of seven-segment digits with noise, 8x8. First layers are random and fixed, the last one is
fitted by least squares (an echo state network where it is recurrent), so that they are right nearly always.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.integration.onnx_models import model_of

Array = NDArray[Any]
FLOAT = TensorProto.FLOAT
SIDE, DIGITS = 8, 10
# top, upper left, upper right, middle, lower left, lower right, bottom
SEGMENTS = ("1110111", "0010010", "1011101", "1011011", "0111010", "1101011", "1101111", "1010010", "1111111", "1111011")  # fmt: skip
PLACES = [
    (slice(0, 1), slice(1, 7)),
    (slice(0, 4), slice(0, 1)),
    (slice(0, 4), slice(7, 8)),
    (slice(3, 5), slice(1, 7)),
    (slice(4, 8), slice(0, 1)),
    (slice(4, 8), slice(7, 8)),
    (slice(7, 8), slice(1, 7)),
]


@dataclass(frozen=True)
class Trained:
    """A model with held-out samples, its input being ``x`` and its first floating-point output the scores.

    Args:
        labels: (samples,), or (samples, steps) of a tagger.
    """

    model: onnx.ModelProto
    calibration: Array
    x: Array
    labels: Array


def digits(count: int, seed: int, *, noise: float = 0.18) -> tuple[Array, Array]:
    """Pictures (count, 8, 8) and their digits."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, DIGITS, count)
    pictures = generator.normal(0, noise, (count, SIDE, SIDE))
    for picture, label in zip(pictures, labels, strict=True):
        for place, lit in zip(PLACES, SEGMENTS[label], strict=True):
            picture[place] += lit == "1"
    return pictures.astype(np.float32), labels


def convolutional_classifier() -> Trained:
    """Conv - Relu - MaxPool - Flatten - Gemm."""
    channels = 24
    kernel = np.random.default_rng(1).normal(0, 0.5, (channels, 1, 3, 3)).astype(np.float32)

    def features(pictures: Array) -> Array:
        padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        made = np.maximum(np.einsum("nhwij,cij->nchw", windows, kernel[:, 0]), 0)
        pooled = made.reshape(len(made), channels, 4, 2, 4, 2).max(axis=(3, 5))
        return pooled.reshape(len(made), -1)

    weight, bias = _fitted(features, 1500)
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "weight", "bias"], ["scores"], transB=1),
    ]
    weights = {"kernel": kernel, "weight": weight, "bias": bias}
    return _trained(nodes, weights, [1, SIDE, SIDE], [DIGITS], lambda x: x[:, None])


def gru_classifier(hidden: int = 128) -> Trained:
    """Rows of a picture through a GRU; the last state names the digit."""
    w, r = _recurrent("gru", 3, hidden, seed=2)

    def states(pictures: Array) -> Array:
        h = np.zeros((len(pictures), hidden), np.float32)
        for step in range(SIDE):
            x = pictures[:, step] @ w.T
            back = h @ r.T
            z = _sigmoid(x[:, :hidden] + back[:, :hidden])
            reset = _sigmoid(x[:, hidden : 2 * hidden] + back[:, hidden : 2 * hidden])
            new = np.tanh(x[:, 2 * hidden :] + (reset * h) @ r[2 * hidden :].T)
            h = (1 - z) * new + z * h
        return h

    weight, bias = _fitted(states, 1500)
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["steps", "w", "r"], ["", "last"], hidden_size=hidden),
        helper.make_node("Squeeze", ["last", "first_axis"], ["state"]),
        helper.make_node("Gemm", ["state", "weight", "bias"], ["scores"], transB=1),
    ]
    axis = np.array([0], np.int64)
    weights = {"w": w[None], "r": r[None], "weight": weight, "bias": bias, "first_axis": axis}
    return _trained(nodes, weights, [SIDE, SIDE], [DIGITS], lambda x: x)


def lstm_tagger(hidden: int = 96) -> Trained:
    """Every row of a picture is tagged with whether it is mostly lit, as an LSTM sees it."""
    w, r = _recurrent("lstm", 4, hidden, seed=3)

    def states(pictures: Array) -> Array:
        h = c = np.zeros((len(pictures), hidden), np.float32)
        seen = []
        for step in range(SIDE):
            i, o, f, g = np.split(pictures[:, step] @ w.T + h @ r.T, 4, axis=1)
            c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
            h = _sigmoid(o) * np.tanh(c)
            seen.append(h)
        return np.stack(seen, axis=1)  # (pictures, 8, hidden)

    def tags(pictures: Array) -> Array:
        return (pictures.sum(axis=2) > 3).astype(np.int64)

    pictures, _ = digits(800, 10)
    flat = states(pictures).reshape(-1, hidden)
    weight, bias = _least_squares(flat, tags(pictures).reshape(-1), 2)
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["all"], hidden_size=hidden),
        helper.make_node("Squeeze", ["all", "direction"], ["by_step"]),
        helper.make_node("Transpose", ["by_step"], ["by_sample"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["by_sample", "weight"], ["weighed"]),
        helper.make_node("Add", ["weighed", "bias"], ["scores"]),
    ]
    direction = np.array([1], np.int64)
    weights = {"w": w[None], "r": r[None], "weight": weight.T.copy(), "bias": bias, "direction": direction}
    made = _trained(nodes, weights, [SIDE, SIDE], [SIDE, 2], lambda x: x)
    return Trained(made.model, made.calibration, made.x, tags(made.x))


def tree_ensemble() -> Trained:
    """A TreeEnsembleClassifier of ai.onnx.ml: a tree of depth three for each of the first seven segments' pixels."""
    paths = [
        (place[0].start, place[1].start + 1 if place[1].start == 1 else place[1].start) for place in PLACES
    ]
    pixels = [row * SIDE + column for row, column in paths]
    nodes: dict[str, list[Any]] = {key: [] for key in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")}  # fmt: skip
    classes: dict[str, list[Any]] = {key: [] for key in ("treeids", "nodeids", "ids", "weights")}
    for tree, pixel in enumerate(pixels):
        for number, (mode, yes, no) in enumerate((("BRANCH_LEQ", 1, 2), ("LEAF", 0, 0), ("LEAF", 0, 0))):
            entries = (tree, number, pixel, 0.5, mode, yes, no)
            for key, value in zip(nodes, entries, strict=True):
                nodes[key].append(value)
            if mode == "LEAF":
                lit = "1" if number == 2 else "0"
                for digit in range(DIGITS):
                    hit = 1.0 if SEGMENTS[digit][tree] == lit else 0.0
                    for key, value in zip(classes, (tree, number, digit, hit), strict=True):
                        classes[key].append(value)
    node = helper.make_node(
        "TreeEnsembleClassifier",
        ["x"],
        ["label", "scores"],
        domain="ai.onnx.ml",
        classlabels_int64s=list(range(DIGITS)),
        post_transform="NONE",
        **{f"nodes_{key}": value for key, value in nodes.items()},
        **{f"class_{key}": value for key, value in classes.items()},
    )
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["n", SIDE * SIDE])]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
        helper.make_tensor_value_info("scores", FLOAT, ["n", DIGITS]),
    ]
    model = model_of([node], inputs, outputs, {}, domains=("ai.onnx.ml",))
    held_out, labels = digits(128, 30, noise=0.15)
    calibration, _ = digits(32, 31, noise=0.15)
    return Trained(model, calibration.reshape(32, -1), held_out.reshape(128, -1), labels)


def _trained(
    nodes: list[onnx.NodeProto], weights: dict[str, Array], shape: list[int], scores: list[int], form: Any
) -> Trained:
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["n", *shape])]
    outputs = [helper.make_tensor_value_info("scores", FLOAT, ["n", *scores])]
    held_out, labels = digits(128, 20)
    calibration, _ = digits(64, 21)
    return Trained(model_of(nodes, inputs, outputs, weights), form(calibration), form(held_out), labels)


def _fitted(features: Any, count: int) -> tuple[Array, Array]:
    pictures, labels = digits(count, 10)
    return _least_squares(features(pictures), labels, DIGITS)


def _least_squares(features: Array, labels: Array, classes: int) -> tuple[Array, Array]:
    """Ridge regression onto one column per class: weight (classes, features) and bias."""
    with_one = np.concatenate([features, np.ones((len(features), 1))], axis=1).astype(np.float64)
    wanted = np.eye(classes)[labels]
    gram = with_one.T @ with_one + 1e-2 * np.eye(with_one.shape[1])
    found = np.linalg.solve(gram, with_one.T @ wanted).astype(np.float32)
    return found[:-1].T.copy(), found[-1].copy()


def _recurrent(kind: str, gates: int, hidden: int, *, seed: int) -> tuple[Array, Array]:
    """Input and recurrent weights, (gates * hidden, inputs) each, of a spectral radius below 1."""
    generator = np.random.default_rng(seed)
    w = generator.normal(0, 0.6, (gates * hidden, SIDE)).astype(np.float32)
    r = generator.normal(0, 0.7 / np.sqrt(hidden), (gates * hidden, hidden)).astype(np.float32)
    return w, r


def _sigmoid(x: Array) -> Array:
    made: Array = 1 / (1 + np.exp(-x))
    return made
