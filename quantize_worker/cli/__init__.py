"""``python -m quantize_worker tailor``: the service's work on one machine, without a server.

This process parses target files only. Model and sets are read by the sandboxed child.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from quantize_worker import report
from quantize_worker.cli import out
from quantize_worker.cli.arguments import BAD_INPUT, EVERY_CLASS, OUR_FAILURE, SOME_CLASS, parser
from quantize_worker.cli.errors import BadInput
from quantize_worker.cli.progress import Progress
from quantize_worker.cli.table import summary, table
from quantize_worker.cli.targets import read_targets
from quantize_worker.contract import Target
from quantize_worker.engine import TailorReport, tailor
from quantize_worker.errors import BuildFailed, Cancelled, ModelRefused, WorkerError
from quantize_worker.limits import job_memory_bytes
from quantize_worker.sandbox import Sandbox, find_bubblewrap

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Stop:
    """Set by a signal; the second one of the kind ends the process at once."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.exit_code = 128 + signal.SIGINT

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = 128 + number
        self.event.set()
        signal.signal(number, signal.default_int_handler)


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code (see ``--help``)."""
    as_json = "--json" in arguments
    with _stopped_by_signals() as stop:
        try:
            options = parser().parse_args(arguments)
            result = _run(options, stop)
        except (Cancelled, KeyboardInterrupt):
            return _failed(stop.exit_code, "cancelled", "Stopped; nothing was written.", as_json=as_json)
        except (BadInput, ModelRefused) as error:
            return _failed(BAD_INPUT, error.code, error.message, as_json=as_json)
        except WorkerError as error:
            fault = error.fault if isinstance(error, BuildFailed) else "system"
            code = BAD_INPUT if fault == "model" else OUR_FAILURE
            return _failed(code, error.code, error.message, as_json=as_json)
        except OSError as error:
            return _failed(OUR_FAILURE, _os_code(error), f"{error}.", as_json=as_json)
        except Exception as error:
            traceback.print_exc()
            return _failed(OUR_FAILURE, "worker_failed", f"{error!r}.", as_json=as_json)
    return _done(result, options)


def _run(options: argparse.Namespace, stop: _Stop) -> TailorReport:
    targets = _checked(options)
    progress = Progress(sys.stderr, bar=sys.stderr.isatty())
    with out.staging(options.out) as stage, tempfile.TemporaryDirectory(prefix="tailor-") as work:
        try:
            result = tailor(
                options.model,
                targets,
                out=stage,
                sandbox=Sandbox(hidden=[], bubblewrap=find_bubblewrap()),
                memory_bytes=_memory_bytes(),
                work=Path(work),
                calibration=options.calibration,
                evaluation=options.eval,
                learned=options.learned,
                on_step=progress.step,
                stop=stop.event,
            )
        finally:
            progress.end()
        report.write(result, stage, model=options.model.name)
        if stop.event.is_set():
            raise Cancelled("Stopped.")
        out.publish(stage, options.out)
    return result


def _checked(options: argparse.Namespace) -> list[Target]:
    """The targets, once everything that can be told without work is right."""
    targets = read_targets(options.target)
    for path in (options.eval, options.calibration):
        if path is not None and not (path.is_file() and os.access(path, os.R_OK)):
            raise BadInput("missing_file", f"There is no readable set {path}; give an .npz file.")
    if not os.access(options.model, os.R_OK):
        raise BadInput(
            "missing_file", f"There is no readable {options.model}; give an .onnx file or a folder."
        )
    out.check(options.out, [target.name for target in targets], force=options.force)
    return targets


def _memory_bytes() -> int:
    try:
        return job_memory_bytes()
    except ValueError as error:
        raise BadInput("usage", f"{error}.") from error


@contextmanager
def _stopped_by_signals() -> Iterator[_Stop]:
    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _done(result: TailorReport, options: argparse.Namespace) -> int:
    every = all(each.outcome == "built" for each in result.tailored)
    code = EVERY_CLASS if every else SOME_CLASS
    print(table(result))
    print(f"Report: {options.out / report.REPORT_HTML}")
    if options.json:
        _print_json({"exit_code": code, "out": str(options.out), **summary(result)})
    return code


def _failed(exit_code: int, code: str, message: str, *, as_json: bool) -> int:
    print(f"error: {code}: {message}", file=sys.stderr)
    if as_json:
        _print_json({"exit_code": exit_code, "error": {"code": code, "message": message}})
    return exit_code


def _print_json(value: dict[str, Any]) -> None:
    print(msgspec.json.encode(value).decode())


def _os_code(error: OSError) -> str:
    return "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "worker_failed"
