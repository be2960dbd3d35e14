"""Our exporter against what the model's publishers say about it, and against plain NumPy."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from demo import minilm, sentences
from quantize_worker.errors import ModelRefused

Array = NDArray[Any]

# The example of the library's own documentation (sentence-transformers, "Usage"), to four digits.
PUBLISHED_SENTENCES = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
PUBLISHED_SIMILARITIES = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]


@pytest.fixture(scope="module")
def folder() -> Path:
    return minilm.model_folder()


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("minilm") / "model.onnx"
    minilm.export(folder, path)
    return path


@pytest.fixture(scope="module")
def session(exported: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])


def embed(session: onnxruntime.InferenceSession, folder: Path, texts: list[str], **options: int) -> Array:
    inputs = minilm.tokenize(minilm.load_tokenizer(folder, **options), texts)
    return np.asarray(session.run(None, inputs)[0])


def test_similarities_are_the_published_ones(session: onnxruntime.InferenceSession, folder: Path) -> None:
    vectors = embed(session, folder, PUBLISHED_SENTENCES)
    np.testing.assert_allclose(vectors @ vectors.T, PUBLISHED_SIMILARITIES, atol=1e-4)


def test_form(exported: Path) -> None:
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in model.graph.output] == ["sentence_embedding"]
    assert model.opset_import[0].version >= 17
    assert {node.op_type for node in model.graph.node} >= {"MatMul", "LayerNormalization", "Erf", "Softmax"}


def test_vectors_have_length_one(session: onnxruntime.InferenceSession, folder: Path) -> None:
    vectors = embed(session, folder, ["one", "two words", "a somewhat longer sentence, with a comma"])
    assert vectors.shape == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_padding_changes_nothing(session: onnxruntime.InferenceSession, folder: Path) -> None:
    text = ["How is padding ignored?"]
    np.testing.assert_allclose(
        embed(session, folder, text), embed(session, folder, text, length=64), atol=1e-5
    )


def test_a_sample_does_not_depend_on_its_batch(session: onnxruntime.InferenceSession, folder: Path) -> None:
    texts = ["first", "the second one is longer than the first", "third"]
    alone = np.concatenate([embed(session, folder, [text]) for text in texts])
    np.testing.assert_allclose(embed(session, folder, texts), alone, atol=1e-5)


def test_texts_are_cut_at_the_published_length(folder: Path) -> None:
    inputs = minilm.tokenize(minilm.load_tokenizer(folder), ["word " * 1000])
    assert inputs["input_ids"].shape == (1, 256)
    assert inputs["input_ids"][0, 0] == 101  # [CLS]
    assert inputs["input_ids"][0, -1] == 102  # [SEP]


def test_the_longest_positions_work(session: onnxruntime.InferenceSession) -> None:
    ids = np.ones((1, 512), np.int64)
    assert np.isfinite(session.run(None, {"input_ids": ids, "attention_mask": ids})[0]).all()


def test_equal_to_plain_numpy(session: onnxruntime.InferenceSession, folder: Path) -> None:
    texts = ["An independent forward pass.", "Written without any graph at all."]
    inputs = minilm.tokenize(minilm.load_tokenizer(folder), texts)
    expected = forward(folder, inputs["input_ids"], inputs["attention_mask"])
    np.testing.assert_allclose(session.run(None, dict(inputs))[0], expected, atol=2e-5)


def test_the_same_every_time(folder: Path, exported: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.onnx"
    minilm.export(folder, again)
    assert again.read_bytes() == exported.read_bytes()


def test_other_networks_are_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "t5"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelRefused, match="'t5'"):
        minilm.export(tmp_path, tmp_path / "model.onnx")


def test_exporting_needs_no_pytorch() -> None:
    code = (
        "import sys; from demo import minilm, sentences; minilm.model_folder(); print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_sets_have_equal_length_and_share_nothing(folder: Path, tmp_path: Path) -> None:
    tokenizer = minilm.load_tokenizer(folder, length=sentences.SEQUENCE_LENGTH)
    paths = [tmp_path / "evaluation.npz", tmp_path / "calibration.npz"]
    sentences.write_sets(tokenizer, evaluation=paths[0], calibration=paths[1])
    rows = []
    for path, count in zip(paths, (sentences.EVALUATION_SAMPLES, sentences.CALIBRATION_SAMPLES), strict=True):
        with np.load(path, allow_pickle=False) as stored:
            assert sorted(stored.files) == ["attention_mask", "input_ids"]
            assert stored["input_ids"].shape == (count, sentences.SEQUENCE_LENGTH)
            assert stored["input_ids"].dtype == np.int64
            rows.append({row.tobytes() for row in stored["input_ids"]})
    assert not rows[0] & rows[1]


def test_sentences_come_from_docstrings_alone(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        '"""The module says what it is for."""\nx = "this is no docstring at all"\n'
    )
    (tmp_path / "b.py").write_text('def f():\n    """The module says what it is for."""\n')
    (tmp_path / "c.py").write_text('class C:\n    """Spread over\n    two lines it is.\n\n    And more."""\n')
    (tmp_path / "d.py").write_text("this does not parse (")
    found = sentences.docstring_sentences(tmp_path)
    assert sorted(found) == ["Spread over two lines it is.", "The module says what it is for."]
    assert found == sentences.docstring_sentences(tmp_path)


def forward(folder: Path, ids: Array, mask: Array) -> Array:
    """BERT in NumPy, written from the paper and the configuration: (batch, hidden)."""
    weights = load_file(folder / "model.safetensors")

    def dense(name: str, x: Array) -> Array:
        return np.asarray(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])

    def norm(name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + 1e-12)
        return np.asarray(scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"])

    batch, length = ids.shape
    hidden = weights["embeddings.word_embeddings.weight"][ids]
    hidden = hidden + weights["embeddings.position_embeddings.weight"][:length]
    hidden = norm("embeddings.LayerNorm", hidden + weights["embeddings.token_type_embeddings.weight"][0])
    for index in range(6):
        stem = f"encoder.layer.{index}"
        query, key, value = (
            dense(f"{stem}.attention.self.{part}", hidden)
            .reshape(batch, length, 12, 32)
            .transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(32)
        scores = np.where(mask[:, None, None, :] == 1, scores, -np.inf)
        chances = np.exp(scores - scores.max(axis=-1, keepdims=True))
        chances /= chances.sum(axis=-1, keepdims=True)
        mixed = (chances @ value).transpose(0, 2, 1, 3).reshape(batch, length, 384)
        attended = dense(f"{stem}.attention.output.dense", mixed)
        middle = norm(f"{stem}.attention.output.LayerNorm", attended + hidden)
        wide = dense(f"{stem}.intermediate.dense", middle)
        wide = 0.5 * wide * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))
        hidden = norm(f"{stem}.output.LayerNorm", dense(f"{stem}.output.dense", wide) + middle)
    mean = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True))
