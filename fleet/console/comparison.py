"""What a plan expected beside what its build measured, in words and figures. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fleet.console.templatetags.figures import NOTHING, known, ms, quality, size


@dataclass(frozen=True)
class Figure:
    """One line: ``verdict`` is "over" where a budget or floor is not held, else ""."""

    label: str
    predicted: str
    measured: str
    difference: str
    limit: str
    verdict: str = ""


def comparison(
    plan: Mapping[str, Any],
    measured: Mapping[str, Any],
    target: Mapping[str, Any] | None = None,
    *,
    device_ms: float | None = None,
) -> list[Figure]:
    """Size, quality, memory, latency and energy of a plan and its build.

    Args:
        plan: a TailorPlan as it is stored.
        measured: size_bytes, quality, memory_bytes, latency_ms; missing before it is built.
        target: the class's budgets, where one class is looked at.
        device_ms: p50 that devices have reported, which counts instead of the worker's.
    """
    budget = target or {}
    floor = budget.get("quality_floor")
    lines = [
        _bytes(
            "Size", plan.get("predicted_size_bytes"), measured.get("size_bytes"), budget.get("storage_bytes")
        ),
        _quality(plan.get("predicted_quality"), measured.get("quality"), floor),
        _bytes(
            "Peak memory",
            plan.get("predicted_memory_bytes"),
            measured.get("memory_bytes"),
            budget.get("memory_bytes"),
        ),
        _latency(plan.get("predicted_latency_ms"), measured.get("latency_ms"), device_ms, budget),
    ]
    energy, allowed = plan.get("predicted_energy_mwh"), budget.get("energy_mwh")
    if energy or allowed:
        over = _over(energy, allowed)
        lines.append(Figure("Energy", _mwh(energy), NOTHING, "", _upto(_mwh(allowed)), over))
    return lines


def _bytes(label: str, predicted: Any, measured: Any, budget: Any) -> Figure:
    over = _over(measured, budget)
    return Figure(
        label, size(predicted), size(measured), _percent(predicted, measured), _upto(size(budget)), over
    )


def _quality(predicted: Any, measured: Any, floor: Any) -> Figure:
    difference = ""
    if known(predicted) and known(measured):
        difference = f"{measured - predicted:+.4f}"
    limit = f"\N{GREATER-THAN OR EQUAL TO} {floor:g}" if known(floor) else ""
    over = "over" if known(measured) and known(floor) and not measured >= floor else ""
    return Figure("Quality", quality(predicted), quality(measured), difference, limit, over)


def _latency(predicted: Any, measured: Any, device_ms: float | None, budget: Mapping[str, Any]) -> Figure:
    allowed, found = budget.get("latency_ms"), measured if device_ms is None else device_ms
    where = "devices" if device_ms is not None else "worker"
    other_machine = device_ms is None and any((budget.get("speed") or {}).values())
    return Figure(
        f"Latency p50 ({where})",
        ms(predicted),
        ms(found),
        "" if other_machine else _percent(predicted, found),
        _upto(ms(allowed)),
        _over(device_ms, allowed),
    )


def _over(value: Any, budget: Any) -> str:
    return "over" if known(value) and known(budget) and value > budget else ""


def _percent(predicted: Any, measured: Any) -> str:
    if not known(predicted) or not known(measured) or not predicted:
        return ""
    return f"{100 * (measured / predicted - 1):+.1f} %"


def _upto(text: str) -> str:
    return "" if text == NOTHING else f"\N{LESS-THAN OR EQUAL TO} {text}"


def _mwh(value: Any) -> str:
    return f"{value:.3g} mWh" if known(value) else NOTHING
