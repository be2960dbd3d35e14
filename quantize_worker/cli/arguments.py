"""The command's arguments and help."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from quantize_worker.cli.errors import BadInput

EVERY_CLASS, SOME_CLASS, BAD_INPUT, OUR_FAILURE, STOPPED = 0, 1, 2, 3, 130
EPILOG = """\
exit codes:
  0    every class has a build
  1    some class has none; the table and the reports say why and what would do
  2    wrong usage or bad input: `error: <code>: <sentence>` on standard error
  3    our own failure (memory, disk, time, a crash); the same line on standard error
  130  stopped by Ctrl-C (143 by SIGTERM); nothing is left behind

A target is a JSON file: name, accelerator, precisions, memory_bytes, storage_bytes, quality_floor, and more
(docs/tailoring.md, docs/targets). The out folder gets a folder per class with model.onnx, model.data,
golden.npz and report.json, and over all classes report.html and report.json.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput("usage", f"{message}; see `{self.prog} --help`.")


def parser() -> argparse.ArgumentParser:
    """The parser of ``python -m quantize_worker``; it raises BadInput with code "usage"."""
    whole = _Parser(
        prog="python -m quantize_worker",
        description="Tailors models to device classes on this machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    tailor = commands.add_parser(
        "tailor",
        help="make the best build of a model for every class, without any server",
        description="Looks at a model once, plans every class, builds and measures what it offers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _arguments(tailor)
    return whole


def _arguments(tailor: argparse.ArgumentParser) -> None:
    tailor.add_argument(
        "model", type=Path, help=".onnx file, or a folder with one, or with config.json and .safetensors"
    )
    tailor.add_argument(
        "--target",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="a device class; may be given several times",
    )
    tailor.add_argument(
        "--eval",
        type=Path,
        metavar="NPZ",
        help="set to measure quality on: inputs by name, optional labels; without it builds are unverified",
    )
    tailor.add_argument(
        "--calibration",
        type=Path,
        metavar="NPZ",
        help="set for ranges and rounding (default: the --eval set)",
    )
    tailor.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for builds and reports"
    )
    tailor.add_argument(
        "--json", action="store_true", help="the last line of standard output is one JSON object"
    )
    tailor.add_argument(
        "--learned", action="store_true", help="learn the rounding of INT4 weights (slower, closer)"
    )
    tailor.add_argument("--force", action="store_true", help="replace earlier results in the out folder")
