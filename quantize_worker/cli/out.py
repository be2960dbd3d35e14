"""The out folder: filled beside itself, shown at the end, nothing half-written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from quantize_worker.cli.errors import BadInput
from quantize_worker.report import REPORT_JSON

PARTIAL = ".tailoring-"


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A hidden folder within ``out``, so on its disk. Gone afterwards, ``out`` too if it was made here.

    Raises:
        BadInput: out_not_writable.
    """
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=out))
    except (PermissionError, NotADirectoryError) as error:
        raise BadInput(
            "out_not_writable", f"{out} cannot be written to ({error.strerror}); give another folder."
        ) from error
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if made:
            with suppress(OSError):  # not empty: it holds the results
                out.rmdir()


def check(out: Path, names: Sequence[str], *, force: bool) -> None:
    """Refuse a folder whose content would be lost, before anything is done.

    Args:
        names: of the classes.
        force: earlier results may be replaced; only they: a class's folder must hold a report.

    Raises:
        BadInput: out_not_empty; out_not_ours.
    """
    if out.exists() and not out.is_dir():
        raise BadInput("out_not_empty", f"{out} is a file; give a folder.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not force:
        raise BadInput(
            "out_not_empty",
            f"{out} is not empty; give another folder, or --force to replace earlier results.",
        )
    for name in names:
        folder = out / name
        if folder.is_symlink() or (folder.exists() and not (folder / REPORT_JSON).is_file()):
            raise BadInput(
                "out_not_ours", f"{folder} is no earlier result (it has no {REPORT_JSON}); move it away."
            )


def publish(stage: Path, out: Path) -> None:
    """Move what is staged into ``out``: classes first, each at once; the reports last."""
    entries = sorted(stage.iterdir(), key=lambda path: (path.is_file(), path.name))
    for entry in entries:
        place = out / entry.name
        if entry.is_dir():
            _set_aside(place, stage)
        os.replace(entry, place)


def _set_aside(place: Path, stage: Path) -> None:
    """Move an earlier result into the stage, which is removed at the end."""
    if place.exists():
        os.replace(place, Path(tempfile.mkdtemp(prefix=".earlier-", dir=stage)) / place.name)
