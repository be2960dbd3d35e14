"""List the benchmarks, or run one.

    python -m benchmarks          lists them
    python -m benchmarks NAME     runs one: a table, then one last line of JSON

Exit code 0: it ran and every figure holds. 1: it ran, and a figure does not hold. 2: there is no
benchmark of that name. 3: it could not be run to its end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import catalogue
from benchmarks.environments import peer_environment, prepare
from benchmarks.errors import BenchmarkError
from benchmarks.figures import json_line, table


def list_all() -> int:
    known = catalogue.all_benchmarks()
    width = max(len(benchmark.name) for benchmark in known)
    for benchmark in known:
        print(f"{benchmark.name.ljust(width)}  {benchmark.description}")
    return 0


def run_one(name: str) -> int:
    benchmark = catalogue.benchmark(name)
    peer_python = peer_environment(catalogue.ROOT, benchmark.name, benchmark.peers)
    environments = prepare(catalogue.ROOT, benchmark.environments)
    print(f"{benchmark.name}: {benchmark.description}")
    print(f"predicted: {' '.join(benchmark.prediction.split())}\n", flush=True)
    with tempfile.TemporaryDirectory(prefix=f"bench-{benchmark.name}-") as scratch:
        context = catalogue.Context(
            root=catalogue.ROOT,
            scratch=Path(scratch),
            peer_python=peer_python,
            environments=environments,
        )
        figures = benchmark.run(context)
    print(f"\n{table(figures)}\n")
    print(json_line(benchmark.name, figures), flush=True)
    return 0 if all(figure.holds for figure in figures) else 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help="the benchmark to run; without it they are listed")
    name = parser.parse_args(arguments).name
    try:
        return run_one(name) if name else list_all()
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
