"""Runs other quantizers on the reference model and measures what they give on the report set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.environments import Prepared
from benchmarks.peers.catalogue import Peer
from benchmarks.process_tree import MIB
from benchmarks.reference import Array, Reference
from benchmarks.similarity import Similarity, similarity
from benchmarks.spent import spend

HERE = Path(__file__).resolve().parent
# Nobody phones home: ONNX Runtime and Olive each have a switch, Olive's heartbeat asks for CI.
QUIET = {"ORT_DISABLE_TELEMETRY": "1", "OLIVE_DISABLE_TELEMETRY": "1", "CI": "true", "HF_HUB_OFFLINE": "1"}
SINGLE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class PeerRun:
    """What a peer gave.

    Args:
        size_bytes: of all files it wrote; 0 if it only simulates.
        cpu_s, peak_bytes: of its process, imports included.
    """

    peer: Peer
    similarity: Similarity
    size_bytes: int
    cpu_s: float
    wall_s: float
    peak_bytes: int
    model: Path | None


def run_all(
    peers: tuple[Peer, ...], environments: Prepared, reference: Reference, scratch: Path
) -> dict[str, PeerRun]:
    """Run them one after another; one that fails is printed as such and left out."""
    runs = {}
    for peer in peers:
        python = environments.pythons.get(peer.environment)
        if python is None:
            print(f"  {peer.words}: not run, its environment is missing", flush=True)
            continue
        run = _run(peer, python, reference, scratch / peer.name)
        if run is not None:
            runs[peer.name] = run
    return runs


def _run(peer: Peer, python: Path, reference: Reference, folder: Path) -> PeerRun | None:
    folder.mkdir(parents=True)
    out = folder / "out"
    out.mkdir()
    paths = [str(path) for path in (reference.model, reference.calibration, out)]
    if peer.environment == "aimet":  # simulates, so it runs the report set itself
        paths.append(str(reference.report))
    command = [str(python), str(HERE / peer.script), peer.recipe, *paths]
    spent = spend(command, folder=folder, environment=QUIET, timeout_s=peer.timeout_s)
    try:
        if spent.code != 0:
            raise OSError(f"exit code {spent.code}: {spent.output_tail.strip()[-600:]}")
        outputs, model = _outputs(out, reference)
        measured = similarity(reference.outputs, outputs)
    except Exception as error:  # whatever another's tool or its model does, the benchmark goes on
        print(f"  {peer.words}: failed: {error}", flush=True)
        return None
    size = 0 if model is None else sum(path.stat().st_size for path in out.iterdir())
    run = PeerRun(peer, measured, size, spent.cpu_s, spent.wall_s, spent.peak_bytes, model)
    print(f"  {describe(run)}", flush=True)
    return run


def _outputs(out: Path, reference: Reference) -> tuple[Array, Path | None]:
    model = out / "model.onnx"
    if model.exists():
        return reference.run(model), model
    return np.load(out / "outputs.npy"), None


def describe(run: PeerRun) -> str:
    size = f"{run.size_bytes / 1e6:.1f} MB" if run.size_bytes else "simulated"
    return (
        f"{run.peer.words}: {size}, 1 - cosine {run.similarity.loss:.4f}, "
        f"top-1 {run.similarity.top1:.3f}, CPU {run.cpu_s:.1f} s, peak {run.peak_bytes / MIB:.0f} MiB"
    )
