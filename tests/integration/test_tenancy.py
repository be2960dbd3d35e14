"""Tenants, users, tokens and the audit log."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.utils import timezone

from tenancy.actor import SYSTEM, Actor
from tenancy.errors import AlreadyExists, Conflict, Invalid, ProblemError
from tenancy.models import ApiToken, App, AuditEntry, Tenant
from tenancy.scopes import SCOPES, checked_scopes, scopes_of_role
from tenancy.selectors import apps_of, audit_entries, membership_of, tenant_by_slug, token_for, tokens_of
from tenancy.services import (
    create_api_token,
    create_app,
    create_tenant,
    create_user,
    note_token_used,
    revoke_api_token,
)

PASSWORD = "correct horse battery staple"


def test_a_token_works_until_it_is_revoked(app: App, actor: Actor) -> None:
    token, plaintext = create_api_token(
        app=app, name="ci", scopes=["models:write", "models:read"], actor=actor
    )
    assert plaintext.startswith(f"pf_{token.prefix}_")
    assert token.scopes == ["models:read", "models:write"]
    found = token_for(plaintext)
    assert found is not None
    assert (found.pk, found.app, found.tenant) == (token.pk, app, app.tenant)
    revoke_api_token(token=token, actor=actor)
    revoke_api_token(token=token, actor=actor)
    assert token_for(plaintext) is None
    assert [entry.action for entry in audit_entries(app.tenant)][:2] == ["token.revoke", "token.create"]
    assert tokens_of(app.tenant, app=app).get() == token


def test_a_token_expires(app: App, actor: Actor) -> None:
    soon = timezone.now() + timedelta(hours=1)
    _, plaintext = create_api_token(app=app, name="ci", scopes=SCOPES, expires_at=soon, actor=actor)
    assert token_for(plaintext) is not None
    assert token_for(plaintext, now=soon + timedelta(seconds=1)) is None


def test_the_secret_is_stored_nowhere(app: App, actor: Actor) -> None:
    token, plaintext = create_api_token(app=app, name="ci", scopes=SCOPES, actor=actor)
    secret = plaintext.rpartition("_")[2]
    rows = [*ApiToken.objects.values(), *AuditEntry.objects.values()]
    assert secret not in str(rows)
    assert token.digest in str(rows)


@pytest.mark.parametrize("plaintext", ["", "pf_", "pf_x_y", "Bearer x", "pf_" + "x" * 5000])
def test_what_is_no_token(app: App, plaintext: str) -> None:
    assert token_for(plaintext) is None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"scopes": ["models:sing"]}, "invalid_scope"),
        ({"scopes": []}, "invalid_scope"),
        ({"name": ""}, "invalid_name"),
        ({"expires_at": timezone.now() - timedelta(days=1)}, "invalid_expiry"),
    ],
)
def test_tokens_that_are_refused(app: App, actor: Actor, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(Invalid) as caught:
        create_api_token(**{"app": app, "name": "ci", "scopes": SCOPES, "actor": actor, **changes})
    assert caught.value.code == code


def test_use_is_noted_to_the_minute(app: App, actor: Actor) -> None:
    token, _ = create_api_token(app=app, name="ci", scopes=SCOPES, actor=actor)
    now = timezone.now()
    for seconds in (0, 30, 61):
        note_token_used(token=token, now=now + timedelta(seconds=seconds))
        token.refresh_from_db()
        assert token.last_used_at == now + timedelta(seconds=0 if seconds < 60 else seconds)


def test_users_have_a_role(tenant: Tenant) -> None:
    user = create_user(tenant=tenant, username="ada", password=PASSWORD, role="operator")
    membership = membership_of(user)
    assert membership is not None
    assert (membership.tenant, membership.role) == (tenant, "operator")
    assert membership_of(AnonymousUser()) is None
    with pytest.raises(AlreadyExists):
        create_user(tenant=tenant, username="ada", password=PASSWORD, role="viewer")
    for password, role, code in [("short", "viewer", "weak_password"), (PASSWORD, "king", "invalid_role")]:
        with pytest.raises(Invalid) as caught:
            create_user(tenant=tenant, username="bob", password=password, role=role)
        assert caught.value.code == code


def test_roles_stand_for_scopes() -> None:
    assert scopes_of_role("viewer") < scopes_of_role("operator") < scopes_of_role("admin")
    assert scopes_of_role("admin") == set(SCOPES)
    assert not scopes_of_role("operator") & {"tokens:write"}
    assert all(scope.endswith(":read") for scope in scopes_of_role("viewer"))
    assert scopes_of_role("king") == frozenset()
    assert checked_scopes(["rollouts:read", "models:read", "models:read"]) == ["models:read", "rollouts:read"]


def test_slugs_are_unique_and_plain(tenant: Tenant, app: App, actor: Actor) -> None:
    with pytest.raises(AlreadyExists):
        create_tenant(slug="acme", name="Again")
    with pytest.raises(AlreadyExists):
        create_app(tenant=tenant, slug="search", name="Again", actor=actor)
    for slug in ("", "a b", "../x", "a" * 64):
        with pytest.raises(Invalid):
            create_tenant(slug=slug, name="x")
    assert tenant_by_slug("acme") == tenant
    assert list(apps_of(tenant)) == [app]


def test_the_audit_log_is_append_only(tenant: Tenant) -> None:
    entry = audit_entries(tenant)[0]
    assert (entry.actor_kind, entry.actor, entry.action) == ("system", SYSTEM.name, "tenant.create")
    with pytest.raises(TypeError):
        entry.save()
    with pytest.raises(TypeError):
        entry.delete()


def test_a_problem_is_plain_data() -> None:
    problem = Conflict("Wait.", code="too_early", classes=["entry"]).as_problem()
    assert problem == {
        "type": "about:blank",
        "title": "Not possible in the current state",
        "status": 409,
        "code": "too_early",
        "detail": "Wait.",
        "classes": ["entry"],
    }
    assert ProblemError().status == 500
