"""Scopes: each view says which ones a method needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from tenancy.errors import ScopeMissing, Unauthenticated

if TYPE_CHECKING:  # the framework's views import this module
    from rest_framework.views import APIView

    from fleet.management_api.authentication import Principal

READ_ALL = ("models:read", "builds:read", "devices:read", "rollouts:read")


class HasScope(BasePermission):
    """Every scope of ``view.scopes[method]``; a method that names none is refused.

    An empty tuple stands for "anyone who is signed in".
    """

    def has_permission(self, request: Request, view: APIView) -> bool:
        if not getattr(request.user, "is_authenticated", False):
            raise Unauthenticated("Send Authorization: Bearer pf_… with the request.")
        method = "GET" if request.method in ("HEAD", "OPTIONS") else str(request.method)
        needed = getattr(view, "scopes", {}).get(method)
        if needed is None:
            return not hasattr(view, method.lower())  # unknown methods go on to become 405
        held = cast("Principal", request.user).scopes
        missing = sorted(set((needed,) if isinstance(needed, str) else needed) - held)
        if missing:
            raise ScopeMissing(f"This needs the scope {', '.join(missing)}.", scopes=missing)
        return True
