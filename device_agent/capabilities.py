"""What this device is: hardware, storage, versions; measured, or emulated by a profile.

A profile is a TOML file that stands in for hardware that is not there::

    soc = "Snapdragon 8 Elite"
    ram_mb = 12288

    [[accelerators]]
    name = "npu0"
    kind = "npu"
    data_types = ["int8"]

Everything in it is labelled: its accelerators are reported ``emulated`` and on the CPU's
execution provider, and their figures are the CPU's.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import msgspec
import psutil

from device_agent.errors import ConfigError
from device_agent.protocol.messages import Accelerator, AcceleratorKind, CapabilityReport

CPU_PROVIDER = "CPUExecutionProvider"
STORAGE_STEP_MB = 1024  # free storage changes all the time; only whole steps count as a change
RUNTIME_NAME = "onnxruntime"


class EmulatedAccelerator(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    name: str
    kind: AcceleratorKind
    data_types: list[str] = []
    execution_provider: str = CPU_PROVIDER


class Profile(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Hardware to emulate; what is left out is the real device's."""

    soc: str = ""
    ram_mb: int = 0
    storage_free_mb: int = 0
    os: str = ""
    os_version: str = ""
    accelerators: list[EmulatedAccelerator] = []


def load_profile(path: str) -> Profile:
    """Read a profile; an empty path is an empty profile.

    Raises:
        ConfigError: if it is missing, malformed, or claims hardware that is not emulated.
    """
    if not path:
        return Profile()
    try:
        profile = msgspec.convert(tomllib.loads(Path(path).read_text("utf-8")), Profile)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"profile {path}: {error}") from error
    for accelerator in profile.accelerators:
        if accelerator.execution_provider != CPU_PROVIDER:
            raise ConfigError(f"profile {path}: an emulated accelerator runs on {CPU_PROVIDER}")
    return profile


def accelerators_of(
    profile: Profile, detected: Sequence[Accelerator], figures: Mapping[str, Mapping[str, float]]
) -> list[Accelerator]:
    """The device's accelerators with their figures.

    Args:
        detected: what the runtime found.
        figures: measured per execution provider, by the field names of Accelerator.
    """
    if not profile.accelerators:
        return [_with(one, figures) for one in detected]
    return [
        _with(
            Accelerator(
                name=one.name,
                kind=one.kind,
                execution_provider=CPU_PROVIDER,
                data_types=list(one.data_types),
                emulated=True,
            ),
            figures,
        )
        for one in profile.accelerators
    ]


def build_report(
    profile: Profile,
    accelerators: Sequence[Accelerator],
    *,
    folder: Path,
    runtime_version: str,
    tags: Sequence[str],
) -> CapabilityReport:
    """The capability report of this device.

    Args:
        folder: state folder, whose free storage counts.
        runtime_version: of ONNX Runtime.
    """
    return CapabilityReport(
        soc=profile.soc or _soc(),
        ram_mb=profile.ram_mb or ram_bytes(profile) // 2**20,
        storage_free_mb=profile.storage_free_mb or shutil.disk_usage(folder).free // 2**20,
        os=profile.os or _operating_system(),
        os_version=profile.os_version or platform.release()[:100],
        runtime=RUNTIME_NAME,
        runtime_version=runtime_version,
        agent_version=agent_version(),
        accelerators=list(accelerators),
        tags=sorted(set(tags)),
        time_zone=_time_zone(),
    )


def digest(report: CapabilityReport) -> str:
    """Changes when the report is worth sending again."""
    steady = msgspec.structs.replace(report, storage_free_mb=report.storage_free_mb // STORAGE_STEP_MB)
    return hashlib.sha256(msgspec.json.encode(steady, order="sorted")).hexdigest()


def ram_bytes(profile: Profile) -> int:
    """Memory of the device, or of the emulated one."""
    return profile.ram_mb * 2**20 or int(psutil.virtual_memory().total)


def agent_version() -> str:
    """Version of the installed package."""
    try:
        return metadata.version("pocketfleet")
    except metadata.PackageNotFoundError:
        return "0+source"


def hardware_key(runtime_version: str, threads: int) -> str:
    """Names what micro-benchmark figures depend on, to measure again when it changes."""
    return f"{_soc()}|{psutil.cpu_count()}|{runtime_version}|{threads}"


def _with(accelerator: Accelerator, figures: Mapping[str, Mapping[str, float]]) -> Accelerator:
    measured = {
        name: round(value, 3) for name, value in figures.get(accelerator.execution_provider, {}).items()
    }
    return msgspec.structs.replace(accelerator, **measured)


def _soc() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    for label in ("Hardware", "model name", "Model"):
        for line in lines:
            if line.startswith(label) and ":" in line:
                return line.split(":", 1)[1].strip()[:100]
    return (platform.processor() or platform.machine() or "unknown")[:100]


def _operating_system() -> str:
    return "android" if "ANDROID_ROOT" in os.environ else platform.system().lower() or "unknown"


def _time_zone() -> str:
    if zone := os.environ.get("TZ", "").lstrip(":"):
        return zone[:100]
    try:
        target = os.readlink("/etc/localtime")
    except OSError:
        return "UTC"
    return target.split("zoneinfo/")[-1][:100] if "zoneinfo/" in target else "UTC"
