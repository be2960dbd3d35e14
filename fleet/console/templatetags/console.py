"""How the console shows states and shares: icons, pills and bars."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from django import template
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from fleet.console.templatetags.figures import NOTHING, known

register = template.Library()
ICONS = Path(__file__).parents[1] / "static" / "vendor" / "tabler-icons-3.51.0"

_COLOURS = {
    "green": "ready active accepted finished published",
    "azure": "building running checking uploading downloading verifying staged testing signing offered",
    "cyan": "soaking replanned",
    "yellow": "pending paused",
    "orange": "rejected impossible left_out",
    "red": "failed refused rolled_back",
    "secondary": "waiting excluded draft planned cancelled decommissioned expired unknown",
}
COLOURS = {state: colour for colour, states in _COLOURS.items() for state in states.split()}
BUSY = frozenset(
    ["building", "running", "checking", "uploading", "signing", "downloading", "verifying", "testing"]
)
ORDER = (
    "active",
    "testing",
    "staged",
    "verifying",
    "downloading",
    "offered",
    "failed",
    "rolled_back",
    "expired",
)


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
def unverified(is_unverified: bool = True) -> SafeString:
    """The label of figures that rest on generated inputs."""
    if not is_unverified:
        return SafeString("")
    title = "There is no evaluation set: quality was measured on generated inputs and says little."
    return format_html('<span class="badge badge-unverified" title="{}">unverified</span>', title)


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
        '<svg class="bar bar-lg" role="img"><rect class="bar-track" width="100%" height="100%"/>{}</svg>',
        rects,
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


@register.simple_tag
def figure(accelerator: dict[str, Any], metric: str, declared: dict[tuple[str, str], float]) -> SafeString:
    """What the agent measured and, for real hardware, what the data sheet declares."""
    measured = accelerator.get(metric)
    text = f"{measured:.1f}" if known(measured) else NOTHING
    word = None if accelerator.get("emulated") else declared.get((accelerator.get("kind", ""), metric))
    if word is None:
        return format_html("{}", text)
    return format_html(
        '<div>{}<div class="text-secondary small">declared {}</div></div>', text, f"{word:.1f}"
    )


@register.filter
def action_colour(action: str) -> str:
    """Of a decision about a track."""
    return {"pause": "red", "roll_back": "red", "finish": "green", "hold": "yellow"}.get(action, "azure")


@register.simple_tag
def file_bar(file: Any) -> SafeString:
    """How much of a file has been received."""
    return bar(file.received_bytes / file.size_bytes, "ready" if file.complete else "uploading")
