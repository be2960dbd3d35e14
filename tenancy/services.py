"""Writes of tenants, apps, users and API tokens."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta

from django.contrib.auth.models import User
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_slug
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from tenancy.actor import SYSTEM, Actor
from tenancy.audit import record
from tenancy.errors import AlreadyExists, Invalid
from tenancy.models import ApiToken, App, IdempotencyRecord, Membership, Role, Tenant
from tenancy.scopes import checked_scopes
from tenancy.selectors import TOKEN_PREFIX, token_digest

USE_NOTED_EVERY = timedelta(minutes=1)  # last use is kept to the minute, not to the request


def checked_slug(slug: str) -> str:
    """``slug`` if it is 1 to 63 letters, digits, hyphens or underscores.

    Raises:
        Invalid: ``invalid_slug``.
    """
    try:
        validate_slug(slug)
    except ValidationError:
        slug = ""
    if not 0 < len(slug) <= 63:
        raise Invalid(
            "A slug is 1 to 63 letters, digits, hyphens or underscores. Choose another.", code="invalid_slug"
        )
    return slug


@transaction.atomic
def create_tenant(*, slug: str, name: str, actor: Actor = SYSTEM) -> Tenant:
    """Raises AlreadyExists (``tenant_exists``) or Invalid (``invalid_slug``)."""
    checked_slug(slug)
    if Tenant.objects.filter(slug=slug).exists():
        raise AlreadyExists(f"There is a tenant {slug!r} already. Choose another slug.", code="tenant_exists")
    tenant = Tenant.objects.create(slug=slug, name=name or slug)
    record(
        tenant=tenant,
        actor=actor,
        action="tenant.create",
        subject_type="tenant",
        subject=tenant.pk,
        after={"slug": slug},
    )
    return tenant


@transaction.atomic
def create_app(*, tenant: Tenant, slug: str, name: str, actor: Actor) -> App:
    """Raises AlreadyExists (``app_exists``) or Invalid (``invalid_slug``)."""
    checked_slug(slug)
    try:
        with transaction.atomic():
            app = App.objects.create(tenant=tenant, slug=slug, name=name or slug)
    except IntegrityError:
        raise AlreadyExists(
            f"There is an app {slug!r} already. Choose another slug.", code="app_exists"
        ) from None
    record(
        tenant=tenant,
        actor=actor,
        action="app.create",
        subject_type="app",
        subject=app.pk,
        after={"slug": slug},
    )
    return app


@transaction.atomic
def create_user(*, tenant: Tenant, username: str, password: str, role: str, actor: Actor = SYSTEM) -> User:
    """A console user with a role in the tenant.

    Raises:
        Invalid: ``invalid_role`` or ``weak_password``.
        AlreadyExists: ``user_exists``.
    """
    if role not in Role.values:
        raise Invalid(f"Unknown role {role!r}. Choose one of {', '.join(Role.values)}.", code="invalid_role")
    try:
        validate_password(password)
    except ValidationError as error:
        raise Invalid(" ".join(error.messages), code="weak_password") from None
    if User.objects.filter(username=username).exists():
        raise AlreadyExists(f"There is a user {username!r} already. Choose another name.", code="user_exists")
    user = User.objects.create_user(username=username, password=password)
    Membership.objects.create(tenant=tenant, user=user, role=role)
    record(
        tenant=tenant,
        actor=actor,
        action="user.create",
        subject_type="user",
        subject=user.pk,
        after={"username": username, "role": role},
    )
    return user


@transaction.atomic
def create_api_token(
    *, app: App, name: str, scopes: Iterable[str], expires_at: datetime | None = None, actor: Actor
) -> tuple[ApiToken, str]:
    """Make an API token of ``app``.

    Returns:
        the token's row, and its plaintext ``pf_<prefix>_<secret>``: shown once, never stored.

    Raises:
        Invalid: ``invalid_scope``, ``invalid_name`` or ``invalid_expiry``.
    """
    granted = checked_scopes(scopes)
    if not name or len(name) > 100:
        raise Invalid("A token's name has 1 to 100 characters.", code="invalid_name")
    if expires_at is not None and expires_at <= timezone.now():
        raise Invalid("expires_at lies in the past.", code="invalid_expiry")
    prefix = secrets.token_hex(4)
    plaintext = f"{TOKEN_PREFIX}{prefix}_{secrets.token_urlsafe(32)}"
    token = ApiToken.objects.create(
        tenant=app.tenant,
        app=app,
        name=name,
        prefix=prefix,
        digest=token_digest(plaintext),
        scopes=granted,
        expires_at=expires_at,
    )
    record(
        tenant=app.tenant,
        actor=actor,
        action="token.create",
        subject_type="token",
        subject=token.pk,
        after={"name": name, "prefix": prefix, "scopes": granted},
    )
    return token, plaintext


@transaction.atomic
def revoke_api_token(*, token: ApiToken, actor: Actor) -> ApiToken:
    """Revoke a token; doing so twice is harmless."""
    now = timezone.now()
    revoked = ApiToken.objects.filter(pk=token.pk, revoked_at__isnull=True).update(revoked_at=now)
    if revoked:
        record(
            tenant=token.tenant,
            actor=actor,
            action="token.revoke",
            subject_type="token",
            subject=token.pk,
            after={"prefix": token.prefix},
        )
    token.refresh_from_db()
    return token


def note_token_used(*, token: ApiToken, now: datetime) -> None:
    """Remember that a token was used, at most once a minute."""
    stale = Q(last_used_at__isnull=True) | Q(last_used_at__lt=now - USE_NOTED_EVERY)
    ApiToken.objects.filter(stale, pk=token.pk).update(last_used_at=now)


def drop_idempotency_records(*, before: datetime) -> int:
    """Forget answers given before that time: nobody repeats those calls any more. Returns how many."""
    return IdempotencyRecord.objects.filter(created_at__lt=before).delete()[0]
