"""What is run: the children of the embedded system, as plain data that travels as JSON."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from quantize_worker.contract import TAILOR_QUEUES


class ChildPlan(msgspec.Struct, kw_only=True, frozen=True):
    """A process to keep running."""

    name: str
    command: list[str]


class RunPlan(msgspec.Struct, kw_only=True, frozen=True):
    """All that guard and supervisor need to know.

    ``ready_url`` answers 200 once the system serves; ``lock_descriptor`` is the open lock file,
    which both hold so that it is free only when both have ended.
    """

    children: list[ChildPlan]
    run_folder: str
    log_folder: str
    ready_url: str
    ready_line: str
    lock_descriptor: int
    grace_s: float


def embedded_children(*, host: str, port: int, run_folder: Path, log_level: str) -> list[ChildPlan]:
    """Web, control worker, tailor worker and beat, as processes of this interpreter."""
    python = [sys.executable, "-m"]
    web = f"granian --interface wsgi --host {host} --port {port} --workers 1 --blocking-threads 4"
    quiet = "--without-gossip --without-mingle --without-heartbeat --pool threads --concurrency 1"
    workers = {
        "control": f"celery -A fleet.celery worker -Q control -n control@%h {quiet}",
        "tailor": f"celery -A quantize_worker.app worker -Q {','.join(TAILOR_QUEUES)} -n tailor@%h {quiet}",
        "beat": "celery -A fleet.celery beat",
    }
    commands = {
        "web": [
            *web.split(),
            "--respawn-failed-workers",
            "--no-ws",
            "--log-level",
            log_level.lower(),
            "fleet.wsgi:application",
        ],
        **{name: [*line.split(), "--loglevel", log_level.upper()] for name, line in workers.items()},
    }
    commands["beat"] += ["--schedule", str(run_folder / "beat-schedule")]
    return [ChildPlan(name=name, command=[*python, *command]) for name, command in commands.items()]
