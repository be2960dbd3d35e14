"""How the console writes figures, times and names."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Any

import msgspec
from django import template
from django.contrib.humanize.templatetags.humanize import naturaltime
from django.utils.html import format_html
from django.utils.safestring import SafeString

register = template.Library()
NOTHING = "\N{EN DASH}"
UNITS = ("B", "kB", "MB", "GB", "TB")


def known(value: Any) -> bool:
    """Whether there is a figure; a template gives "" for what a row does not have."""
    return isinstance(value, int | float)


@register.filter
def megabytes(value: int) -> str:
    """Memory, in the binary units in which it is sold."""
    return f"{value / 1024:.1f} GB".replace(".0 ", " ") if value >= 1024 else f"{value} MB"


@register.filter
def size(value: Any) -> str:
    """Bytes in the unit that reads best (decimal, as shops write it)."""
    if not known(value):
        return NOTHING
    exponent = min(int(math.log10(max(abs(value), 1)) // 3), len(UNITS) - 1)
    number, unit = value / 1000**exponent, UNITS[exponent]
    return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"


@register.filter
def ms(value: Any) -> str:
    if not known(value) or value == 0:  # nothing takes no time: it was not measured
        return NOTHING
    if 0 < value < 0.01:
        return "<0.01 ms"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


@register.filter
def percent(value: Any) -> str:
    if not known(value):
        return NOTHING
    return f"{value * 100:.3g} %"


@register.filter
def quality(value: Any) -> str:
    return f"{value:.4f}" if known(value) else NOTHING


@register.filter
def ago(value: Any) -> SafeString:
    """How long ago, with the exact time (UTC) as a title."""
    if not isinstance(value, datetime):
        return SafeString('<span class="text-secondary">never</span>')
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        value.isoformat(timespec="seconds"),
        f"{value:%Y-%m-%d %H:%M:%S} UTC",
        naturaltime(value),
    )


@register.filter
def short(value: Any) -> str:
    """The first digits of an id or digest."""
    return str(value)[:8]


@register.filter
def item(mapping: Any, key: Any) -> Any:
    return mapping.get(key) if hasattr(mapping, "get") else None


@register.filter
def pretty_json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


@register.filter
def words(value: str) -> str:
    """An identifier as words."""
    return str(value).replace("_", " ").replace("-", " ")


@register.filter
def provider(name: str) -> str:
    """ONNX Runtime's provider name without its suffix."""
    return str(name).removesuffix("ExecutionProvider") or NOTHING


@register.filter
def total_size(files: Any) -> int | None:
    return sum(file.size_bytes for file in files) or None


@register.filter
def actor(text: str) -> str:
    """``user:ada`` as people say it."""
    kind, _, name = str(text).partition(":")
    return {"user": name, "token": f"token {name}"}.get(kind, str(text)) or NOTHING


@register.filter
def count(value: int) -> str:
    return (
        f"{value:,}"
        if value < 1_000_000
        else f"{value / 1e6:.1f} M"
        if value < 1e9
        else f"{value / 1e9:.2f} B"
    )


@register.filter
def shape(dimensions: list[int | str]) -> str:
    return f"({', '.join(map(str, dimensions))})"


@register.filter
def ppm(value: int) -> str:
    return f"{value / 1e6:.4f}"


@register.filter
def seconds(value: float) -> str:
    """Seconds in the unit that reads best."""
    if not value:
        return "none"
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if value >= length:
            number = value / length
            return f"{number:g} {unit}{'' if number == 1 else 's'}"
    return f"{value:g} s"


@register.filter
def loss(value: Any) -> str:
    """A loss of quality, with two digits that count."""
    if not known(value):
        return NOTHING
    if abs(value) < 1e-8:
        return "0"
    return f"{value:.{max(0, 1 - math.floor(math.log10(abs(value))))}f}"


@register.filter
def by_share(shares: dict[str, float]) -> list[tuple[str, float]]:
    """Shares, the largest first."""
    return sorted(shares.items(), key=lambda pair: (-pair[1], pair[0]))


_OBJECTIVES = {
    "size": "the smallest over the floor",
    "latency": "the fastest over the floor",
    "quality": "the best within the budgets",
}


@register.filter
def objective(name: str) -> str:
    return _OBJECTIVES.get(name, name)


@register.filter
def plain(value: Any) -> str:
    """A figure with the digits that it was given with."""
    return f"{value:g}" if known(value) else NOTHING


_UNITS = {"latency": ms, "energy": lambda value: f"{value:.3g} mWh", "floor": plain}


@register.filter
def advice(nearest: Any) -> str:
    """What would have to change for a class that can carry nothing, as a sentence.

    Args:
        nearest: of quantize_worker.plan, as it is or as it is stored.
    """
    found = nearest if isinstance(nearest, dict) else msgspec.to_builtins(nearest)
    each = [_change(one) for one in (found, *found["also"])]
    text = (" and " if found["together"] else ", or ").join(each)
    return f"{text[:1].upper()}{text[1:]}."


def _change(one: dict[str, Any]) -> str:
    shown = _UNITS.get(one["budget"], size)
    name = "the quality floor" if one["budget"] == "floor" else one["budget"]
    verb = "lower" if one["budget"] == "floor" else "raise"
    return f"{verb} {name} from {shown(one['allowed'])} to {shown(one['needed'])}"
