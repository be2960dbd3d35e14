"""Finds the benchmarks: modules of this package that have a ``DESCRIPTION``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import benchmarks
from benchmarks.environments import Prepared, Steps
from benchmarks.errors import UnknownBenchmark
from benchmarks.figures import Figure

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a benchmark gets: a scratch folder, and the interpreter of its peers' environment.

    Args:
        root: the repository.
        scratch: an empty folder that is removed afterwards.
        peer_python: interpreter with ``PEERS`` installed; None without peers.
        environments: interpreters of ``ENVIRONMENTS``, and why some are missing.
    """

    root: Path
    scratch: Path
    peer_python: Path | None
    environments: Prepared = field(default_factory=lambda: Prepared({}, {}))


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    name: str
    description: str
    prediction: str
    peers: tuple[str, ...]
    run: Callable[[Context], list[Figure]]
    environments: dict[str, Steps] = field(default_factory=dict)


def all_benchmarks() -> list[Benchmark]:
    """Every benchmark, by name."""
    found = []
    for module in pkgutil.iter_modules(benchmarks.__path__):
        if module.ispkg or module.name.startswith("_"):
            continue
        loaded = importlib.import_module(f"benchmarks.{module.name}")
        if hasattr(loaded, "DESCRIPTION"):
            found.append(
                Benchmark(
                    name=module.name,
                    description=loaded.DESCRIPTION,
                    prediction=loaded.PREDICTION,
                    peers=tuple(getattr(loaded, "PEERS", ())),
                    run=loaded.run,
                    environments=dict(getattr(loaded, "ENVIRONMENTS", {})),
                )
            )
    return sorted(found, key=lambda benchmark: benchmark.name)


def benchmark(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        UnknownBenchmark: naming those that exist.
    """
    known = {candidate.name: candidate for candidate in all_benchmarks()}
    if name not in known:
        raise UnknownBenchmark(f"There is no benchmark {name!r}; there are: {', '.join(known)}.")
    return known[name]
