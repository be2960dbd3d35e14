"""How losses of single layers add up: measured on whole models, assembled as builds are.

Per precision ``loss = factor * sum ** power`` is fitted to some models in it, on the samples that the
layers were probed with; both sides see rounding on samples that it was fitted to.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize_worker.contract import Interaction, Precision, Recipe
from quantize_worker.errors import BuildFailed, ModelRefused
from quantize_worker.formats import FORMATS
from quantize_worker.steps.assemble import assemble
from quantize_worker.steps.evaluate import best_classes, share_correct
from quantize_worker.steps.probing import flips, loss_of, run_outputs
from quantize_worker.steps.samples import Sample
from quantize_worker.steps.sensitivity import Weighed

Array = NDArray[Any]
CPU_PROVIDER = "CPUExecutionProvider"
SCRATCH = ".interaction"
# Per precision: a format and which share of layers takes it (one in so many).
TRIALS: dict[Precision, tuple[tuple[str, int], ...]] = {
    "int4": (("int4-b16", 1), ("int4-b32", 1), ("int4-b128-sym", 1), ("int4-b32", 2), ("int4-b128", 3)),
    "int8": (("int8-b128", 1),),
    "int8-dynamic": (("int8-dynamic", 1), ("int8-dynamic", 2)),
    "int8-qdq": (("int8-qdq", 1), ("int8-qdq", 2)),
    "int8-qdq16": (("int8-qdq16", 1),),
}
STATIC: tuple[Precision, ...] = ("int8-qdq", "int8-qdq16")
SMALLEST_LOSS = 1e-7  # below, cosines are rounding noise
POWER_PRIOR = 0.05  # pulls the power to 1, as a point's squared error of logarithms
LOWEST_POWER, HIGHEST_POWER = 0.8, 1.6
LARGEST_FACTOR = 20.0
HARMFUL_FLIPS = 0.5  # share of changed labels that were right before, where it cannot be measured


@dataclass(frozen=True)
class Trial:
    """A whole model that was measured."""

    precision: Precision
    single: float  # sum of single losses
    loss: float
    flips: float  # share of best classes that changed
    correct: float | None  # share of right labels


class Laboratory:
    """Assembles models and runs them.

    Args:
        model: the prepared model.
        analysis: with statistics and candidates; candidates that come along are taken away again.
        samples: to run, inputs by name.
        own: the main output of each in FP32.
        labels: of the samples, if there are any.
        batched: whether samples may run together.
    """

    def __init__(
        self,
        model: Path,
        analysis: Path,
        samples: Sequence[Sample],
        own: Sequence[Array],
        *,
        labels: Array | None,
        batched: bool,
    ) -> None:
        self._model, self._analysis, self._samples = model, analysis, samples
        self.own, self.labels, self._batched = own, labels, batched

    def outputs(
        self, formats: Mapping[str, str], precision: Precision, products: str = ""
    ) -> list[Array] | None:
        """What a recipe's model makes of the samples; None if it cannot be made or run."""
        recipe = Recipe(
            precision=precision,
            accelerator="cpu",
            execution_provider=CPU_PROVIDER,
            emulated=False,
            layers=dict(formats),
            products=products,
        )
        place = self._analysis / SCRATCH
        try:
            assemble(self._model, recipe, self._analysis, place)
            return run_outputs(place / "model.onnx", self._samples, batched=self._batched)
        except (BuildFailed, ModelRefused):
            return None
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def trial(self, precision: Precision, formats: Mapping[str, str], single: float) -> Trial | None:
        """Measure a recipe."""
        found = self.outputs(formats, precision)
        if found is None:
            return None
        correct = None if self.labels is None else _correct(found, self.labels)
        return Trial(precision, single, loss_of(self.own, found), flips(self.own, found), correct)

    def products_loss(self, precision: Precision, weighed: Sequence[Weighed]) -> float | None:
        """What rounding products of two activations loses beside layers in the same format.

        Alone they lose as much as the layers do, together hardly more than one of both: the two
        disturb the same activations, and a class that wants static products wants static layers.
        """
        formats = {one.layer.name: str(precision) for one in weighed if precision in one.seen}
        losses = [self.outputs(formats, precision, products) for products in ("", precision)]
        if any(found is None for found in losses):
            return None
        without, beside = (loss_of(self.own, found) for found in losses if found is not None)
        return max(0.0, beside - without)


def trials(
    laboratory: Laboratory, weighed: Sequence[Weighed], on_share: Callable[[float], None] = lambda share: None
) -> list[Trial]:
    """Measure some models in each precision."""
    planned = list(_planned(weighed))
    found = []
    for index, (precision, formats) in enumerate(planned):
        single = sum(
            one.loss(formats[one.layer.name], unseen=False) for one in weighed if one.layer.name in formats
        )
        measured = laboratory.trial(precision, formats, single)
        if measured is not None:
            found.append(measured)
        on_share((index + 1) / len(planned))
    return found


def fitted(measured: Sequence[Trial]) -> dict[str, Interaction]:
    """A law per precision that was measured."""
    laws: dict[str, Interaction] = {}
    for precision in TRIALS:
        points = [
            (one.single, one.loss)
            for one in measured
            if one.precision == precision and one.single > SMALLEST_LOSS
        ]
        if points:
            laws[precision] = _law(points)
    return laws


def accuracy_loss(measured: Sequence[Trial], source_correct: float | None) -> float:
    """Share of right labels lost per unit of loss, over all models measured; 0 without labels."""
    usable = [one for one in measured if one.loss > SMALLEST_LOSS]
    total = sum(one.loss for one in usable)
    if source_correct is None or not source_correct or not total:
        return 0.0
    lost = sum(max(0.0, source_correct - one.correct) for one in usable if one.correct is not None)
    flipped = HARMFUL_FLIPS * sum(one.flips for one in usable)
    return max(lost, flipped) / source_correct / total


def _planned(weighed: Sequence[Weighed]) -> Iterator[tuple[Precision, dict[str, str]]]:
    """Recipes, each once."""
    seen = set()
    for precision, variants in TRIALS.items():
        for name, every in variants:
            able = [one for one in weighed if _similar(one, name)]
            formats = {one.layer.name: _similar(one, name) for one in able[::every]}
            key = (precision, *formats.items())
            if formats and key not in seen:
                seen.add(key)
                yield precision, formats


def _similar(one: Weighed, name: str) -> str:
    """The format, or another of its precision that the layer can take; "" if there is none."""
    if name in one.seen:
        return name
    wanted = FORMATS[name]
    alike = [other for other in one.seen if FORMATS[other].precision == wanted.precision]
    alike = [other for other in alike if not FORMATS[other].stored_only]
    return alike[0] if alike and wanted.bits == 4 else ""


def _law(points: Sequence[tuple[float, float]]) -> Interaction:
    """Least squares of logarithms, with a pull towards mere addition."""
    x = np.log([single for single, _ in points])
    y = np.log([max(loss, SMALLEST_LOSS) for _, loss in points])
    spread = x - x.mean()
    power = 1.0
    if len(points) > 1:
        power += float(spread @ (y - y.mean() - spread)) / float(spread @ spread + POWER_PRIOR)
    power = min(HIGHEST_POWER, max(LOWEST_POWER, power))
    factor = math.exp(float(np.mean(y - power * x)))
    if len(points) == 1:
        factor = min(LARGEST_FACTOR, max(1 / LARGEST_FACTOR, factor))
    return Interaction(factor=factor, power=power, points=list(points))


def _correct(outputs: Sequence[Array], labels: Array) -> float:
    return share_correct(np.concatenate([best_classes(one) for one in outputs]), labels)


def source_correct(own: Sequence[Array], labels: Array | None) -> float | None:
    """Share of labels that FP32 gets right."""
    return None if labels is None else _correct(own, labels)
