"""Reads of tenants, tokens, memberships and the audit log."""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser, User
from django.db.models import Q, QuerySet
from django.utils import timezone

from tenancy.models import ApiToken, App, AuditEntry, Membership, Tenant

TOKEN_PREFIX = "pf_"  # noqa: S105 - what every API token starts with


def token_digest(plaintext: str) -> str:
    """What is stored of a secret: its SHA-256. Secrets are random, so no slow hash is needed."""
    return hashlib.sha256(plaintext.encode()).hexdigest()


def token_for(plaintext: str, *, now: datetime | None = None) -> ApiToken | None:
    """The valid token with this plaintext, with its app and tenant, or None.

    The look-up is by digest, so its time tells nothing about the plaintext; the comparison of
    digests is constant-time all the same.
    """
    if not plaintext.startswith(TOKEN_PREFIX) or len(plaintext) > 200:
        return None
    digest = token_digest(plaintext)
    token = tokens_valid_at(now or timezone.now()).filter(digest=digest).first()
    if token is None or not hmac.compare_digest(token.digest, digest):
        return None
    return token


def tokens_valid_at(now: datetime) -> QuerySet[ApiToken]:
    """Tokens that are neither revoked nor expired, of all tenants."""
    unexpired = Q(expires_at__isnull=True) | Q(expires_at__gt=now)
    return ApiToken.objects.filter(unexpired, revoked_at__isnull=True).select_related("app", "tenant")


def tokens_of(tenant: Tenant, *, app: App | None = None) -> QuerySet[ApiToken]:
    """A tenant's tokens, revoked ones too, the newest first."""
    tokens = ApiToken.objects.filter(tenant=tenant).select_related("app").order_by("-created_at", "-id")
    return tokens.filter(app=app) if app is not None else tokens


def apps_of(tenant: Tenant) -> QuerySet[App]:
    return App.objects.filter(tenant=tenant).order_by("slug")


def tenant_by_slug(slug: str) -> Tenant | None:
    return Tenant.objects.filter(slug=slug).first()


def membership_of(user: AbstractBaseUser | AnonymousUser) -> Membership | None:
    """The user's membership (the oldest, should there be several), with its tenant."""
    if not isinstance(user, User):
        return None
    return Membership.objects.filter(user=user).select_related("tenant").order_by("pk").first()


def audit_entries(tenant: Tenant) -> QuerySet[AuditEntry]:
    """The tenant's audit log, the newest first."""
    return AuditEntry.objects.filter(tenant=tenant).order_by("-id")
