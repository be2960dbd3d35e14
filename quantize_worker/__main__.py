"""``python -m quantize_worker <work folder> <parent's process id>``: one job inside the sandbox."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from quantize_worker.pipeline import main
from quantize_worker.steps import confinement
from quantize_worker.steps.exchange import REQUEST_FILE, Job


def start(folder: Path, parent: int | None) -> None:
    """Confine this process, then run the job in ``folder``."""
    confinement.die_with_parent(parent)
    job = msgspec.json.decode((folder / REQUEST_FILE).read_bytes(), type=Job)
    confinement.apply(job.limits)
    main(folder, job)


if __name__ == "__main__":
    start(Path(sys.argv[1]), int(sys.argv[2]) or None)
