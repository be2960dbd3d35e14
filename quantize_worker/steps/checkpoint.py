"""Weights in safetensors files, read tensor by tensor or in blocks of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from quantize_worker.errors import ModelRefused
from quantize_worker.steps.tensors import PIECE_BYTES

Floats = NDArray[np.float32]
INDEX_FILE = "model.safetensors.index.json"
_TYPES = {"F16", "F32", "F64", "BF16"}
_INCOMPLETE = ("incomplete", "too small", "invalid header length")
assert ml_dtypes.bfloat16  # imported, so that numpy knows the type that the library asks for


@dataclass(frozen=True)
class Streamed:
    """A float32 tensor that is made when it is written."""

    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Floats]]


class Checkpoint:
    """The tensors of a folder's safetensors files, as float32.

    Raises:
        ModelRefused: missing_file, truncated or invalid_model.
    """

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Any] = {}
        for path in _members(folder):
            file = _opened(path)
            self._files.update(dict.fromkeys(file.keys(), file))

    def names(self) -> set[str]:
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor.

        Raises:
            ModelRefused: unsupported_architecture, if it is missing or no floating-point tensor.
        """
        tensor = self._slice(name)
        if tensor.get_dtype() not in _TYPES:
            raise ModelRefused(
                "unsupported_architecture",
                f"The weight {name!r} is of type {tensor.get_dtype()}; save the weights in floating point.",
            )
        return tuple(tensor.get_shape())

    def read(self, name: str) -> Floats:
        """A whole tensor."""
        self.shape(name)
        return np.asarray(self._files[name].get_tensor(name)).astype(np.float32, copy=False)

    def rows(self, name: str) -> Streamed:
        """A tensor that is read in blocks of rows."""
        shape = self.shape(name)
        step = max(1, PIECE_BYTES * shape[0] // max(1, 4 * int(np.prod(shape)))) if shape else 1

        def pieces() -> Iterator[Floats]:
            tensor = self._slice(name)
            for start in range(0, shape[0], step):
                block = tensor[start : min(start + step, shape[0])]
                yield np.asarray(block).astype(np.float32, copy=False)

        return Streamed(shape, pieces)

    def _slice(self, name: str) -> Any:
        if name not in self._files:
            raise ModelRefused(
                "unsupported_architecture",
                f"The safetensors files have no weight {name!r}; is config.json that of this network?",
            )
        return self._files[name].get_slice(name)


def _members(folder: Path) -> list[Path]:
    """The safetensors files: those an index names, else all in the folder."""
    index = folder / INDEX_FILE
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ModelRefused("invalid_model", f"{INDEX_FILE} is no valid index; correct it.") from error
    for name in names:
        if name != Path(str(name)).name or not (folder / name).is_file():
            raise ModelRefused("missing_file", f"{INDEX_FILE} names {name!r}; upload it as well.")
    return [folder / name for name in names]


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        if any(word in str(error) for word in _INCOMPLETE):
            raise ModelRefused(
                "truncated", f"{path.name!r} ends early ({error}); upload it again as a new version."
            ) from error
        raise ModelRefused("invalid_model", f"{path.name!r} is no safetensors file ({error}).") from error
