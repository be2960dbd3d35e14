"""External weights that stay in their files: each file gets a hard link beside the new graph."""

from __future__ import annotations

import shutil
from pathlib import Path

from onnx import TensorProto

from quantize_worker.steps import tensors
from quantize_worker.steps.datafile import room


class Links:
    """Links of one graph's data files in a folder.

    They are named ``source.<n>.data`` in the order of their first tensor. Where the file system has no
    hard links, or the folder is on another one, the file is copied.
    """

    def __init__(self, files: tensors.Folder, folder: Path) -> None:
        self._files, self._folder = files, folder
        self._names: dict[str, str] = {}

    def takes(self, tensor: TensorProto) -> bool:
        """Whether a tensor can stay where it is: in a file of weights, at an offset that suits its type."""
        if not tensors.is_external(tensor):
            return False
        offset = tensors.extent(tensor)[1]
        aligned = offset % tensors.dtype_of(tensor.data_type).itemsize == 0
        return aligned and not self._files.is_own(tensor)

    def reference(self, tensor: TensorProto) -> TensorProto:
        """The tensor as the new graph refers to it."""
        location, offset, length = tensors.extent(tensor)
        made = tensors.header(tensor, tensor.name)
        tensors.point_outside(made, self._link(location), offset, length)
        return made

    def _link(self, location: str) -> str:
        if location not in self._names:
            self._names[location] = name = f"source.{len(self._names)}.data"
            source, target = self._files.path(location), self._folder / name
            target.unlink(missing_ok=True)
            try:
                target.hardlink_to(source)
            except OSError:
                with room():
                    shutil.copyfile(source, target)
        return self._names[location]
