"""Environments of the peers: under ``.venvs/``, apart from Pocketfleet's own and from each other."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchmarkFailed

PIP_TIMEOUT_S = 1200

Steps = tuple[tuple[str, ...], ...]  # pins of one pip call each, in this order


@dataclass(frozen=True)
class Prepared:
    """What became of the named environments.

    Args:
        pythons: interpreters of those that could be made, by name.
        failures: why the others could not, by name.
    """

    pythons: dict[str, Path]
    failures: dict[str, str]


def prepare(root: Path, environments: dict[str, Steps]) -> Prepared:
    """Make every named environment that can be made; one that cannot is told of, not raised.

    Raises:
        BenchmarkFailed: a requirement is not pinned.
    """
    prepared = Prepared({}, {})
    for name, steps in environments.items():
        _refuse_unpinned(name, steps)
        try:
            prepared.pythons[name] = _environment(root, name, steps)
        except (BenchmarkFailed, OSError, subprocess.SubprocessError) as error:
            prepared.failures[name] = str(error)
            print(f"The environment {name} could not be made; its peers are left out: {error}", flush=True)
    return prepared


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
    _refuse_unpinned(name, (pins,))
    return _environment(root, name, (pins,))


def _refuse_unpinned(name: str, steps: Steps) -> None:
    for pin in (pin for step in steps for pin in step):
        if "==" not in pin:
            raise BenchmarkFailed(f"Peer {pin!r} of {name} is not pinned; write it as package==version.")


def _environment(root: Path, name: str, steps: Steps) -> Path:
    folder = root / ".venvs" / f"bench-{name}"
    python = folder / "bin" / "python"
    marker = folder / ".pins"
    lines = [pin for step in steps for pin in step]
    wanted = hashlib.sha256("\n".join([sys.version, *lines]).encode()).hexdigest()
    if python.exists() and marker.exists() and marker.read_text() == wanted:
        return python
    print(f"Setting up the peers in {folder.relative_to(root)}: {', '.join(lines)}", flush=True)
    venv.EnvBuilder(clear=True, with_pip=True).create(folder)
    for step in steps:
        _install(python, step)
    marker.write_text(wanted)
    return python


def _install(python: Path, pins: tuple[str, ...]) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S)
    if done.returncode != 0:
        raise BenchmarkFailed(f"pip could not install {', '.join(pins)}:\n{done.stderr.strip()[-2000:]}")
