"""What happens inside the sandboxed child: one job, from a folder of files to a folder of files.

The folder holds ``request.json`` (a ``Job``), ``source/`` (the upload under its paths),
``evaluation.npz`` and ``calibration.npz`` where there are any and, when an earlier job or attempt got that
far, ``analysis/`` and ``artifact/`` with finished stages. The child writes ``result.json`` (an
``Outcome``), ``analysis/``, ``artifact/<index>/`` and ``chunks/``, and a JSON line per step on its standard
output (a ``Step``; see :mod:`quantize_worker.steps.exchange`). It knows neither blob store nor queue.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from quantize_worker.errors import BuildFailed, ModelRefused, SandboxCrashed, SandboxOutOfMemory, WorkerError
from quantize_worker.steps.analysis import candidates, inspect
from quantize_worker.steps.build import build
from quantize_worker.steps.datafile import room
from quantize_worker.steps.exchange import RESULT_FILE, Job, Outcome, Report, Step

_JOBS = {"inspect": inspect, "candidates": candidates, "build": build}


def run(folder: Path, job: Job, report: Report) -> Outcome:
    """Do the job; every error that a job can have becomes an outcome."""
    try:
        with room():
            return _JOBS[job.kind](folder, job, report)
    except ModelRefused as refusal:
        return Outcome(status="refused", code=refusal.code, message=refusal.message, fault="model")
    except BuildFailed as failure:
        return Outcome(status="failed", code=failure.code, message=failure.message, fault=failure.fault)
    except (MemoryError, SandboxOutOfMemory):
        return _out_of_memory(job)
    except SandboxCrashed as crash:
        return _crashed(job, crash)


def main(folder: Path, job: Job) -> None:
    """Run the job, progress on standard output, and write the outcome."""

    def report(step: Step) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(step) + b"\n")
        sys.stdout.buffer.flush()

    outcome = run(folder, job, report)
    (folder / RESULT_FILE).write_bytes(msgspec.json.encode(outcome))


def _out_of_memory(job: Job) -> Outcome:
    if job.kind == "inspect":
        message = "Checking the model took more memory than a job may use; upload a smaller model."
        return Outcome(status="refused", code="resource_limit", message=message, fault="model")
    message = "The build took more memory than a job may use; give the worker more."
    return Outcome(status="failed", code=SandboxOutOfMemory.code, message=message, fault="system")


def _crashed(job: Job, crash: WorkerError) -> Outcome:
    if job.kind == "inspect":
        return Outcome(status="refused", code="invalid_model", message=crash.message, fault="model")
    return Outcome(status="failed", code=crash.code, message=crash.message, fault="system")
