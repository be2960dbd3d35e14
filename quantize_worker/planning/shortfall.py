"""What would have to change for a class that can't carry a model, and why precisions go unused."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import msgspec

from quantize_worker.contract import Precision, Target
from quantize_worker.formats import FORMATS
from quantize_worker.planning.explain import BETTER
from quantize_worker.planning.options import kinds_used
from quantize_worker.planning.search import RESOURCES, Aim, Budget, Found, Search, exceeded, needs
from quantize_worker.planning.words import needed_words

_AIMS: dict[Budget, Aim] = {"storage": "size", "memory": "memory", "latency": "latency", "energy": "energy"}
LOWEST_QUALITY = 0.5  # below, a model is of no use

RejectionCode = Literal[
    "not_applicable",  # no layer can take it
    "provider",  # the class's accelerator does not run it
    "not_better",  # it would do, but the plan is better without
    "memory",
    "storage",
    "latency",
    "energy",
    "quality",
]


class Rejection(msgspec.Struct, kw_only=True, frozen=True):
    """A precision the class accepts but does not get, and why."""

    precision: Precision
    code: RejectionCode
    reason: str


class Nearest(msgspec.Struct, kw_only=True, frozen=True):
    """The budget that lacks least for the class to carry the model.

    ``needed`` and ``allowed`` are in bytes, ms, mWh or, for "floor", as a share of FP32's quality.
    ``also`` are other budgets that would do each on its own, or, if ``together``, that are needed
    besides.
    """

    budget: Budget
    needed: float
    allowed: float
    reason: str
    together: bool = False
    also: list[Nearest] = []


def nearest(search: Search, budgets: Mapping[Budget, float], margin: float) -> Nearest | None:
    """What lacks least.

    Args:
        search: for the class.
        budgets: the class's, "floor" as the loss that is planned for.
        margin: of the loss that a floor allows, what is planned for.

    Returns:
        None if no budget would do: nothing that the class accepts applies to the model, or all
        has been measured below the floor.
    """
    alone = [one for name in budgets if (one := _alone(search, budgets, name, margin)) is not None]
    if alone:
        first, *others = sorted(alone, key=_lack)
        return msgspec.structs.replace(first, reason=_sentence(first, others), also=others)
    return _together(search, budgets)


def _lack(one: Nearest) -> float:
    """How far a budget is exceeded; of quality, how much more is lost."""
    if one.budget == "floor":
        return (1.0 - one.needed) / max(1.0 - one.allowed, 1e-9)
    return one.needed / max(one.allowed, 1e-9)


def _alone(search: Search, budgets: Mapping[Budget, float], name: Budget, margin: float) -> Nearest | None:
    """What is needed of one budget if the others stay."""
    others = {other: value for other, value in budgets.items() if other != name}
    found = search.best(_AIMS.get(name, "quality"), others)
    if found is None:
        return None
    if name == "floor":
        quality = search.predictor.quality(found.prediction.loss / margin)
        needed, allowed = math.floor(quality * 1000) / 1000, search.predictor.target.quality_floor
        if needed < LOWEST_QUALITY:
            return None
        return Nearest(
            budget=name,
            needed=needed,
            allowed=allowed,
            reason=f"at quality {needed:g} instead of {allowed:g}",
        )
    return _resource(name, needs(found.prediction)[name], budgets[name])


def _resource(name: Budget, value: float, allowed: float) -> Nearest:
    needed = _rounded_up(value)
    words = f"needs {needed_words(name, needed)} of {name}, the class allows {needed_words(name, allowed)}"
    return Nearest(budget=name, needed=needed, allowed=allowed, reason=words)


def _rounded_up(value: float) -> float:
    """To three digits, so that what is said is enough."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2) if value > 0 else 1.0
    return math.ceil(value / step - 1e-9) * step


def _sentence(first: Nearest, others: list[Nearest]) -> str:
    resources = [one for one in (first, *others) if one.budget != "floor"]
    floors = [one for one in (first, *others) if one.budget == "floor"]
    if not resources:
        return f"The model fits {floors[0].reason}."
    also = f"; {floors[0].reason} it would fit" if floors else ""
    return f"The model {resources[0].reason}{also}."


def _together(search: Search, budgets: Mapping[Budget, float]) -> Nearest | None:
    """Where one budget does not do: all that the smallest recipe over the floor needs."""
    floor: dict[Budget, float] = {name: value for name, value in budgets.items() if name == "floor"}
    found = search.best("size", floor) or search.best("quality", {})
    if found is None:
        return None
    lacking = [name for name in exceeded(found.prediction, budgets) if name in RESOURCES]
    needed = [_resource(name, needs(found.prediction)[name], budgets[name]) for name in lacking]
    if not needed:
        return None
    first, *others = needed
    words = " and ".join(one.reason for one in needed)
    return msgspec.structs.replace(first, reason=f"The model {words}.", together=True, also=others)


def rejections(search: Search, plan: Found | None, budgets: Mapping[Budget, float]) -> list[Rejection]:
    """Why precisions that the class accepts are not in its plan."""
    target = search.predictor.target
    used = kinds_used(plan.recipe) if plan is not None else set()
    unused = [name for name in dict.fromkeys(target.precisions) if name not in used]
    return [one for name in unused for one in _unused(search, name, plan, budgets)]


def _unused(
    search: Search, name: Precision, plan: Found | None, budgets: Mapping[Budget, float]
) -> Iterator[Rejection]:
    target = search.predictor.target
    if name in ("fp32", "fp16"):
        yield _whole(search, name, plan, budgets)
    elif not any(_takes(layer.formats, name) for layer in search.predictor.facts.layers):
        reason = (
            f"{name} does not apply: the model has no layer with weights large enough that it can shrink."
        )
        yield Rejection(precision=name, code="not_applicable", reason=reason)
    elif not _allowed_anywhere(search, name):
        reason = f"{name} is not used: {_an(target)} of class {target.name} does not run it."
        yield Rejection(precision=name, code="provider", reason=reason)
    elif plan is not None:
        reason = f"{name} is not used: no layer makes the model {BETTER[target.objective]} with it within floor and budgets."
        yield Rejection(precision=name, code="not_better", reason=reason)
    else:
        reason = (
            f"{name} does not help: no recipe with it keeps the floor and all budgets of class {target.name}."
        )
        yield Rejection(precision=name, code="quality", reason=reason)


def _whole(search: Search, name: Precision, plan: Found | None, budgets: Mapping[Budget, float]) -> Rejection:
    facts, target = search.predictor.facts, search.predictor.target
    if name == "fp16" and facts.parameters <= 0:
        reason = "fp16 does not apply: the model has no floating-point weights."
        return Rejection(precision=name, code="not_applicable", reason=reason)
    whole = search.whole(name)
    lacking = exceeded(whole.prediction, budgets)
    if not lacking:
        than = (
            f"a model {BETTER[target.objective]} than it is possible"
            if plan is not None
            else "it was measured below the floor"
        )
        return Rejection(precision=name, code="not_better", reason=f"{name} is not used: {than}.")
    if lacking[0] == "floor":
        reason = f"{name} is expected to keep {whole.prediction.quality:.4f} of FP32's quality, the floor is {target.quality_floor:.4f}."
        return Rejection(precision=name, code="quality", reason=reason)
    needed, allowed = (
        needed_words(lacking[0], value)
        for value in (needs(whole.prediction)[lacking[0]], budgets[lacking[0]])
    )
    reason = f"{name} needs {needed} of {lacking[0]}, class {target.name} allows {allowed}."
    return Rejection(precision=name, code=lacking[0], reason=reason)


def _takes(formats: Iterable[str], precision: Precision) -> bool:
    return any(FORMATS[name].precision == precision for name in formats)


def _allowed_anywhere(search: Search, precision: Precision) -> bool:
    return any(_takes(names, precision) for names in search.allowed.values())


def _an(target: Target) -> str:
    kinds = {"cpu": "the CPU", "gpu": "the GPU", "npu": "the NPU"}
    return kinds[target.accelerator]
