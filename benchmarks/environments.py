"""Environments of the peers: one per benchmark under ``.venvs/``, apart from Pocketfleet's own."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.errors import BenchmarkFailed

PIP_TIMEOUT_S = 1200


def peer_environment(root: Path, name: str, pins: tuple[str, ...]) -> Path | None:
    """The interpreter of an environment with exactly these pins; made on first use.

    Args:
        root: the repository; the environment is ``.venvs/bench-<name>`` below it.
        name: of the benchmark.
        pins: requirements, each pinned with ``==``.

    Returns:
        The interpreter, or None if there are no pins.

    Raises:
        BenchmarkFailed: a requirement is not pinned, or pip could not install one.
    """
    if not pins:
        return None
    for pin in pins:
        if "==" not in pin:
            raise BenchmarkFailed(f"Peer {pin!r} of {name} is not pinned; write it as package==version.")
    folder = root / ".venvs" / f"bench-{name}"
    python = folder / "bin" / "python"
    marker = folder / ".pins"
    wanted = hashlib.sha256("\n".join([sys.version, *pins]).encode()).hexdigest()
    if python.exists() and marker.exists() and marker.read_text() == wanted:
        return python
    print(f"Setting up the peers in {folder.relative_to(root)}: {', '.join(pins)}", flush=True)
    venv.EnvBuilder(clear=True, with_pip=True).create(folder)
    _install(python, pins)
    marker.write_text(wanted)
    return python


def _install(python: Path, pins: tuple[str, ...]) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S)
    if done.returncode != 0:
        raise BenchmarkFailed(f"pip could not install {', '.join(pins)}:\n{done.stderr.strip()[-2000:]}")
