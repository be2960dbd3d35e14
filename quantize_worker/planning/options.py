"""Which formats each layer of a model may take in a class, as columns of numbers for the knapsack.

A class accepts precisions; its accelerator rules some formats out all the same. An NPU runs static
formats, wherever an operator has one. A GPU runs whole models in FP16 or FP32, and blocks of
weights; static and dynamic 8 bit would fall back to the CPU there. A CPU runs everything.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantize_worker.contract import AcceleratorKind, LayerFacts, Recipe, Target
from quantize_worker.formats import FORMATS, accepts
from quantize_worker.planning.losses import KINDS, Disturbance
from quantize_worker.planning.prediction import FormatCost, Predictor, shared_bytes

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

STATIC = ("int8-qdq", "int8-qdq16")
PRODUCTS = ""  # stands for the products of two activations where layers are named
MOST_COMBINATIONS = 64  # of formats of layers that share a weight; beyond, all take the same
_ORDER = {name: place for place, name in enumerate(FORMATS)}


@dataclass(frozen=True)
class Options:
    """One row per option, those of a group side by side; a group is decided as one.

    Args:
        members: layers per group; layers that share a weight are one group.
        formats: per option, one per member.
        group: of each option, (options,).
        size, memory, latency, energy: (options,).
        losses: single losses per precision, (options, precisions).
        products: loss of rounded products of two activations, (options,).
        products_kind: their precision, (options,).
        disfavour: how far down the class's list of precisions, as a share of all weights, (options,).
    """

    members: list[tuple[str, ...]]
    formats: list[tuple[str, ...]]
    group: Indices
    size: Floats
    memory: Floats
    latency: Floats
    energy: Floats
    losses: Floats
    products: Floats
    products_kind: Indices
    disfavour: Floats

    def recipe(self, predictor: Predictor, chosen: Indices) -> Recipe:
        """The recipe of an option per group."""
        layers: dict[str, str] = {}
        for members, option in zip(self.members, chosen, strict=True):
            layers.update(zip(members, self.formats[option], strict=True))
        products = layers.pop(PRODUCTS, "")
        return predictor.recipe(layers, products=products)

    def disturbance(self, chosen: Indices) -> Disturbance:
        """What the chosen options do to the model together."""
        sums: Floats = self.losses[chosen].sum(axis=0)
        rounded = chosen[self.products[chosen] > 0]
        kind = int(self.products_kind[rounded[0]]) if len(rounded) else 0
        return Disturbance(sums, float(self.products[chosen].sum()), kind)


def allowed_by_layer(predictor: Predictor) -> dict[str, tuple[str, ...]]:
    """What the class takes every layer in."""
    return {layer.name: allowed_formats(layer, predictor.target) for layer in predictor.facts.layers}


def options_of(predictor: Predictor, allowed: dict[str, tuple[str, ...]]) -> Options | None:
    """Every format that every layer may take; None if nothing that the class accepts applies.

    A layer for which the class accepts nothing stays in FP32, as nodes without weights do. A model
    of which that holds altogether is in FP32, and needs a class that accepts it.
    """
    target, layers = predictor.target, predictor.facts.layers
    sharing = _sharing(layers)
    products = _products(predictor)
    applies = products != [""] or any(names != ("fp32",) for names in allowed.values())
    if "fp32" not in target.precisions and not applies:
        return None
    members = [tuple(layer.name for layer in sharers) for sharers in sharing]
    groups = [_combinations(predictor, sharers, allowed) for sharers in sharing]
    if products != [""]:
        members.append((PRODUCTS,))
        groups.append([_Option((name,), predictor.products_cost(name)) for name in products])
    return _columns(predictor, members, groups)


def allowed_formats(layer: LayerFacts, target: Target) -> tuple[str, ...]:
    """What a class takes the layer in, its preferred precision first; FP32 if nothing else."""
    accepted = tuple(dict.fromkeys(target.precisions))
    names = [
        name
        for name in layer.formats
        if accepts(accepted, name, layer.operator) and runs(target.accelerator, layer, name, accepted)
    ]
    rank = {precision: place for place, precision in enumerate(accepted)}
    order = sorted(names, key=lambda name: (rank.get(FORMATS[name].precision, len(rank)), _ORDER[name]))
    return tuple(order) or ("fp32",)


def runs(accelerator: AcceleratorKind, layer: LayerFacts, name: str, accepted: tuple[str, ...]) -> bool:
    """Whether an accelerator of this kind runs the layer in the format."""
    item = FORMATS[name]
    if accelerator == "gpu":
        return item.activation_bits == 32 and name != "fp16-stored"
    if accelerator == "npu" and any(static in layer.formats for static in STATIC):
        return name in STATIC or (item.precision in ("fp32", "fp16") and item.precision in accepted)
    return True


def _products(predictor: Predictor) -> list[str]:
    """Formats of products of two activations; an NPU takes a static one if it can."""
    target, facts = predictor.target, predictor.facts
    static: list[str] = [name for name in STATIC if name in facts.products.loss and name in target.precisions]
    if target.accelerator == "gpu" or not static:
        return [""]
    must = target.accelerator == "npu" and "fp32" not in target.precisions
    return static if must else ["", *static]


def _sharing(layers: list[LayerFacts]) -> list[list[LayerFacts]]:
    """Layers by their weight, in graph order."""
    groups: dict[str, list[LayerFacts]] = {}
    for layer in layers:
        groups.setdefault(layer.weight or layer.name, []).append(layer)
    return list(groups.values())


class _Option(NamedTuple):
    """Formats of a group's layers and what they take together; ``also`` are further losses."""

    names: tuple[str, ...]
    cost: FormatCost
    also: tuple[FormatCost, ...] = ()


def _combinations(
    predictor: Predictor, sharers: list[LayerFacts], allowed: dict[str, tuple[str, ...]]
) -> list[_Option]:
    """Formats of layers that share a weight; of one layer, just its own."""
    first = sharers[0].name
    if len(sharers) == 1:
        return [_Option((name,), predictor.cost(first, name)) for name in allowed[first]]
    choices = [allowed[layer.name] for layer in sharers]
    if math.prod(map(len, choices)) <= MOST_COMBINATIONS:
        combinations = list(itertools.product(*choices))
    else:
        common = [name for name in choices[0] if all(name in other for other in choices)]
        combinations = [(name,) * len(sharers) for name in common]
    combinations = combinations or [tuple(names[0] for names in choices)]
    return [_together(predictor, sharers, names) for names in combinations]


def _together(predictor: Predictor, sharers: list[LayerFacts], names: tuple[str, ...]) -> _Option:
    """What layers that share a weight take together."""
    costs = [predictor.cost(layer.name, name) for layer, name in zip(sharers, names, strict=True)]
    size, memory = shared_bytes(zip(sharers, names, costs, strict=True))
    whole = costs[0]._replace(
        size_bytes=size,
        memory_bytes=memory,
        latency_ms=sum(cost.latency_ms for cost in costs),
        energy_mwh=sum(cost.energy_mwh for cost in costs),
    )
    return _Option(names, whole, tuple(costs[1:]))


def _columns(predictor: Predictor, members: list[tuple[str, ...]], groups: list[list[_Option]]) -> Options:
    options = [option for group in groups for option in group]
    group = np.repeat(np.arange(len(groups), dtype=np.intp), [len(each) for each in groups])
    table = np.array([option.cost for option in options], dtype=np.float64).reshape(-1, 6)
    loss, kind = table[:, 4], table[:, 5].astype(np.intp)
    rounded = np.array([names == (PRODUCTS,) for names in members], dtype=bool)[group]
    losses = np.zeros((len(options), KINDS))
    losses[np.arange(len(options)), kind] = np.where(rounded, 0.0, loss)
    for row, option in enumerate(options):
        for cost in option.also:
            losses[row, cost.kind] += cost.loss
    return Options(
        members=members,
        formats=[option.names for option in options],
        group=group,
        size=table[:, 0],
        memory=table[:, 1],
        latency=table[:, 2],
        energy=table[:, 3],
        losses=losses,
        products=np.where(rounded, loss, 0.0),
        products_kind=np.where(rounded, kind, 0),
        disfavour=_disfavour(predictor, members, options, group.tolist()),
    )


def _disfavour(
    predictor: Predictor, members: list[tuple[str, ...]], options: list[_Option], group: list[int]
) -> Floats:
    """Formats that the class has not named itself are as welcome as those it names first."""
    accepted = list(dict.fromkeys(predictor.target.precisions))
    rank = {
        name: accepted.index(item.precision) / len(accepted)
        for name, item in FORMATS.items()
        if item.precision in accepted
    }
    total = max(1, sum(layer.parameters for layer in predictor.facts.layers))
    weight = {layer.name: layer.parameters / total for layer in predictor.facts.layers}
    weight[PRODUCTS] = 1.0 / max(1, len(members))
    return np.array(
        [
            sum(
                weight[layer] * rank.get(name, 0.0)
                for layer, name in zip(members[index], option.names, strict=True)
            )
            for index, option in zip(group, options, strict=True)
        ],
        dtype=np.float64,
    ).reshape(len(options))


def kinds_used(recipe: Recipe) -> set[str]:
    """Precisions that a recipe uses below FP32, or the whole model's."""
    used = {FORMATS[name].precision for name in recipe.layers.values()}
    if recipe.products:
        used.add(FORMATS[recipe.products].precision)
    return {str(name) for name in used} or {recipe.precision}
