"""Target files: a device class as JSON, with defaults that suit a person."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import msgspec

from quantize_worker.cli.errors import BadInput
from quantize_worker.contract import PRECISIONS, AcceleratorKind, Objective, Precision, Target, WorkerSpeed

CPU_PROVIDER = "CPUExecutionProvider"
MAXIMUM_FILE_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")  # it becomes a folder's name
_VALUES = {
    "accelerator": get_args(AcceleratorKind),
    "objective": get_args(Objective),
    "precisions": PRECISIONS,
}


class _Speed(WorkerSpeed, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A typing error in a field must not pass as a speed that is unknown."""


class _TargetFile(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """:class:`quantize_worker.contract.Target` as a person writes it."""

    name: str
    accelerator: AcceleratorKind
    precisions: list[Precision]
    memory_bytes: int
    storage_bytes: int
    quality_floor: float
    version: int = 1
    execution_provider: str = CPU_PROVIDER
    emulated: bool | None = None  # None: the CPU stands in for another accelerator
    latency_ms: float | None = None
    energy_mwh: float | None = None
    objective: Objective = "size"
    speed: _Speed = _Speed()
    active_power_mw: float | None = None


def read_targets(paths: Sequence[Path]) -> list[Target]:
    """Read target files.

    Raises:
        BadInput: missing_file; bad_target, naming the file and the field.
    """
    found: dict[str, Path] = {}
    targets = []
    for path in paths:
        target = read_target(path)
        other = found.setdefault(target.name.casefold(), path)
        if other is not path:
            raise _bad(path, "name", f'is "{target.name}" as in {other}; every class needs its own name')
        targets.append(target)
    return targets


def read_target(path: Path) -> Target:
    """Read one target file.

    Raises:
        BadInput: missing_file; bad_target.
    """
    file = _decoded(path)
    for field, fault in _faults(file):
        raise _bad(path, field, fault)
    emulated = file.emulated
    if emulated is None:
        emulated = file.accelerator != "cpu" and file.execution_provider == CPU_PROVIDER
    return msgspec.convert(msgspec.to_builtins(file) | {"emulated": emulated}, Target)


def _decoded(path: Path) -> _TargetFile:
    try:
        with path.open("rb") as file:
            content = file.read(MAXIMUM_FILE_BYTES)
    except OSError as error:
        raise BadInput(
            "missing_file", f"{path} cannot be read ({error.strerror}); give a target's JSON file."
        ) from error
    try:
        return msgspec.json.decode(content, type=_TargetFile)
    except msgspec.ValidationError as error:
        raise BadInput("bad_target", f"{path}: {_in_words(str(error))}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadInput("bad_target", f"{path} is not JSON: {error}. See docs/tailoring.md.") from error


def _in_words(message: str) -> str:
    """msgspec's sentence with the field by its name, and what the field may be."""
    match = re.search(r" - at `\$\.?(.*?)`$", message)
    if match is None or not match[1]:
        if message.startswith("Object missing required field"):
            return f"field {message.split('`')[1]} is missing; add it."
        if message.startswith("Object contains unknown field"):
            return f"field {message.split('`')[1]} is unknown; see docs/tailoring.md for the fields."
        return f"{message}; a target is one JSON object."
    field = match[1]
    allowed = _VALUES.get(field.split("[")[0].rstrip("."))
    fault = message[: match.start()].replace("`", "")
    return f"field {field}: {fault}" + (f"; it may be {', '.join(allowed)}." if allowed else ".")


def _faults(file: _TargetFile) -> Iterator[tuple[str, str]]:
    if not _NAME.fullmatch(file.name):
        yield "name", "may have 1 to 63 letters, digits, - and _: it names the class's folder"
    if not file.precisions:
        yield "precisions", f"is empty; name at least one of {', '.join(PRECISIONS)}"
    if len(set(file.precisions)) < len(file.precisions):
        yield "precisions", "names one twice"
    if not 0 <= file.quality_floor <= 1:
        yield "quality_floor", "is a share of FP32's quality: from 0 to 1"
    if not file.execution_provider.endswith("ExecutionProvider"):
        yield "execution_provider", f"is ONNX Runtime's name of a provider, such as {CPU_PROVIDER}"
    for field in ("memory_bytes", "storage_bytes", "version", "latency_ms", "energy_mwh", "active_power_mw"):
        value = getattr(file, field)
        if value is not None and not (math.isfinite(value) and value > 0):
            yield field, "must be above 0"
    for name, speed in msgspec.structs.asdict(file.speed).items():
        if not speed >= 0:
            yield f"speed.{name}", "must not be below 0 (0: unknown)"


def _bad(path: Path, field: str, fault: str) -> BadInput:
    return BadInput("bad_target", f"{path}: field {field} {fault}.")
