"""Two tailoring workers against one: six models queued, real Celery workers, a real broker and blob store."""

from __future__ import annotations

import contextlib
import hashlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.catalogue import Context
from benchmarks.cores import available_cores
from benchmarks.errors import BenchmarkFailed
from benchmarks.figures import Figure
from benchmarks.generated import write_small_network
from benchmarks.tailoring_desk import TailoringDesk
from benchmarks.workshop import WEIGHT_ONLY, device_class
from blobstore import BlobStore, open_store
from quantize_worker.contract import Blob, Source, SourceFile, blob_key

DESCRIPTION = "six models queued: two tailoring workers against one (Celery, filesystem broker, blob store)"
PREDICTION = """
Inspections and builds are tasks of their own, and no two of them share anything but the blob store: two workers
are 1.8 times as fast as one where two cores are free. The rest is the last task, which one of them does alone.
"""
MODELS = 6
ROUNDS = 2
RATIO_GOAL = 1.7
FREE_CORES = 1.9
TIMEOUT_S = 1200.0
START_S = 60.0
CLASS = device_class("phone", WEIGHT_ONLY, floor=0.9, objective="size")


def run(context: Context) -> list[Figure]:
    """Alternate one worker and two, each with empty folders; compare medians."""
    folders = list(_models(context.scratch / "models"))
    cores = available_cores()
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for number in range(ROUNDS):
        for workers in seconds:
            took = _tailor_all(workers, context.scratch / f"{number}-{workers}", folders, context.root)
            print(f"  {workers} worker(s): {took:.1f} s for {MODELS} models", flush=True)
            seconds[workers].append(took)
    ratio = statistics.median(seconds[1]) / statistics.median(seconds[2])
    return [_figure(ratio, min(cores, available_cores()))]


def _figure(ratio: float, cores: float) -> Figure:
    """Where others use the cores too, the goal is the same share of what there was; the words say so."""
    free = cores >= FREE_CORES
    goal = RATIO_GOAL if free else round(RATIO_GOAL * cores / 2, 2)
    state = "both cores free" if free else f"NOT FREE: two processes got {cores:.2f} cores' work done"
    return Figure(
        name="two_workers_to_one_speedup",
        value=round(ratio, 2),
        goal=goal,
        better="higher",
        against=f"one worker, medians of {ROUNDS}, alternating; {state}",
    )


def _models(folder: Path) -> Iterator[Path]:
    for seed in range(MODELS):
        place = folder / str(seed)
        place.mkdir(parents=True)
        write_small_network(place, seed=seed)
        yield place


def _tailor_all(workers: int, state: Path, models: list[Path], root: Path) -> float:
    """Seconds from the first message to the last answer; workers are up before."""
    state.mkdir()
    environment = _environment(state)
    store = open_store(environment["POCKETFLEET_BLOBS_URL"])
    sources = [_stored(store, folder) for folder in models]
    desk = TailoringDesk(
        environment["POCKETFLEET_BROKER_URL"], environment["POCKETFLEET_BROKER_FOLDER"], CLASS
    )
    with contextlib.ExitStack() as stack:
        for number in range(workers):
            stack.enter_context(_worker(number, state, environment, root))
        started = time.monotonic()
        desk.tailor(sources, timeout_s=TIMEOUT_S)
        return time.monotonic() - started


def _environment(state: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("POCKETFLEET_")}
    return kept | {
        "POCKETFLEET_VAR": str(state),
        "POCKETFLEET_BROKER_URL": "filesystem://",
        "POCKETFLEET_BROKER_FOLDER": str(state / "broker"),
        "POCKETFLEET_BLOBS_URL": f"file://{state / 'blobs'}",
        "ORT_DISABLE_TELEMETRY": "1",
    }


@contextlib.contextmanager
def _worker(number: int, state: Path, environment: dict[str, str], root: Path) -> Iterator[None]:
    """A Celery worker, ready."""
    log = state / f"worker-{number}.log"
    command = [sys.executable, "-m", "celery", "-A", "quantize_worker.app", "worker"]
    command += ["-Q", "tailor.small", "--pool", "threads", "--concurrency", "1"]
    command += ["--hostname", f"worker{number}@benchmark", "--loglevel", "INFO"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + START_S
        while b" ready." not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkFailed(f"a worker did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(60)


def _stored(store: BlobStore, folder: Path) -> Source:
    model = _blob(store, folder / "model.onnx")
    file = SourceFile(path="model.onnx", sha256=model.sha256, size_bytes=model.size_bytes)
    sets = {name: _blob(store, folder / f"{name}.npz") for name in ("calibration", "evaluation")}
    return Source(files=[file], **sets)


def _blob(store: BlobStore, path: Path) -> Blob:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    store.put_bytes(content, key=blob_key(digest))
    return Blob(sha256=digest, size_bytes=len(content))
