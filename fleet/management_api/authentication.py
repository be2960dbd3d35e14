"""Who calls: an app's token or a console user's session; both become a :class:`Principal`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.http import HttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.utils import timezone
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from tenancy import selectors, services
from tenancy.actor import Actor
from tenancy.errors import Forbidden, Unauthenticated
from tenancy.models import App, Tenant
from tenancy.scopes import scopes_of_role


@dataclass(frozen=True)
class Principal:
    """The caller of a request: its tenant, the name that the audit log gets, and its scopes.

    ``app`` is the token's app; a console user has none.
    """

    tenant: Tenant
    actor: Actor
    scopes: frozenset[str]
    app: App | None = None
    is_authenticated: bool = True


class TokenAuthentication(BaseAuthentication):
    """``Authorization: Bearer pf_<prefix>_<secret>``."""

    def authenticate(self, request: Request) -> tuple[Principal, str] | None:
        scheme, _, plaintext = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        token = selectors.token_for(plaintext.strip())
        if token is None:
            raise Unauthenticated(
                "The token is unknown, revoked or expired. Make a new one under Access in the console.",
                code="invalid_token",
            )
        now = timezone.now()
        if token.last_used_at is None or now - token.last_used_at > services.USE_NOTED_EVERY:
            services.note_token_used(token=token, now=now)
        actor = Actor(kind="token", name=token.prefix, label=f"token {token.name}")
        return Principal(token.tenant, actor, frozenset(token.scopes), token.app), "token"

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class SessionAuthentication(BaseAuthentication):
    """The console's session; what changes something needs its CSRF token."""

    def authenticate(self, request: Request) -> tuple[Principal, str] | None:
        user = getattr(request._request, "user", None)
        if user is None or not user.is_active or not user.is_authenticated:
            return None
        membership = selectors.membership_of(user)
        if membership is None:
            raise Forbidden("This user belongs to no tenant; ask an administrator to add it.")
        _enforce_csrf(request)
        actor = Actor(kind="user", name=user.get_username())
        return Principal(membership.tenant, actor, scopes_of_role(membership.role)), "session"


def _enforce_csrf(request: Request) -> None:
    check = CsrfViewMiddleware(_nothing)
    check.process_request(request._request)
    if check.process_view(request._request, _nothing, (), {}) is not None:
        raise Forbidden("Send the session's CSRF token in X-CSRFToken.", code="csrf_failed")


def _nothing(*_: Any) -> HttpResponse:
    return HttpResponse()
