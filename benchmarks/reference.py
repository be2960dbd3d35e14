"""The model that figures are stated for: all-MiniLM-L6-v2 in FP32, and three disjoint lists of sentences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkFailed

Array = NDArray[Any]

SENTENCE_TOKENS = 48
CALIBRATION_SENTENCES = 96  # activations are measured on these
GATE_SENTENCES = 256  # builds are judged, and plans corrected, on these
REPORT_SENTENCES = 256  # figures are stated on these; nothing is ever tuned on them


@dataclass(frozen=True)
class Reference:
    """Files of the model and its sets.

    Args:
        model: ONNX with FP32 weights inside, opset 17.
        calibration, gate, report: ``.npz`` with inputs by name, (sentences, tokens).
    """

    model: Path
    calibration: Path
    gate: Path
    report: Path

    @cached_property
    def outputs(self) -> Array:
        """Of the FP32 source on the report set: (sentences, width)."""
        return self.run(self.model)

    def run(self, model: Path, *, threads: int = 1, sentences: Path | None = None) -> Array:
        """Run a build, one sentence at a time, as a phone would.

        Args:
            sentences: another set than the report set.

        Returns:
            (sentences, width)
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        feeds = samples(sentences or self.report)
        return np.concatenate([session.run(None, feed)[0] for feed in feeds])


def samples(path: Path) -> list[dict[str, Array]]:
    """The samples of a set, one feed each, leading dimension 1."""
    with np.load(path) as arrays:
        inputs = {name: arrays[name] for name in arrays.files if name != "labels"}
    count = len(next(iter(inputs.values())))
    return [{name: values[i : i + 1] for name, values in inputs.items()} for i in range(count)]


def minilm(folder: Path) -> Reference:
    """Write the model and its sets into an existing folder.

    Raises:
        BenchmarkFailed: the package with the model, or enough sentences, are missing.
    """
    from demo import minilm as source
    from demo.sentences import docstring_sentences

    sentences = docstring_sentences()
    sizes = {
        "calibration": CALIBRATION_SENTENCES,
        "gate": GATE_SENTENCES,
        "report": REPORT_SENTENCES,
    }
    if len(sentences) < sum(sizes.values()):
        raise BenchmarkFailed(f"{sum(sizes.values())} sentences are needed, found {len(sentences)}")
    model = source.model_folder()
    source.export(model, folder / "model.onnx")
    tokenizer = source.load_tokenizer(model, length=SENTENCE_TOKENS)
    start = 0
    for name, count in sizes.items():
        np.savez(folder / f"{name}.npz", **source.tokenize(tokenizer, sentences[start : start + count]))  # type: ignore[arg-type]
        start += count
    files = {name: folder / f"{name}.npz" for name in sizes}
    return Reference(model=folder / "model.onnx", **files)
