"""Semantic search on a phone: sentences and queries go to the agent's local API, nowhere else."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import urllib3

from demo import minilm, sentences

CORPUS = 256  # sentences
LONGEST = 90  # characters of a sentence
BATCH = 32


@dataclass(frozen=True)
class Hit:
    score: float  # cosine
    sentence: str


class LocalModel:
    """A model behind an agent's Open Inference Protocol v2 endpoint on loopback."""

    def __init__(self, address: str, model: str) -> None:
        self._url = f"{address}/v2/models/{model}/infer"
        self._http = urllib3.PoolManager(retries=False, timeout=30.0)

    def embed(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Embeddings of a tokenised batch.

        Args:
            ids: token ids, int64  # (batch, seq)
            mask: attention mask, int64  # (batch, seq)

        Returns:
            Unit vectors, float32  # (batch, 384)
        """
        body = {
            "inputs": [
                {
                    "name": name,
                    "shape": list(value.shape),
                    "datatype": "INT64",
                    "data": value.ravel().tolist(),
                }
                for name, value in (("input_ids", ids), ("attention_mask", mask))
            ]
        }
        response = self._http.request("POST", self._url, body=json.dumps(body))
        answer = json.loads(response.data)
        if response.status != 200:
            raise RuntimeError(f"the agent answered {response.status}: {answer}")
        output = answer["outputs"][0]
        return np.asarray(output["data"], dtype=np.float32).reshape(output["shape"])


class SearchIndex:
    """Sentences of the standard library, embedded on one phone."""

    def __init__(self, model: LocalModel) -> None:
        folder = minilm.model_folder()
        self._model = model
        self._tokenizer = minilm.load_tokenizer(folder, length=sentences.SEQUENCE_LENGTH)
        self._sentences = [s for s in sentences.docstring_sentences() if len(s) <= LONGEST][:CORPUS]
        parts = [self._sentences[i : i + BATCH] for i in range(0, len(self._sentences), BATCH)]
        self._vectors = np.concatenate([self._embed(model, part) for part in parts])  # (sentences, 384)

    def __len__(self) -> int:
        return len(self._sentences)

    def best(self, query: str, *, ask: LocalModel | None = None) -> Hit:
        """The sentence nearest to ``query``, which another phone may be asked to embed."""
        scores = self._vectors @ self._embed(ask or self._model, [query])[0]
        winner = int(np.argmax(scores))
        return Hit(float(scores[winner]), self._sentences[winner])

    def _embed(self, model: LocalModel, texts: list[str]) -> np.ndarray:
        inputs = minilm.tokenize(self._tokenizer, texts)
        return model.embed(inputs["input_ids"], inputs["attention_mask"])
