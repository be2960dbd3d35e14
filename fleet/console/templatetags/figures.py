"""How the console writes figures, times and names."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Any

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
    if not known(value):
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
