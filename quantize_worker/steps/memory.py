"""What a process holds in memory, from ``/proc``."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_STATUS, _MAPS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/smaps"), Path("/proc/self/clear_refs")
LIBRARY = ".so"


@dataclass(frozen=True)
class Memory:
    """Bytes resident in this process.

    Args:
        resident: all of it.
        anonymous: what the kernel could not take back and read again from a file.
        libraries: pages of program files, which have nothing to do with a model.
    """

    resident: int
    anonymous: int
    libraries: int


def now() -> Memory:
    """What is resident at this moment."""
    return Memory(_status("VmRSS"), _status("RssAnon"), mapped(LIBRARY))


def reset_peak() -> None:
    """Set the peak back to what is resident now, where the kernel allows it."""
    with suppress(OSError):  # the peak then includes what starting the process took
        _CLEAR.write_text("5")


def peak() -> int:
    """The most that was resident since the process started or :func:`reset_peak`."""
    return _status("VmHWM")


def mapped(part: str) -> int:
    """Resident bytes of mapped files whose path has this part."""
    total, counted = 0, False
    for line in _MAPS.read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):  # a mapping's head: addresses, flags, …, path
            fields = line.split(maxsplit=5)
            counted = len(fields) > 5 and part in fields[5]
        elif counted and first == "Rss:":
            total += int(line.split()[1]) * 1024
    return total


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0
