"""The shortest way to one INT4 build, as a process of its own: what other quantizers' whole run is compared with.

    python -m benchmarks.int4_build MODEL CALIBRATION_NPZ OUT_FOLDER

The engine's own steps: prepare the model, one calibration pass, data-aware rounding of every matrix in
blocks of 32, assemble. No other format is weighed and nothing is planned; the embedding stays in FP32.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.reference import samples
from quantize_worker.contract import Recipe, SourceFile
from quantize_worker.steps import statistics
from quantize_worker.steps.assemble import STATISTICS, assemble
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.layers import layers_of
from quantize_worker.steps.prepare import prepare

FORMAT = "int4-b32"
OPERATORS = ("MatMul", "Gemm")
MEMORY_BYTES = 1 << 30


def main(model: str, calibration: str, out: str) -> None:
    with tempfile.TemporaryDirectory(dir=out) as work:
        build(Path(model), Path(calibration), Path(out), Path(work))


def build(model: Path, calibration: Path, out: Path, work: Path) -> None:
    """Write ``model.onnx`` and ``model.data`` into ``out``."""
    file = SourceFile(path=model.name, sha256="", size_bytes=model.stat().st_size)
    prepared = prepare(model.parent, [file], work / "model", on_share=lambda share: None)
    graph = Graph.read(prepared.path)
    chosen = [one for one in layers_of(graph) if one.operator in OPERATORS and FORMAT in one.formats()]
    statistics.collect(
        prepared.path, graph, chosen, [], samples(calibration), work / STATISTICS, memory_bytes=MEMORY_BYTES
    )
    recipe = Recipe(
        precision="int4",
        accelerator="cpu",
        execution_provider="CPUExecutionProvider",
        emulated=False,
        layers={layer.name: FORMAT for layer in chosen},
    )
    assemble(prepared.path, recipe, work, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
