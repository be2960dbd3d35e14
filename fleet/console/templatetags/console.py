"""How the console shows states, sizes, shares and times."""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from django import template
from django.contrib.humanize.templatetags.humanize import naturaltime
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

register = template.Library()
ICONS = Path(__file__).parents[1] / "static" / "vendor" / "tabler-icons-3.51.0"

_COLOURS = {
    "green": "ready active accepted finished published",
    "azure": "building running checking uploading downloading verifying staged testing signing offered",
    "cyan": "soaking",
    "yellow": "pending paused waiting",
    "orange": "rejected impossible",
    "red": "failed refused rolled_back",
    "secondary": "draft planned cancelled decommissioned expired unknown",
}
COLOURS = {state: colour for colour, states in _COLOURS.items() for state in states.split()}
BUSY = frozenset("building running checking uploading signing downloading verifying testing".split())
ORDER = ("active", "testing", "staged", "verifying", "downloading", "offered", "failed", "rolled_back", "expired")
NOTHING = "–"


def _known(value: Any) -> bool:
    """Whether there is a figure; a template gives "" for what a row does not have."""
    return isinstance(value, int | float)


@cache
def _svg(name: str) -> str:
    return (ICONS / f"{name}.svg").read_text()


@register.simple_tag
def icon(name: str, classes: str = "") -> SafeString:
    """A Tabler icon, inline so that it takes the text's colour."""
    svg = _svg(name).replace('class="icon', f'aria-hidden="true" class="{classes} icon', 1)
    return mark_safe(svg)  # noqa: S308 - a file of ours


@register.simple_tag
def status(state: str, label: str = "") -> SafeString:
    """A state as a coloured pill; what is under way has a moving dot."""
    dot = "status-dot status-dot-animated" if state in BUSY else "status-dot"
    text = label or state.replace("_", " ")
    colour = COLOURS.get(state, "secondary")
    return format_html('<span class="status status-{}"><span class="{}"></span>{}</span>', colour, dot, text)


@register.simple_tag
def emulated(is_emulated: bool = True) -> SafeString:
    """The label of everything that rests on an emulated accelerator."""
    if not is_emulated:
        return SafeString("")
    title = "The CPU stands in for this accelerator; figures are not those of real hardware."
    return format_html('<span class="badge badge-emulated" title="{}">emulated</span>', title)


@register.simple_tag
def bar(share: float, state: str = "running") -> SafeString:
    """A share of one as a bar; an SVG, since the page's policy allows no inline style."""
    width = round(max(0.0, min(1.0, share or 0.0)) * 100, 1)
    return format_html(
        '<svg class="bar" role="img" aria-label="{}%"><rect class="bar-track" width="100%" height="100%"/>'
        '<rect class="fill-{}" width="{}%" height="100%"/></svg>',
        width,
        COLOURS.get(state, "azure"),
        width,
    )


@register.simple_tag
def segments(counts: dict[str, int], total: int) -> SafeString:
    """Devices by state of their assignment as one bar, the rest of ``total`` left empty."""
    known = [(state, counts[state]) for state in ORDER if counts.get(state)]
    whole = max(total, sum(count for _, count in known), 1)
    rows, at = [], 0
    for state, count in known:
        rows.append((COLOURS[state], state, 100 * at / whole, 100 * count / whole, count, state))
        at += count
    rects = format_html_join(
        "", '<rect class="fill-{} seg-{}" x="{}%" width="{}%" height="100%"><title>{} {}</title></rect>', rows
    )
    return format_html(
        '<svg class="bar bar-lg" role="img"><rect class="bar-track" width="100%" height="100%"/>{}</svg>', rects
    )


@register.simple_tag
def legend(counts: dict[str, int]) -> SafeString:
    """The counts of :func:`segments` in words."""
    rows = [
        (COLOURS[state], state, counts[state], state.replace("_", " "))
        for state in ORDER
        if counts.get(state)
    ]
    return format_html_join("", '<span class="legend"><i class="dot-{} seg-{}"></i>{} {}</span>', rows)


@register.simple_tag
def class_bar(devices: int, whole: int) -> SafeString:
    """A class's share of all devices."""
    return bar(devices / whole if whole else 0.0, "ready")


@register.simple_tag
def track_dots(tracks: Any) -> SafeString:
    """A rollout's classes as coloured dots with their names as titles."""
    rows = [(COLOURS.get(t.state, "secondary"), t.class_name, t.state) for t in tracks]
    dots = format_html_join("", '<i class="dot-{}" title="{}: {}"></i>', rows)
    return format_html('<span class="dots">{}</span>', dots)


@register.simple_tag
def caret(column: int) -> str:
    """Points at a column of the line above."""
    return " " * (column - 1) + "^"


@register.filter
def state_colour(state: str) -> str:
    return COLOURS.get(state, "secondary")


@register.filter
def megabytes(value: int) -> str:
    return size(value * 1_000_000)


@register.filter
def size(value: Any) -> str:
    """Bytes in the unit that reads best (decimal, as shops write it)."""
    if not _known(value):
        return NOTHING
    number = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            break
        number /= 1000
    else:
        unit = "TB"
    return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"


@register.filter
def ms(value: Any) -> str:
    if not _known(value):
        return NOTHING
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


@register.filter
def percent(value: Any) -> str:
    if not _known(value):
        return NOTHING
    return f"{value * 100:.3g} %"


@register.filter
def quality(value: Any) -> str:
    return f"{value:.4f}" if _known(value) else NOTHING


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
    return f"{value:,}" if value < 1_000_000 else f"{value / 1e6:.1f} M" if value < 1e9 else f"{value / 1e9:.2f} B"


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
def action_colour(action: str) -> str:
    """Of a decision about a track."""
    return {"pause": "red", "roll_back": "red", "finish": "green", "hold": "yellow"}.get(action, "azure")


@register.simple_tag
def file_bar(file: Any) -> SafeString:
    """How much of a file has been received."""
    return bar(file.received_bytes / file.size_bytes, "ready" if file.complete else "uploading")
