"""Archives of arrays that came with an upload."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize_worker.errors import ModelRefused

Array = NDArray[Any]


def read_arrays(path: Path, kind: str, maximum_bytes: int) -> dict[str, Array]:
    """All arrays of an ``.npz`` file of plain numbers.

    Args:
        path: the file.
        kind: "evaluation" or "calibration", for messages.
        maximum_bytes: what it may hold when unpacked.

    Raises:
        ModelRefused: invalid_samples or too_large.
    """
    hint = f"Save the {kind} set with numpy.savez(name=array, …), plain numbers only."
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > maximum_bytes:
                raise ModelRefused(
                    "too_large",
                    f"Unpacked, the {kind} set has over {maximum_bytes} bytes; use fewer samples.",
                )
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ModelRefused("invalid_samples", f"The {kind} set is not a valid .npz file. {hint}") from error
