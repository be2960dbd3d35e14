"""Equal bytes from equal source and recipe: five runs, on one core and on two, two of them at once."""

from __future__ import annotations

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks import workshop
from benchmarks.catalogue import Context
from benchmarks.errors import BenchmarkFailed
from benchmarks.figures import Figure
from benchmarks.reference import minilm
from benchmarks.spent import spend
from benchmarks.workshop import WEIGHT_ONLY, Sets, device_class
from quantize_worker.contract import Recipe
from quantize_worker.plan import consider

DESCRIPTION = "byte-identical artifacts: five runs from nothing, 1 and 2 cores and threads, two at once"
PREDICTION = """
All five runs give the same bytes for all recipes: nothing depends on time, on the order of hashes, on how many
threads add up, or on what else runs. Measured latencies may differ, so recipes are planned once.
"""
MB = 1_000_000
TIMEOUT_S = 1800.0
CLASSES = (
    device_class("small", WEIGHT_ONLY, floor=0.98, objective="size"),
    device_class("dynamic", ("int8-dynamic", "int4"), objective="quality", storage_bytes=20 * MB),
    device_class("npu", ("int8-qdq", "int8-qdq16"), objective="quality", storage_bytes=40 * MB),
    device_class("half", ("fp16",)),
)


@dataclass(frozen=True)
class Run:
    """How one run differs from the others."""

    name: str
    cores: int
    hash_seed: str


ALONE = (Run("one core", 1, "0"), Run("two cores", 2, "1"), Run("two cores again", 2, "random"))
AT_ONCE = (Run("at once, a", 2, "2"), Run("at once, b", 2, "3"))


def run(context: Context) -> list[Figure]:
    """Plan once, then inspect and build in new processes and compare digests.

    Raises:
        BenchmarkFailed: a run failed.
    """
    folder = context.scratch / "reference"
    folder.mkdir()
    reference = minilm(folder)
    bench = workshop.workbench(context.scratch / "plan")
    facts = workshop.inspected(bench, Sets(reference.model, reference.calibration, reference.gate))
    recipes = [consider(facts, target).candidates[0].recipe for target in CLASSES]
    order = context.scratch / "recipes.json"
    order.write_bytes(msgspec.json.encode(recipes))
    digests = {each.name: _digests(context, each, order, folder) for each in ALONE}
    with ThreadPoolExecutor(len(AT_ONCE)) as pool:
        pending = {each.name: pool.submit(_digests, context, each, order, folder) for each in AT_ONCE}
        digests |= {name: future.result() for name, future in pending.items()}
    return _figures(digests)


def _digests(context: Context, each: Run, recipes: Path, reference: Path) -> dict[str, str]:
    """Inspect and build in a process of its own; digests of all files by ``recipe/file``."""
    folder = context.scratch / each.name.replace(" ", "-").replace(",", "")
    folder.mkdir()
    cores = sorted(os.sched_getaffinity(0))[: each.cores]
    command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "benchmarks.determinism"]
    command += [str(path) for path in (recipes, reference, folder / "bench")]
    threads = {name: str(each.cores) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    environment = {**threads, "PYTHONHASHSEED": each.hash_seed, "PYTHONPATH": str(context.root)}
    spent = spend(command, folder=folder, environment=environment, timeout_s=TIMEOUT_S)
    if spent.code != 0:
        raise BenchmarkFailed(f"the run {each.name} ended with code {spent.code}: {spent.output_tail}")
    print(f"  {each.name}: {spent.wall_s:.0f} s", flush=True)
    found = msgspec.json.decode((folder / "bench" / "digests.json").read_bytes(), type=dict[str, str])
    return {name: digest for name, digest in found.items() if name.split("/")[-1] in workshop.MODEL_FILES}


def _figures(digests: dict[str, dict[str, str]]) -> list[Figure]:
    first = next(iter(digests.values()))
    different = [
        f"{run}: {name}" for run, found in digests.items() for name in first if found.get(name) != first[name]
    ]
    for name in different:
        print(f"  differs: {name}", flush=True)
    runs, files = len(digests), len(first)
    return [
        Figure(name="runs", value=runs, goal=5, better="higher", against="the requirement"),
        Figure(
            name="files", value=files, goal=len(CLASSES), better="higher", against="at least one a recipe"
        ),
        Figure(
            name="files_that_differ",
            value=len(different),
            goal=0,
            better="lower",
            against="SHA-256 of each run's files with the first's; hash seeds, cores and threads vary",
        ),
    ]


def main(recipes: str, reference: str, folder: str) -> None:
    """What one run does, in its own process."""
    source, bench = Path(reference), workshop.workbench(Path(folder))
    sets = Sets(source / "model.onnx", source / "calibration.npz", source / "gate.npz")
    facts = workshop.inspected(bench, sets)
    wanted = msgspec.json.decode(Path(recipes).read_bytes(), type=list[Recipe])
    digests = {}
    for index, built in enumerate(bench.build(facts, wanted, [[] for _ in wanted])):
        workshop.require_artifact(built)
        for path in sorted(bench.artifact(index).iterdir()):
            digests[f"{index}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (Path(folder) / "digests.json").write_bytes(msgspec.json.encode(digests, order="sorted"))


if __name__ == "__main__":
    main(*sys.argv[1:])
