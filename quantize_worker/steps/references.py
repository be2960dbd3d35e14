"""What FP32 makes of the gate samples: made once per version, read by every build's gate.

One ``.npz``: ``<index>/<output>`` for each sample run alone, ``batch/<output>`` for the first samples
run as one batch where the model allows it. Arrays are read when asked for: a gate that stops early
never reads the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Named = dict[str, Array]  # outputs by name
BATCH = "batch"


class References(Sequence[Named]):
    """Outputs per sample, in the order of the gate samples; use as a context manager or close."""

    def __init__(self, path: Path) -> None:
        self._stored = np.load(path, allow_pickle=False)
        self._names: dict[str, list[str]] = {}
        for entry in self._stored.files:
            whose, name = entry.split("/", 1)
            self._names.setdefault(whose, []).append(name)
        self._count = len(self._names) - (BATCH in self._names)

    def __enter__(self) -> References:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._of(str(index))

    def batch(self) -> Named:
        """Outputs of the first samples run as one batch; empty if the model takes no batch."""
        return self._of(BATCH) if BATCH in self._names else {}

    def close(self) -> None:
        self._stored.close()

    def _of(self, whose: str) -> Named:
        return {name: self._stored[f"{whose}/{name}"] for name in self._names[whose]}


def write(path: Path, outputs: Sequence[Mapping[str, Array]], batch: Mapping[str, Array]) -> None:
    """Write; equal outputs give equal bytes.

    Args:
        path: the file; its folder is made.
        outputs: per gate sample, by name.
        batch: of the first samples as one batch; empty if the model takes no batch.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    with partial.open("wb") as file:
        np.savez(file, **keyed(outputs, batch))  # type: ignore[arg-type]
    partial.replace(path)


def keyed(outputs: Sequence[Mapping[str, Array]], batch: Mapping[str, Array]) -> Named:
    """The arrays under the names they have in the file."""
    found = {
        f"{index}/{name}": value for index, sample in enumerate(outputs) for name, value in sample.items()
    }
    return found | {f"{BATCH}/{name}": value for name, value in batch.items()}


def read(path: Path) -> References:
    """Open what :func:`write` has written.

    Raises:
        OSError, ValueError: if it is missing or damaged.
    """
    return References(path)
