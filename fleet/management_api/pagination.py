"""Cursor pagination: a page costs the same however far it lies from the start."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.views import APIView

from tenancy.errors import Invalid


class CreatedCursorPagination(CursorPagination):
    """Newest first; a view may name another order in ``ordering``. ``page_size`` up to 200."""

    page_size = 50
    max_page_size = 200
    page_size_query_param = "page_size"
    ordering = ("-created_at", "-id")

    def get_ordering(self, request: Request, queryset: QuerySet[Any], view: APIView) -> tuple[str, ...]:
        return tuple(getattr(view, "ordering", self.ordering))

    def decode_cursor(self, request: Request) -> Any:
        try:
            return super().decode_cursor(request)
        except Exception:
            raise Invalid(
                "The cursor is not one of ours; follow the links in `next` and `previous`.",
                code="invalid_cursor",
            ) from None
