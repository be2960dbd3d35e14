"""API tokens, provisioning keys and apps. A secret is shown in the answer that makes it, once."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache

from fleet.console.access import ConsoleRequest, action, form_page, page
from fleet.console.forms import AppForm, ProvisioningKeyForm, TokenForm
from fleet.devices import selectors as devices
from fleet.devices.services import create_provisioning_key, revoke_provisioning_key
from models_registry.selectors import tuf_metadata
from tenancy import selectors, services
from tenancy.errors import NotFound, ProblemError

SHOWN = 100


@never_cache
@form_page("access", "devices:read")
def access(request: ConsoleRequest) -> HttpResponse:
    apps = list(selectors.apps_of(request.tenant))
    kind = request.POST.get("kind", "")
    forms: dict[str, Any] = {
        "token": TokenForm(request.POST if kind == "token" else None, apps=apps),
        "key": ProvisioningKeyForm(request.POST if kind == "key" else None),
        "app": AppForm(request.POST if kind == "app" else None),
    }
    secret = None
    if request.method == "POST" and kind in forms and forms[kind].is_valid():
        try:
            secret = CREATORS[kind](request, forms[kind].cleaned_data)
        except ProblemError as refusal:
            forms[kind].add_problem(refusal.detail)
        else:
            forms[kind] = _blank(kind, selectors.apps_of(request.tenant))
    context = {
        "forms": forms,
        "secret": secret,
        "apps": selectors.apps_of(request.tenant),
        "no_apps": not apps and kind != "app",
        "tokens": selectors.tokens_of(request.tenant)[:SHOWN],
        "keys": devices.provisioning_keys_of(request.tenant)[:SHOWN],
    }
    return render(request, "console/access.html", context)


def _blank(kind: str, apps: Any) -> Any:
    if kind == "token":
        return TokenForm(apps=list(apps))
    return ProvisioningKeyForm() if kind == "key" else AppForm()


def _create_token(request: ConsoleRequest, data: dict[str, Any]) -> dict[str, str]:
    request.can.require("tokens:write")
    app = selectors.apps_of(request.tenant).get(slug=data["app"])
    days = data["expires_days"]
    token, plaintext = services.create_api_token(
        app=app,
        name=data["name"],
        scopes=data["scopes"],
        expires_at=timezone.now() + timedelta(days=days) if days else None,
        actor=request.actor,
    )
    return {"kind": "token", "name": token.name, "plaintext": plaintext}


def _create_key(request: ConsoleRequest, data: dict[str, Any]) -> dict[str, str]:
    request.can.require("devices:write")
    tags = [tag.strip() for tag in data["tags"].split(",") if tag.strip()]
    key, plaintext = create_provisioning_key(
        tenant=request.tenant, name=data["name"], accept=data["accept"], tags=tags, actor=request.actor
    )
    return {"kind": "key", "name": key.name, "plaintext": plaintext}


def _create_app(request: ConsoleRequest, data: dict[str, Any]) -> None:
    request.can.require("tokens:write")
    services.create_app(tenant=request.tenant, actor=request.actor, **data)


CREATORS: dict[str, Callable[..., Any]] = {"token": _create_token, "key": _create_key, "app": _create_app}


@page("access", "devices:read")
def trust_root(request: ConsoleRequest) -> HttpResponse:
    """The tenant's TUF root, which an agent is set up with."""
    body = tuf_metadata(request.tenant, "root.json")
    if body is None:
        raise NotFound("The tenant has no signing keys yet; the operator's guide says how to make them.")
    headers = {"Content-Disposition": 'attachment; filename="root.json"'}
    return HttpResponse(body, content_type="application/json", headers=headers)


@action("tokens:write")
def revoke_token(request: ConsoleRequest, token_id: uuid.UUID) -> HttpResponse:
    token = selectors.tokens_of(request.tenant).filter(pk=token_id).first()
    if token is None:
        raise NotFound("There is no such token.")
    services.revoke_api_token(token=token, actor=request.actor)
    messages.success(request, f"{token.name} is revoked.")
    return redirect("console:access")


@action("devices:write")
def revoke_key(request: ConsoleRequest, key_id: uuid.UUID) -> HttpResponse:
    key = devices.provisioning_keys_of(request.tenant).filter(pk=key_id).first()
    if key is None:
        raise NotFound("There is no such provisioning key.")
    revoke_provisioning_key(key=key, actor=request.actor)
    messages.success(request, f"{key.name} is revoked.")
    return redirect("console:access")
