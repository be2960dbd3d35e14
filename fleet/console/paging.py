"""Pages by key: the next page begins after the last row's key, however long the list is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest

PAGE_SIZE = 50


@dataclass(frozen=True)
class Page:
    """Rows to show, and the query strings of the first and the next page ("" where there is none)."""

    rows: list[Any]
    first: str
    following: str


def keyset(request: HttpRequest, rows: QuerySet[Any], key: str, *, size: int = PAGE_SIZE) -> Page:
    """The page that ``?after=…`` asks for.

    Args:
        key: a column whose values do not repeat, with ``-`` in front for descending order.
    """
    column = key.lstrip("-")
    rows = rows.order_by(key)
    after = request.GET.get("after")
    if after:
        try:
            rows = rows.filter(**{f"{column}__{'lt' if key.startswith('-') else 'gt'}": after})
        except (ValidationError, ValueError):
            after = None  # a link that was cut: begin at the start
    found = list(rows[: size + 1])
    more = len(found) > size
    query = request.GET.copy()
    query.pop("after", None)
    first = f"?{query.urlencode()}" if after else ""
    if not more:
        return Page(found, first, "")
    last = getattr(found[size - 1], column)
    query["after"] = last.isoformat() if hasattr(last, "isoformat") else str(last)
    return Page(found[:size], first, f"?{query.urlencode()}")
