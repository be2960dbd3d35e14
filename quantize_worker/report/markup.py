"""HTML and SVG as text: everything that comes from outside is escaped where it enters."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

NOTHING = "-"  # where a figure is missing


def text(value: object) -> str:
    """A value as text or within a quoted attribute."""
    return html.escape(str(value), quote=True)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, figures: Sequence[int] = ()) -> str:
    """A table that scrolls sideways where it has no room.

    Args:
        headings: plain text.
        rows: cells that are markup already.
        figures: columns of numbers, by position.
    """
    kinds = [' class="figure"' if column in figures else "" for column in range(len(headings))]
    head = "".join(f"<th{kind}>{text(heading)}</th>" for heading, kind in zip(headings, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def terms(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names (plain text) and values (markup)."""
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{value}</dd>" for name, value in pairs) + "</dl>"


def items(sentences: Iterable[str]) -> str:
    """A list of sentences (plain text); "" if there are none."""
    listed = "".join(f"<li>{text(sentence)}</li>" for sentence in sentences)
    return f"<ul>{listed}</ul>" if listed else ""


def details(summary: str, content: str) -> str:
    """Content (markup) behind a line (plain text)."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def badge(word: str, kind: str) -> str:
    return f'<span class="badge {text(kind)}">{text(word)}</span>'
