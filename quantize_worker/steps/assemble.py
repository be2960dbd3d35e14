"""From a prepared model and a recipe to an artifact: ``model.onnx`` and ``model.data``.

Weights are read where they lie mapped and written in blocks; what is made of them waits in a scratch
file. So a model of any size takes the memory of a few blocks. Nothing depends on time, on the order of
hashes or on threads: equal inputs give equal bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from quantize_worker.contract import Recipe
from quantize_worker.errors import BuildFailed
from quantize_worker.formats import FORMATS, Format
from quantize_worker.steps import candidates, statistics
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.layers import Layer, layers_of, products_of
from quantize_worker.steps.rewrite import blocks, dynamic, fp16, recurrent, static, stored, tables
from quantize_worker.steps.rewrite.making import kept, made_blocks
from quantize_worker.steps.rewrite.scratch import Scratch
from quantize_worker.steps.rewrite.smoothed import Smoother
from quantize_worker.steps.rewrite.workplace import Workplace
from quantize_worker.steps.statistics import Activation

STATISTICS = "statistics"  # folder of an analysis
KEPT_BYTES = 64 << 20  # a larger candidate is made again by the next build
STATIC_BITS = {"int8-qdq": 8, "int8-qdq16": 16}
# Contract 1: the format that a layer gets for a precision; the first that it can take.
DEFAULTS: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "fp16": ("fp16-stored",),
    "int8": ("int8-b32", "int8-b128", "int8-b16"),
    "int8-dynamic": ("int8-dynamic", "int8-b128"),
    "int8-qdq": ("int8-qdq", "int8-b128"),
    "int8-qdq16": ("int8-qdq16", "int8-b128"),
    "int4": ("int4-b32", "int4-b16", "int4-b128"),
}


@dataclass(frozen=True)
class Choice:
    """A layer, its position in ``layers_of``, and the format it gets."""

    index: int
    layer: Layer
    format: Format


def assemble(
    model: Path,
    recipe: Recipe,
    analysis: Path,
    artifact: Path,
    *,
    on_share: Callable[[float], None] = lambda share: None,
) -> list[int]:
    """Make what the recipe describes.

    Args:
        model: the prepared model, with its external data beside it.
        recipe: a format for each layer, or a precision for all.
        analysis: folder with ``statistics/`` and ``candidates/``; a missing candidate is made.
        artifact: folder for ``model.onnx`` and ``model.data``.
        on_share: called with the share of layers done.

    Returns:
        Where tensors start in ``model.data``, ascending, and its length last.

    Raises:
        BuildFailed: unknown_layer, unsupported_layer, nothing_to_quantize, missing_ranges,
            conversion_failed or disk_full.
    """
    if recipe.precision == "fp16" and not recipe.layers:
        return _halved(model, artifact)
    graph = Graph.read(model)
    choices = choices_of(layers_of(graph), recipe)
    weights = Counter(name for choice in choices for name in choice.layer.weights)
    with Scratch(artifact) as scratch:
        shared = frozenset(name for name, count in weights.items() if count > 1)
        writer = _Writer(Workplace(graph, scratch, shared), analysis, choices)
        writer.write(recipe.products, on_share)
        return graph.write(artifact)


def choices_of(layers: list[Layer], recipe: Recipe) -> list[Choice]:
    """The layers that are not left in FP32.

    Raises:
        BuildFailed: unknown_layer, unsupported_layer or nothing_to_quantize.
    """
    unknown = set(recipe.layers) - {layer.name for layer in layers}
    if unknown:
        raise BuildFailed(
            "unknown_layer",
            f"The recipe names layers the model lacks: {sorted(unknown)[:3]}; inspect the version again.",
            fault="system",
        )
    found = []
    for index, layer in enumerate(layers):
        name = _format_of(layer, recipe)
        if name != "fp32":
            found.append(Choice(index, layer, FORMATS[name]))
    if not found and recipe.precision != "fp32" and not recipe.products:
        raise BuildFailed(
            "nothing_to_quantize",
            f"The model has no layer that {recipe.precision} applies to.",
            fault="model",
        )
    return found


def _format_of(layer: Layer, recipe: Recipe) -> str:
    """A layer's format. Contract 1 names precisions, and leaves out layers that have the recipe's."""
    old = is_old(recipe)
    name = recipe.layers.get(layer.name, recipe.precision if old else "fp32")
    possible = layer.formats()
    if old and name in DEFAULTS:
        return next((one for one in DEFAULTS[name] if one in possible), "fp32")
    if name not in possible:
        raise BuildFailed(
            "unsupported_layer", f"Layer {layer.name!r} cannot be made in {name!r}.", fault="system"
        )
    return name


def is_old(recipe: Recipe) -> bool:
    """Whether a recipe follows contract 1: it names precisions, and only layers that differ."""
    names = set(recipe.layers.values())
    return recipe.block_size is not None or names <= {"fp32"} or bool(names - FORMATS.keys())


def _halved(model: Path, artifact: Path) -> list[int]:
    scratch = artifact / ".half"
    try:
        return fp16.convert(model, artifact, scratch)
    finally:
        for path in scratch.iterdir() if scratch.exists() else ():
            path.unlink()
        if scratch.exists():
            scratch.rmdir()


class _Writer:
    """Writes the choices into the graph, family by family."""

    def __init__(self, place: Workplace, analysis: Path, choices: list[Choice]) -> None:
        self._place, self._analysis, self._choices = place, analysis, choices
        self._statistics: dict[str, Activation] | None = None

    def write(self, products: str, on_share: Callable[[float], None]) -> None:
        """Rewrite all layers, and products of activations in their static format."""
        single = [choice for choice in self._choices if choice.format.activation_bits == 32]
        for done, choice in enumerate(single):
            self._single(choice)
            on_share((done + 1) / len(self._choices))
        self._dynamic()
        for name, bits in STATIC_BITS.items():
            layers = [choice.layer for choice in self._choices if choice.format.name == name]
            nodes = products_of(self._place.graph) if products == name else []
            if layers or nodes:
                static.rewrite(self._place, layers, nodes, self._activations(), bits=bits)
        on_share(1.0)

    def _single(self, choice: Choice) -> None:
        """A layer that is rewritten without regard to others."""
        layer, form = choice.layer, choice.format
        if form.stored_only:
            stored.rewrite(self._place, layer, form.bits)
            return
        rewriter = tables.rewrite if layer.is_table else blocks.rewrite
        rewriter(self._place, layer, self._blocks(choice), form.name)

    def _dynamic(self) -> None:
        chosen = [choice.layer for choice in self._choices if choice.format.name == "int8-dynamic"]
        matrices = [layer for layer in chosen if layer.is_matrix]
        for layer in chosen:
            if not layer.is_matrix:
                recurrent.rewrite(self._place, layer)
        if matrices:
            known = self._activations()
            smoother = Smoother(
                self._place, matrices, known, levels=dynamic.LEVELS, stem="smooth", padded=True
            )
            dynamic.rewrite(self._place, matrices, smoother)

    def _blocks(self, choice: Choice) -> candidates.Blocks:
        """The layer's candidate; one that had to be made is left for the next build."""
        path = candidates.path_of(self._analysis, choice.index, choice.format.name)
        if path.exists():
            return kept(self._place, candidates.read(path))
        activation = self._activations().get(choice.layer.activation)
        made = made_blocks(self._place, choice.layer, choice.format, activation)
        if made.size_bytes <= KEPT_BYTES:
            candidates.write(path, made)
        return made

    def _activations(self) -> Mapping[str, Activation]:
        """What calibration saw, by tensor; nothing where there was none."""
        if self._statistics is None:
            folder = self._analysis / STATISTICS
            self._statistics = statistics.load(folder) if folder.exists() else {}
        return self._statistics
