"""Inspection: everything that is found out about a model once, for every later plan and build.

Stage by stage, each of which leaves files in the job's analysis folder: the foundation
(:mod:`quantize_worker.steps.foundation`), then statistics and candidates of the layers. A large
model's candidates are left to batches, a task each, on as many workers as there are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import onnx

from quantize_worker.contract import AnalysisFile, LayerFacts, ModelFacts, SourceFile
from quantize_worker.errors import BuildFailed
from quantize_worker.steps import facts, foundation, references
from quantize_worker.steps.assemble import STATISTICS
from quantize_worker.steps.exchange import ANALYSIS_FOLDER, Job, Outcome, Report, Step
from quantize_worker.steps.foundation import Ground
from quantize_worker.steps.graph import DEFAULT_DOMAINS, nodes_of
from quantize_worker.steps.layer_analysis import LayerAnalysis, analyse_layers
from quantize_worker.steps.layers import Layer, layers_of
from quantize_worker.steps.shares import shares

LEAN_MEMORY_SHARE = 0.05  # of the weights in FP32
# What a layer in another format than FP32 takes beside its initializers' content, as builds measured.
LAYER_BYTES = 600  # nodes and names
PAGED_BYTES, PAGED_FROM = 1500, 128 << 10  # gaps before parts of a weight of so many bytes
ARRAY_BYTES = 300  # an array's headers in an .npz


def inspect(folder: Path, job: Job, report: Report) -> Outcome:
    """Find out everything about a model, or everything but the candidates if it is large."""
    ground = foundation.lay(folder, job, report)
    layers = layers_of(ground.graph)
    batches = _batches(layers, job.batch_parameters)
    place = folder / ANALYSIS_FOLDER
    if batches:
        found = _described(ground, job.files, layers, None)
        return Outcome(status="ready", facts=found, batches=batches, files=foundation.files(place))
    weighed = _weighed(ground, place, None, job, shares(report, "analyse", 0.32, 0.98))
    report(Step(step="store", share=0.98))
    found = _described(ground, job.files, layers, weighed)
    return Outcome(status="ready", facts=found, files=_files(place, weighed))


def candidates(folder: Path, job: Job, report: Report) -> Outcome:
    """Make and weigh the candidates of a batch of layers."""
    ground = foundation.lay(folder, job, report)
    known = {layer.name for layer in layers_of(ground.graph)}
    if unknown := set(job.layers) - known:
        raise BuildFailed(
            "unknown_layer",
            f"The batch names layers the model lacks: {sorted(unknown)[:3]}; inspect the version again.",
            fault="system",
        )
    place = folder / ANALYSIS_FOLDER

    weighed = _weighed(ground, place, set(job.layers), job, shares(report, "analyse", 0.02, 0.98))
    fresh = [file for file in _files(place, weighed) if file.layer or file.path.startswith(f"{STATISTICS}/")]
    return Outcome(status="ready", layers=weighed.layers, files=fresh)


def _weighed(
    ground: Ground, place: Path, names: set[str] | None, job: Job, on_share: Callable[[float], None]
) -> LayerAnalysis:
    """Analyse layers; what a large model's analysis may take grows with the model, not with the machine."""
    lean = foundation.is_large(ground.model)
    memory = int(LEAN_MEMORY_SHARE * ground.graph.weight_bytes()) if lean else job.limits.memory_bytes // 2
    return analyse_layers(
        ground.model,
        ground.graph,
        ground.calibration,
        place,
        layers=names,
        memory_bytes=memory,
        lean=lean,
        on_share=on_share,
    )


def _batches(layers: Sequence[Layer], parameters: int | None) -> list[list[str]]:
    """Layers in groups of about as many parameters; none if one task can do all of them."""
    if parameters is None or sum(layer.parameters for layer in layers) <= parameters:
        return []
    batches: list[list[str]] = [[]]
    size = 0
    for layer in layers:
        if batches[-1] and size + layer.parameters > parameters:
            batches.append([])
            size = 0
        batches[-1].append(layer.name)
        size += layer.parameters
    return batches


def _files(place: Path, weighed: LayerAnalysis) -> list[AnalysisFile]:
    """The analysis's files; candidates carry their layer and format."""
    marked = []
    for file in foundation.files(place):
        layer, form = weighed.candidates.get(file.path, ("", ""))
        marked.append(msgspec.structs.replace(file, layer=layer, format=form))
    return marked


def _described(
    ground: Ground, files: Sequence[SourceFile], layers: Sequence[Layer], weighed: LayerAnalysis | None
) -> ModelFacts:
    """All that planning needs; without ``weighed``, the layers' formats are still to come."""
    graph, found, gate = ground.graph, ground.found, ground.gate
    weights = {layer.weight: layer for layer in layers}
    facts_of_model = ModelFacts(
        inputs=found.inputs,
        outputs=found.outputs,
        opset=graph.opset,
        operators=_operators(graph.model),
        parameters=graph.parameters(),
        source_bytes=sum(file.size_bytes for file in files),
        weight_bytes=graph.weight_bytes(),
        quantizable_weight_bytes=sum(4 * layer.parameters for layer in weights.values()),
        embedding_weight_bytes=sum(4 * layer.parameters for layer in weights.values() if layer.is_table),
        layers=list(_bare(layers)) if weighed is None else weighed.layers,
        samples=found.available,
        has_labels=gate.labels is not None,
        synthetic_samples=gate.synthetic,
        accuracy=found.accuracy,
        latency_p50_ms=found.latency_p50_ms,
        memory_bytes=found.memory_bytes,
        tool_versions=facts.tool_versions(),
        measured_samples=found.measured,
        other_bytes=other_bytes(ground, layers),
        kept=found.kept,
        prepared=found.did,
    )
    if weighed is None:
        return facts_of_model
    return msgspec.structs.replace(
        facts_of_model,
        products=weighed.products,
        costs=weighed.costs,
        interaction=weighed.interaction,
        accuracy_loss=weighed.accuracy_loss,
        speed=weighed.speed,
        prepared=[*found.did, *weighed.notes],
    )


def _bare(layers: Sequence[Layer]) -> Iterator[LayerFacts]:
    """Layers before they are weighed: a plan leaves them in FP32."""
    for layer in layers:
        yield LayerFacts(
            name=layer.name,
            operator=layer.operator,
            parameters=layer.parameters,
            quantizable=len(layer.formats()) > 1,
            weight=layer.weight,
            shape=list(layer.shape),
        )


def other_bytes(ground: Ground, layers: Sequence[Layer]) -> int:
    """Bytes of a build that no layer's format changes.

    What the prepared model has beside its weights, self-test data, and what a layer takes that is not in
    FP32: nodes, and large tensors' starts at pages. So a build is not larger than planned.
    """
    whole = sum(path.stat().st_size for path in ground.model.parent.iterdir())
    weights = {name: shape for layer in layers for name, shape in layer.weights.items()}
    sizes = [4 * math.prod(shape) for shape in weights.values()]
    rounded = sum(LAYER_BYTES + (PAGED_BYTES if size >= PAGED_FROM else 0) for size in sizes)
    return max(0, whole - sum(sizes)) + rounded + _golden_bytes(ground)


def _golden_bytes(ground: Ground) -> int:
    """Of the self-test data: inputs, and what FP32 makes of them."""
    with references.read(ground.references) as reference:
        arrays = [*ground.gate.sample(0).values(), *reference[0].values()]
    count = min(foundation.GOLDEN_SAMPLES, len(ground.gate))
    return sum(count * array.nbytes + ARRAY_BYTES for array in arrays)


def _operators(model: onnx.ModelProto) -> dict[str, int]:
    names = (
        f"{n.domain}.{n.op_type}" if n.domain not in DEFAULT_DOMAINS else n.op_type for n in nodes_of(model)
    )
    return dict(sorted(Counter(names).items()))
