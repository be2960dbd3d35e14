"""Scopes of API tokens, and the scopes that a console user's role stands for."""

from __future__ import annotations

from collections.abc import Iterable

from tenancy.errors import Invalid

SCOPES: tuple[str, ...] = (
    "models:read",
    "models:write",
    "builds:read",
    "builds:write",
    "devices:read",
    "devices:write",
    "rollouts:read",
    "rollouts:write",
    "telemetry:read",
    "tokens:write",
)

ROLE_SCOPES: dict[str, frozenset[str]] = {
    "viewer": frozenset(scope for scope in SCOPES if scope.endswith(":read")),
    "operator": frozenset(scope for scope in SCOPES if scope != "tokens:write"),
    "admin": frozenset(SCOPES),
}


def scopes_of_role(role: str) -> frozenset[str]:
    """The scopes of ``role``; an unknown role has none."""
    return ROLE_SCOPES.get(role, frozenset())


def checked_scopes(scopes: Iterable[str]) -> list[str]:
    """``scopes`` without repeats, in the order of :data:`SCOPES`.

    Raises:
        Invalid: ``invalid_scope``, if one of them is unknown or there is none.
    """
    asked = set(scopes)
    unknown = sorted(asked - set(SCOPES))
    if unknown:
        raise Invalid(
            f"Unknown scopes: {', '.join(unknown)}. Known are {', '.join(SCOPES)}.", code="invalid_scope"
        )
    if not asked:
        raise Invalid("A token needs at least one scope.", code="invalid_scope")
    return [scope for scope in SCOPES if scope in asked]
