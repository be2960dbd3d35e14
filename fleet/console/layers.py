"""The layers of a plan as a page shows them: summed up per format, filtered, in pages. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PAGE = 30


@dataclass(frozen=True)
class FormatShare:
    """All layers that have one format."""

    format: str
    layers: int
    size_bytes: int
    share: float  # of the layers' bytes
    loss: float


@dataclass(frozen=True)
class LayerPage:
    """Some layers, in the order of the model, and where the other pages begin (None: there is none)."""

    rows: Sequence[dict[str, Any]]
    found: int
    first: int
    last: int
    previous: int | None
    following: int | None


def by_format(choices: Sequence[dict[str, Any]]) -> list[FormatShare]:
    """The formats of a plan, the one with most bytes first."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for choice in choices:
        groups[choice["format"]].append(choice)
    whole = sum(choice["size_bytes"] for choice in choices) or 1
    shares = [
        FormatShare(
            format=name,
            layers=len(rows),
            size_bytes=sum(row["size_bytes"] for row in rows),
            share=sum(row["size_bytes"] for row in rows) / whole,
            loss=sum(row["loss"] for row in rows),
        )
        for name, rows in groups.items()
    ]
    return sorted(shares, key=lambda share: (-share.size_bytes, share.format))


def page_of(
    choices: Sequence[dict[str, Any]],
    *,
    format: str = "",
    operator: str = "",
    search: str = "",
    start: int = 0,
) -> LayerPage:
    """The layers that are asked for, from ``start`` on (of those found)."""
    wanted = [
        row
        for row in choices
        if format in ("", row["format"])
        and operator in ("", row["operator"])
        and search.lower() in row["layer"].lower()
    ]
    start = max(0, min(start, max(0, len(wanted) - 1))) // PAGE * PAGE
    rows = wanted[start : start + PAGE]
    return LayerPage(
        rows=rows,
        found=len(wanted),
        first=start + 1 if rows else 0,
        last=start + len(rows),
        previous=start - PAGE if start else None,
        following=start + PAGE if start + PAGE < len(wanted) else None,
    )
