"""From a source and a recipe to a rewritten model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx

from quantize_worker.contract import Precision, Recipe
from quantize_worker.errors import BuildFailed
from quantize_worker.steps import fp16, int4, int8_dynamic, int8_qdq
from quantize_worker.steps.calibration import Activation, observe
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.layers import Layer, layers_of
from quantize_worker.steps.samples import SampleSet

CALIBRATION_SAMPLES = 64
WHOLE_MODEL: tuple[Precision, ...] = ("fp32", "fp16")


def quantize(
    path: Path,
    recipe: Recipe,
    calibration: SampleSet,
    *,
    on_share: Callable[[float], None] = lambda share: None,
) -> onnx.ModelProto:
    """Make the model that the recipe describes.

    Args:
        path: the source.
        recipe: precision of the whole and of single layers.
        calibration: samples for static ranges and for weighing rounding errors.
        on_share: called with the share of calibration done.

    Raises:
        BuildFailed: if the recipe does not fit the model.
    """
    graph = Graph.read(path)
    if recipe.precision in WHOLE_MODEL and not recipe.layers:
        model = graph.finish()
        return fp16.convert(model) if recipe.precision == "fp16" else model
    by_precision = _assigned(layers_of(graph), recipe)
    ranged = _activations(by_precision.get("int8-qdq", []))
    weighed = _activations(by_precision.get("int4", []))
    # made-up inputs say nothing about which columns go together
    grams = set() if calibration.synthetic else int4.correlated(by_precision.get("int4", []))
    samples = calibration.limited(CALIBRATION_SAMPLES).samples()
    watched = [*ranged, *weighed]
    activations = (
        observe(path, watched, samples, ranged=set(ranged), correlated=grams, on_sample=on_share)
        if watched
        else {}
    )
    for precision, layers in by_precision.items():
        _shrink(graph, precision, layers, activations)
    return graph.finish()


def _assigned(layers: list[Layer], recipe: Recipe) -> dict[Precision, list[Layer]]:
    """Layers by the precision they get; those that cannot take the recipe's stay in FP32."""
    unknown = set(recipe.layers) - {layer.name for layer in layers}
    if unknown:
        raise BuildFailed(
            "unknown_layer",
            f"The recipe names layers the model lacks: {sorted(unknown)[:3]}.",
            fault="system",
        )
    chosen: dict[Precision, list[Layer]] = {}
    for layer in layers:
        wanted = recipe.layers.get(layer.name, recipe.precision)
        if wanted in layer.precisions():
            chosen.setdefault(wanted, []).append(layer)
        elif layer.name in recipe.layers and wanted != "fp32":
            raise BuildFailed(
                "unsupported_layer", f"Layer {layer.name!r} cannot be made in {wanted}.", fault="system"
            )
    if not chosen:
        raise BuildFailed(
            "nothing_to_quantize",
            f"The model has no layer that {recipe.precision} applies to.",
            fault="model",
        )
    return chosen


def _activations(layers: list[Layer]) -> list[str]:
    return list(dict.fromkeys(layer.activation for layer in layers if layer.operator != "Gather"))


def _shrink(
    graph: Graph, precision: Precision, layers: list[Layer], activations: Mapping[str, Activation]
) -> None:
    if precision == "int4":
        int4.shrink(graph, layers, activations)
    elif precision == "int8-qdq":
        int8_qdq.shrink(graph, layers, activations)
    elif precision == "int8-dynamic":
        int8_dynamic.shrink(graph, layers)
    else:
        raise BuildFailed(
            "unsupported_layer", f"Single layers cannot be made in {precision}.", fault="system"
        )
