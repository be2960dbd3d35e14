"""Encoders written from safetensors, against plain NumPy; and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from quantize_worker.errors import ModelRefused
from quantize_worker.steps import checkpoint
from quantize_worker.steps.prepare import prepare
from quantize_worker.steps.safetensors_source import export
from tests.exports import listed

Array = NDArray[Any]
WIDTH, HEADS, LAYERS, INNER, WORDS, PLACES, PADDING = 16, 4, 2, 32, 60, 24, 1
IDS = np.array([[5, 6, 7, 8, 9], [10, 11, 12, PADDING, PADDING]])
MASK = (IDS != PADDING).astype(np.int64)
TYPES = np.array([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]])
CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": INNER,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "type_vocab_size": 2,
    "pad_token_id": PADDING,
}
DISTIL: dict[str, Any] = {
    "model_type": "distilbert",
    "architectures": ["DistilBertForMaskedLM"],
    "dim": WIDTH,
    "n_heads": HEADS,
    "n_layers": LAYERS,
    "hidden_dim": INNER,
    "activation": "gelu",
    "pad_token_id": PADDING,
}
DISTIL_NAMES = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


def weights(types: int = 2) -> dict[str, Array]:
    """A random encoder under BERT's names."""
    generator = np.random.default_rng(3)

    def random(*shape: int) -> Array:
        return (generator.standard_normal(shape) * 0.3).astype(np.float32)

    found = {
        "embeddings.word_embeddings.weight": random(WORDS, WIDTH),
        "embeddings.position_embeddings.weight": random(PLACES, WIDTH),
        "embeddings.LayerNorm.weight": random(WIDTH) + 1,
        "embeddings.LayerNorm.bias": random(WIDTH),
    }
    if types:
        found["embeddings.token_type_embeddings.weight"] = random(types, WIDTH)
    for index in range(LAYERS):
        stem = f"encoder.layer.{index}"
        shapes = {
            **{f"attention.self.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")},
            "attention.output.dense": (WIDTH, WIDTH),
            "intermediate.dense": (INNER, WIDTH),
            "output.dense": (WIDTH, INNER),
        }
        for name, shape in shapes.items():
            found[f"{stem}.{name}.weight"] = random(*shape)
            found[f"{stem}.{name}.bias"] = random(shape[0])
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            found[f"{stem}.{name}.weight"] = random(WIDTH) + 1
            found[f"{stem}.{name}.bias"] = random(WIDTH)
    return found


def forward(
    found: dict[str, Array], positions: Array, types: Array | None, epsilon: float, act: str
) -> Array:
    """The encoder in NumPy, written from the papers: (batch, seq, hidden)."""

    def dense(name: str, x: Array) -> Array:
        return np.asarray(x @ found[f"{name}.weight"].T + found[f"{name}.bias"])

    def norm(name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + epsilon)
        return np.asarray(scaled * found[f"{name}.weight"] + found[f"{name}.bias"])

    curves = {
        "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
        "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "relu": lambda x: np.maximum(x, 0),
    }
    hidden = found["embeddings.word_embeddings.weight"][IDS]
    hidden = hidden + found["embeddings.position_embeddings.weight"][positions]
    if types is not None:
        hidden = hidden + found["embeddings.token_type_embeddings.weight"][types]
    hidden = norm("embeddings.LayerNorm", hidden)
    batch, length = IDS.shape
    for index in range(LAYERS):
        stem = f"encoder.layer.{index}"
        query, key, value = (
            dense(f"{stem}.attention.self.{part}", hidden)
            .reshape(batch, length, HEADS, WIDTH // HEADS)
            .transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(WIDTH // HEADS)
        scores = np.where(MASK[:, None, None, :] == 1, scores, -np.inf)
        chances = np.exp(scores - scores.max(axis=-1, keepdims=True))
        chances /= chances.sum(axis=-1, keepdims=True)
        mixed = (chances @ value).transpose(0, 2, 1, 3).reshape(batch, length, WIDTH)
        middle = norm(
            f"{stem}.attention.output.LayerNorm", dense(f"{stem}.attention.output.dense", mixed) + hidden
        )
        wide = curves[act](dense(f"{stem}.intermediate.dense", middle))
        hidden = norm(f"{stem}.output.LayerNorm", dense(f"{stem}.output.dense", wide) + middle)
    return hidden


def upload(folder: Path, config: dict[str, Any], tensors: dict[str, Array]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "model.safetensors"
    )
    return folder / "config.json"


def answer(config: Path, folder: Path, **inputs: Array) -> Array:
    folder.mkdir(parents=True, exist_ok=True)
    path, _ = export(config, folder)
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == set(inputs)
    return np.asarray(session.run(None, inputs)[0])


def pooled(tmp_path: Path, mode: str, *, normalize: bool) -> None:
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": f"{i}_{kind}" if i else ""}
        for i, kind in enumerate(kinds)
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    settings = {
        f"pooling_mode_{name}": name == mode
        for name in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    }
    (tmp_path / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": WIDTH} | settings)
    )


PLAIN_POSITIONS = np.broadcast_to(np.arange(5), IDS.shape)


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
def test_bert(act: str, tmp_path: Path) -> None:
    config = upload(tmp_path / "source", CONFIG | {"hidden_act": act}, weights())
    found = answer(config, tmp_path / "out", input_ids=IDS, attention_mask=MASK, token_type_ids=TYPES)
    expected = forward(weights(), PLAIN_POSITIONS, TYPES, 1e-5, act)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_roberta_counts_positions_from_its_padding(tmp_path: Path) -> None:
    tensors = {f"roberta.{name}": value for name, value in weights(1).items()}
    tensors |= {"lm_head.dense.weight": np.zeros((2, 2), np.float32)}
    settings = CONFIG | {
        "model_type": "xlm-roberta",
        "type_vocab_size": 1,
        "architectures": ["XLMRobertaForMaskedLM"],
    }
    config = upload(tmp_path / "source", settings, tensors)
    found = answer(config, tmp_path / "out", input_ids=IDS, attention_mask=MASK)
    positions = np.cumsum(MASK, axis=1) * MASK + PADDING
    expected = forward(weights(1), positions, np.zeros_like(IDS), 1e-5, "gelu")
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert "XLMRobertaForMaskedLM" in export(config, tmp_path / "out")[1]


def distil(tensors: dict[str, Array]) -> dict[str, Array]:
    found = {}
    for name, value in tensors.items():
        if name.startswith("encoder."):
            _, _, index, rest = name.split(".", 3)
            inner, _, kind = rest.rpartition(".")
            name = f"transformer.layer.{index}.{DISTIL_NAMES[inner]}.{kind}"
        found[f"distilbert.{name}"] = value
    return found


def test_distilbert(tmp_path: Path) -> None:
    config = upload(tmp_path / "source", DISTIL, distil(weights(0)))
    found = answer(config, tmp_path / "out", input_ids=IDS, attention_mask=MASK)
    np.testing.assert_allclose(found, forward(weights(0), PLAIN_POSITIONS, None, 1e-12, "gelu"), atol=2e-5)


@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "max_tokens"])
@pytest.mark.parametrize("normalize", [True, False])
def test_pooling(mode: str, normalize: bool, tmp_path: Path) -> None:
    config = upload(tmp_path / "source", CONFIG, weights())
    pooled(tmp_path / "source", mode, normalize=normalize)
    found = answer(config, tmp_path / "out", input_ids=IDS, attention_mask=MASK)
    hidden = forward(weights(), PLAIN_POSITIONS, np.zeros_like(IDS), 1e-5, "gelu")
    expected = {
        "mean_tokens": (hidden * MASK[..., None]).sum(axis=1) / MASK.sum(axis=1, keepdims=True),
        "cls_token": hidden[:, 0],
        "max_tokens": np.where(MASK[..., None] == 1, hidden, -np.inf).max(axis=1),
    }[mode]
    if normalize:
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("kind", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_precisions_become_float32(kind: Any, tmp_path: Path) -> None:
    tensors = {name: value.astype(kind) for name, value in weights().items()}
    config = upload(tmp_path / "source", CONFIG, tensors)
    found = answer(config, tmp_path / "out", input_ids=IDS, attention_mask=MASK, token_type_ids=TYPES)
    restored = {name: value.astype(np.float32) for name, value in tensors.items()}
    np.testing.assert_allclose(found, forward(restored, PLAIN_POSITIONS, TYPES, 1e-5, "gelu"), atol=2e-5)


def test_tables_are_written_in_blocks_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PIECE_BYTES", 7 * 4 * WIDTH)
    config = upload(tmp_path / "source", CONFIG, weights())
    rows = checkpoint.Checkpoint(config.parent).rows("embeddings.word_embeddings.weight")
    blocks = list(rows.pieces())
    assert {len(block) for block in blocks} == {7, WORDS % 7}
    np.testing.assert_array_equal(np.concatenate(blocks), weights()["embeddings.word_embeddings.weight"])


def sharded(folder: Path) -> Path:
    tensors = weights()
    names = sorted(tensors)
    config = upload(folder, CONFIG, {})
    (folder / "model.safetensors").unlink()
    index: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return config


def test_weights_in_several_files(tmp_path: Path) -> None:
    config = sharded(tmp_path / "source")
    found = answer(config, tmp_path / "out", input_ids=IDS, attention_mask=MASK, token_type_ids=TYPES)
    np.testing.assert_allclose(found, forward(weights(), PLAIN_POSITIONS, TYPES, 1e-5, "gelu"), atol=2e-5)
    (tmp_path / "source" / "model-1.safetensors").unlink()
    assert refusal(config, tmp_path).code == "missing_file"


def test_the_oldest_names_of_normalization(tmp_path: Path) -> None:
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in weights().items()
    }
    config = upload(tmp_path / "source", CONFIG, {f"bert.{name}": value for name, value in tensors.items()})
    found = answer(config, tmp_path / "out", input_ids=IDS, attention_mask=MASK, token_type_ids=TYPES)
    np.testing.assert_allclose(found, forward(weights(), PLAIN_POSITIONS, TYPES, 1e-5, "gelu"), atol=2e-5)


def refusal(config: Path, tmp_path: Path) -> ModelRefused:
    (tmp_path / "refused").mkdir(exist_ok=True)
    with pytest.raises(ModelRefused) as caught:
        export(config, tmp_path / "refused")
    return caught.value


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "t5"}, "'t5'"),
        ({"hidden_act": "silu"}, "'silu'"),
        ({"position_embedding_type": "relative_key"}, "'relative_key'"),
        ({"is_decoder": True}, "is_decoder"),
        ({"architectures": ["BertForSequenceClassification"]}, "'SequenceClassification'"),
    ],
)
def test_other_networks_are_refused_with_what_is_lacking(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    found = refusal(upload(tmp_path / "source", CONFIG | change, weights()), tmp_path)
    assert found.code == "unsupported_architecture"
    assert named in found.message


def test_weights_that_are_missing_or_unknown_are_named(tmp_path: Path) -> None:
    tensors = weights()
    del tensors["encoder.layer.1.output.dense.bias"]
    found = refusal(upload(tmp_path / "source", CONFIG, tensors), tmp_path)
    assert (found.code, "'encoder.layer.1.output.dense.bias'" in found.message) == (
        "unsupported_architecture",
        True,
    )
    tensors = weights() | {"encoder.layer.0.adapter.weight": np.zeros((2, 2), np.float32)}
    found = refusal(upload(tmp_path / "source", CONFIG, tensors), tmp_path)
    assert (found.code, "encoder.layer.0.adapter.weight" in found.message) == (
        "unsupported_architecture",
        True,
    )


def test_pooling_of_another_kind_is_refused(tmp_path: Path) -> None:
    config = upload(tmp_path / "source", CONFIG, weights())
    pooled(tmp_path / "source", "lasttoken", normalize=False)
    found = refusal(config, tmp_path)
    assert (found.code, "lasttoken" in found.message) == ("unsupported_architecture", True)


@pytest.mark.parametrize("kept", [3, 50, -1])
def test_weights_that_end_early(kept: int, tmp_path: Path) -> None:
    config = upload(tmp_path / "source", CONFIG, weights())
    path = config.parent / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert refusal(config, tmp_path).code == "truncated"


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "bert"}'])
def test_a_configuration_that_is_none(content: str, tmp_path: Path) -> None:
    config = upload(tmp_path / "source", CONFIG, weights())
    config.write_text(content)
    assert refusal(config, tmp_path).code == "invalid_model"


def test_a_folder_is_a_source(tmp_path: Path) -> None:
    upload(tmp_path / "source" / "encoder", CONFIG, weights())
    pooled(tmp_path / "source" / "encoder", "mean_tokens", normalize=True)
    found = prepare(tmp_path / "source", listed(tmp_path / "source"), tmp_path / "model")
    assert found.did[0] == "Wrote the safetensors as ONNX: bert encoder of 2 layers, mean pooling."
    assert [spec.name for spec in found.outputs] == ["sentence_embedding"]
    assert found.generated.inputs["input_ids"].max() < WORDS


def test_weights_without_a_configuration(tmp_path: Path) -> None:
    upload(tmp_path / "source", CONFIG, weights()).unlink()
    with pytest.raises(ModelRefused) as caught:
        prepare(tmp_path / "source", listed(tmp_path / "source"), tmp_path / "model")
    assert caught.value.code == "missing_file"
