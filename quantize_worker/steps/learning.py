"""A recipe's INT4 matrices with learned rounding: the ``qat`` step between analysis and assembling."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from quantize_worker.contract import Recipe
from quantize_worker.steps import candidates, statistics
from quantize_worker.steps.assemble import STATISTICS, Choice, assemble, choices_of
from quantize_worker.steps.course import Subject
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.layers import layers_of
from quantize_worker.steps.learned import MINIMUM_SAMPLES, learn
from quantize_worker.steps.samples import SampleSet

logger = logging.getLogger(__name__)


def learned_analysis(
    model: Path,
    recipe: Recipe,
    analysis: Path,
    calibration: SampleSet,
    scratch: Path,
    *,
    lean: bool,
    on_share: Callable[[float], None] = lambda share: None,
) -> Path:
    """The analysis with learned candidates in place of the recipe's INT4 matrices.

    Made-up samples teach nothing, nor do a few: then, and where no layer is closer, the analysis is as it was.

    Args:
        model: the prepared model.
        recipe: whose ``layers`` name the formats.
        analysis: statistics and candidates; it is not changed.
        calibration: what to learn from.
        scratch: an empty folder for the new analysis.
        lean: open models without copying their weights.
        on_share: called with the share done.
    """
    subjects = _subjects(model, recipe, analysis)
    if not subjects or calibration.synthetic or len(calibration) < MINIMUM_SAMPLES:
        return analysis
    host = scratch / "host"
    left = {subject.layer.name for subject in subjects}
    rest = {name: form for name, form in recipe.layers.items() if name not in left}
    plain = msgspec.structs.replace(recipe, precision="fp32", layers=rest, learned=False)
    assemble(model, plain, analysis, host)
    samples = calibration.samples()
    try:
        found = learn(model, host / "model.onnx", subjects, samples, lean=lean, on_share=on_share)
    except MemoryError:
        raise
    except Exception:  # ONNX Runtime's exceptions have no common base; a model that cannot be run in pieces
        logger.exception("the rounding of this model cannot be learned; it is built as it was planned")
        return analysis
    return _overlaid(analysis, scratch / "analysis", model, recipe, found.blocks)


def _subjects(model: Path, recipe: Recipe, analysis: Path) -> list[Subject]:
    """Matrices that the recipe puts in four bits, with the rounding they start from."""
    graph = Graph.read(model)
    choices = choices_of(layers_of(graph), recipe)
    shared = Counter(name for choice in choices for name in choice.layer.weights)
    chosen = [
        choice
        for choice in choices
        if choice.format.bits == 4 and choice.layer.is_matrix and shared[choice.layer.weight] == 1
    ]
    known = statistics.load(analysis / STATISTICS)
    return [Subject(choice.layer, choice.format, _start(choice, graph, analysis, known)) for choice in chosen]


def _start(
    choice: Choice, graph: Graph, analysis: Path, known: dict[str, statistics.Activation]
) -> candidates.Blocks:
    path = candidates.path_of(analysis, choice.index, choice.format.name)
    if path.exists():
        return candidates.read(path)
    return candidates.make(choice.layer.matrix(graph), choice.format, known.get(choice.layer.activation))


def _overlaid(
    analysis: Path, place: Path, model: Path, recipe: Recipe, blocks: dict[str, candidates.Blocks]
) -> Path:
    """Links to the analysis's files, but for the candidates that have been learned."""
    if not blocks:
        return analysis
    place.mkdir(parents=True)
    (place / STATISTICS).symlink_to(analysis / STATISTICS)
    layers = {layer.name: index for index, layer in enumerate(layers_of(Graph.read(model)))}
    for name, form in recipe.layers.items():
        target = candidates.path_of(place, layers[name], form)
        known = candidates.path_of(analysis, layers[name], form)
        if name in blocks:
            candidates.write(target, blocks[name])
        elif known.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(known)
    return place
