"""What a tailoring leaves to read: ``report.html`` for people, ``report.json`` for programs.

Pure apart from :func:`write`.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from quantize_worker.engine import TailorReport
from quantize_worker.report.page import page
from quantize_worker.report.record import REPORT_HTML, REPORT_JSON, ClassRecord, Record, class_record, record

__all__ = ["REPORT_HTML", "REPORT_JSON", "ClassRecord", "Record", "class_record", "page", "record", "write"]


def write(report: TailorReport, out: Path, *, model: str) -> None:
    """Write the reports: one per class into its folder, and two over all of them.

    Args:
        out: where the engine has put the builds.
        model: the model's name, for the heading.
    """
    classes = [class_record(report.facts, each, out / each.target.name) for each in report.tailored]
    for each in classes:
        folder = out / each.target.name
        folder.mkdir(exist_ok=True)
        _write_json(folder / REPORT_JSON, each)
    whole = record(report, classes, model=model)
    _write_json(out / REPORT_JSON, whole)
    (out / REPORT_HTML).write_text(page(whole), encoding="utf-8")


def _write_json(path: Path, value: msgspec.Struct) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")
