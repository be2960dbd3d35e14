"""Folders of the A/B slots and the writing of files into the inactive one."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from device_agent.errors import InstallError
from device_agent.protocol.manifest import Chunk, Manifest, ManifestFile
from device_agent.store import sync_folder
from device_agent.store.installs import SlotName

PIECE_BYTES = 1 << 20


class Slots:
    """``<folder>/<model>/{a,b}``.

    Args:
        folder: parent of all models.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, model: str, slot: SlotName) -> Path:
        return self._folder / model / slot

    def remove(self, model: str) -> None:
        """Delete both slots of a model."""
        shutil.rmtree(self._folder / model, ignore_errors=True)

    def wipe(self, model: str, slot: SlotName) -> None:
        shutil.rmtree(self.path(model, slot), ignore_errors=True)

    def folders(self) -> list[str]:
        """Models that have a folder, known or not."""
        return [path.name for path in self._folder.iterdir() if path.is_dir()]


def other_slot(slot: SlotName) -> SlotName:
    """The other one of A and B."""
    return "b" if slot == "a" else "a"


def write_files(folder: Path, manifest: Manifest, content: Callable[[Chunk], bytes]) -> None:
    """Make ``folder`` hold exactly the manifest's files, each verified and durable.

    Files already there with the right digest stay; anything else goes.

    Args:
        content: gives a chunk's verified bytes.

    Raises:
        InstallError: ``digest_mismatch`` if a file's digest is not the manifest's.
        OSError: if the disk is full or broken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_others(folder, {folder / file.path for file in manifest.files})
    for file in manifest.files:
        path = folder / file.path
        if not matches(path, file):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_file(path, file, content)
    # The model's own folder may be new as well, so that of all models is flushed too.
    above = {folder.parent.parent, folder.parent, folder}
    for parent in above | {path.parent for path in folder.rglob("*")}:
        sync_folder(parent)


def matches(path: Path, file: ManifestFile) -> bool:
    """Whether ``path`` already is the manifest's file."""
    try:
        if path.is_symlink() or path.stat().st_size != file.size_bytes:
            return False
        digest = hashlib.sha256()
        for piece in _pieces(path):
            digest.update(piece)
    except OSError:
        return False
    return digest.hexdigest() == file.sha256


def _write_file(path: Path, file: ManifestFile, content: Callable[[Chunk], bytes]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    digest = hashlib.sha256()
    with temporary.open("wb") as output:
        for chunk in file.chunks:
            data = content(chunk)
            digest.update(data)
            output.write(data)
        output.flush()
        os.fsync(output.fileno())
    if digest.hexdigest() != file.sha256:
        temporary.unlink()
        raise InstallError("digest_mismatch", f"{file.path} is not the sum of its chunks")
    os.replace(temporary, path)


def _remove_others(folder: Path, wanted: set[Path]) -> None:
    for path in folder.rglob("*"):
        if (path.is_symlink() or path.is_file()) and path not in wanted:
            path.unlink()


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
