"""What a BERT-like encoder's configuration files say, checked; nothing is guessed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quantize_worker.errors import ModelRefused

Pooling = Literal["mean", "cls", "max"]
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}
_BY_LENGTH = {  # names of the sizes that DistilBERT calls otherwise
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
    "hidden_act": "activation",
}
_BERT, _ROBERTA, _DISTIL = "bert", "roberta", "distilbert"
_FAMILIES = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": _DISTIL,
}
# Heads that are there for training only: what the encoder gives is the model's result.
_TRAINING_HEADS = ("MaskedLM", "PreTraining", "LMHeadModel", "NextSentencePrediction")
DISTILBERT_EPSILON = 1e-12  # fixed in DistilBERT's own code, not in its configuration


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes and kinds of an encoder of the BERT family."""

    model_type: str
    family: str  # bert, roberta, distilbert: how weights are called and positions counted
    hidden: int
    heads: int
    layers: int
    activation: str
    epsilon: float
    token_types: int
    padding: int  # token id; RoBERTa counts positions from it
    pooling: Pooling | None  # None: the output is last_hidden_state
    normalize: bool
    head: str  # a head for training that is left out, or ""


def read_config(path: Path) -> EncoderConfig:
    """Read ``config.json`` and, beside it, what sentence-transformers says of pooling.

    Raises:
        ModelRefused: invalid_model if it is no JSON object or lacks a size; unsupported_architecture
            with what the exporter lacks.
    """
    config = _json_object(path)
    model_type = str(config.get("model_type"))
    if model_type not in _FAMILIES:
        raise _unsupported(f"model_type {model_type!r}; known are {', '.join(sorted(_FAMILIES))}")
    family = _FAMILIES[model_type]
    pooling, normalize = _pooling(path.parent)
    made = EncoderConfig(
        model_type=model_type,
        family=family,
        hidden=_size(config, "hidden_size", family),
        heads=_size(config, "num_attention_heads", family),
        layers=_size(config, "num_hidden_layers", family),
        activation=str(config.get(_called("hidden_act", family))),
        epsilon=DISTILBERT_EPSILON if family == _DISTIL else float(config.get("layer_norm_eps", 1e-12)),
        token_types=0 if family == _DISTIL else int(config.get("type_vocab_size", 2)),
        padding=int(config.get("pad_token_id") or 0),
        pooling=pooling,
        normalize=normalize,
        head=_training_head(config),
    )
    _check(config, made)
    return made


def _check(config: dict[str, Any], made: EncoderConfig) -> None:
    if made.activation not in ACTIVATIONS:
        raise _unsupported(f"activation {made.activation!r}; known are {', '.join(ACTIVATIONS)}")
    positions = config.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise _unsupported(f"position_embedding_type {positions!r}; only absolute positions are known")
    for flag in ("is_decoder", "add_cross_attention"):
        if config.get(flag):
            raise _unsupported(f"{flag}: it is a decoder, not an encoder")
    if made.hidden % made.heads:
        raise ModelRefused("invalid_model", "config.json: hidden_size is no multiple of num_attention_heads.")


def _training_head(config: dict[str, Any]) -> str:
    """The head in the network's name, if leaving it out changes nothing of what is used."""
    for name in config.get("architectures") or []:
        _, found, head = str(name).partition("For")
        if found and head not in _TRAINING_HEADS:
            raise _unsupported(f"head {head!r} of {name}; only encoders without a head are written")
        if found or str(name).endswith(_TRAINING_HEADS):
            return str(name)
    return ""


def _pooling(folder: Path) -> tuple[Pooling | None, bool]:
    """Pooling and whether the result is scaled to length 1, from sentence-transformers' files."""
    listing = folder / "modules.json"
    if not listing.is_file():
        return None, False
    kinds = [(str(m.get("type")).rpartition(".")[2], str(m.get("path"))) for m in _json_list(listing)]
    names = [kind for kind, _ in kinds]
    if names[:1] != ["Transformer"] or names[1:] not in ([], ["Pooling"], ["Pooling", "Normalize"]):
        raise _unsupported(
            f"sentence-transformers modules {', '.join(names)}; only pooling and normalizing are known"
        )
    if len(kinds) == 1:
        return None, False
    settings = folder / kinds[1][1] / "config.json"
    if ".." in settings.parts or not settings.is_file():
        raise ModelRefused(
            "missing_file", f"modules.json names {kinds[1][1]}/config.json; upload it as well."
        )
    return _pooling_mode(_json_object(settings)), "Normalize" in names


def _pooling_mode(settings: dict[str, Any]) -> Pooling:
    wanted = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    if len(wanted) != 1 or wanted[0] not in _POOLINGS:
        raise _unsupported(
            f"pooling {', '.join(wanted) or 'of no kind'}; known are mean, cls and max, one of them"
        )
    return _POOLINGS[wanted[0]]


def _size(config: dict[str, Any], name: str, family: str) -> int:
    value = config.get(_called(name, family))
    if not isinstance(value, int) or value < 1:
        raise ModelRefused("invalid_model", f"config.json has no valid {_called(name, family)}; correct it.")
    return value


def _called(name: str, family: str) -> str:
    return _BY_LENGTH[name] if family == _DISTIL else name


def _json_object(path: Path) -> dict[str, Any]:
    value = _json(path)
    if not isinstance(value, dict):
        raise ModelRefused("invalid_model", f"{path.name} is no JSON object; correct it.")
    return value


def _json_list(path: Path) -> list[dict[str, Any]]:
    value = _json(path)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ModelRefused("invalid_model", f"{path.name} is no list of modules; correct it.")
    return value


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelRefused("invalid_model", f"{path.name} is no valid JSON ({error}); correct it.") from error


def _unsupported(what: str) -> ModelRefused:
    return ModelRefused(
        "unsupported_architecture",
        f"This network cannot be written from safetensors: {what}. Export it to ONNX and upload that.",
    )
