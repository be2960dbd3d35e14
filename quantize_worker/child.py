"""``python -m quantize_worker child <work folder> <parent's process id>``: one job inside the sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from quantize_worker.pipeline import main as run
from quantize_worker.steps import confinement
from quantize_worker.steps.exchange import REQUEST_FILE, Job


def main(arguments: Sequence[str]) -> int:
    folder, parent = arguments
    start(Path(folder), int(parent) or None)
    return 0


def start(folder: Path, parent: int | None) -> None:
    """Confine this process, then run the job in ``folder``."""
    confinement.die_with_parent(parent)
    job = msgspec.json.decode((folder / REQUEST_FILE).read_bytes(), type=Job)
    confinement.apply(job.limits, source_bytes=sum(file.size_bytes for file in job.files))
    run(folder, job)
