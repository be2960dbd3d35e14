"""Semantic search on a phone: sentences and queries go to the agent's local API, nowhere else."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import urllib3


@dataclass(frozen=True)
class Hit:
    score: float  # cosine
    sentence: str


class LocalModel:
    """A model behind an agent's Open Inference Protocol v2 endpoint on loopback."""

    def __init__(self, address: str, model: str) -> None:
        self._url = f"{address}/v2/models/{model}/infer"
        self._http = urllib3.PoolManager(retries=False, timeout=30.0)
        self.latencies_ms: list[float] = []

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
        start = time.perf_counter()
        response = self._http.request("POST", self._url, body=json.dumps(body))
        self.latencies_ms.append((time.perf_counter() - start) * 1000)
        answer = json.loads(response.data)
        if response.status != 200:
            raise RuntimeError(f"the agent answered {response.status}: {answer}")
        output = answer["outputs"][0]
        return np.asarray(output["data"], dtype=np.float32).reshape(output["shape"])


def rank(query: np.ndarray, corpus: np.ndarray, sentences: Sequence[str], *, best: int) -> list[Hit]:
    """The ``best`` sentences by cosine.

    Args:
        query: unit vector  # (hidden,)
        corpus: unit vectors  # (sentences, hidden)
    """
    scores = corpus @ query
    return [Hit(float(scores[i]), sentences[i]) for i in np.argsort(-scores)[:best]]
