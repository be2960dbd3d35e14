"""One tenant never sees another's rows: every selector, tried with the other tenant's ids."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from django.apps import apps
from django.db import models as orm

from models_registry import selectors
from models_registry.models import Model, ModelVersion, Release, TenantBlob
from models_registry.services.builds import apply_build_result, request_builds
from models_registry.services.models import create_model
from models_registry.services.releases import create_release, publish_release
from models_registry.services.signing import initialise_repository
from models_registry.services.versions import apply_inspect_result, put_single
from quantize_worker.contract import InspectResult
from tenancy import selectors as tenancy_selectors
from tenancy.actor import Actor
from tenancy.errors import NotFound
from tenancy.models import App, OutboxMessage, Tenant, TenantOwned
from tenancy.services import create_api_token
from tests.integration.test_builds import FACTS, built, target

NO_TENANT = {"Tenant", "TenantOwned", "Nonce"}  # a nonce is given out before a tenant is known


@pytest.fixture
def release(app: App, actor: Actor) -> Release:
    """Everything a tenant can have in the registry."""
    initialise_repository(tenant=app.tenant)
    create_api_token(app=app, name="ci", scopes=["models:read"], actor=actor)
    model = create_model(app=app, name="minilm", actor=actor)
    version = put_single(model=model, data=[b"graph"], size=5, actor=actor)
    apply_inspect_result(
        result=InspectResult(version=str(version.pk), attempt=1, status="ready", facts=FACTS)
    )
    request_builds(version=version, targets=[target()], actor=actor)
    apply_build_result(result=built(selectors.builds_of(app.tenant).get()))
    return publish_release(release_id=create_release(version=version, actor=actor).pk)


LISTS: dict[str, Callable[[Tenant], Any]] = {
    "models": selectors.models_of,
    "versions": lambda tenant: selectors.versions_of(tenant, uploading=True),
    "builds": selectors.builds_of,
    "releases": selectors.releases_of,
    "tokens": tenancy_selectors.tokens_of,
    "apps": tenancy_selectors.apps_of,
    "audit": tenancy_selectors.audit_entries,
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(release: Release, other_tenant: Tenant, name: str) -> None:
    assert LISTS[name](release.tenant).exists()
    foreign = LISTS[name](other_tenant)
    assert all(row.tenant_id == other_tenant.pk for row in foreign)
    if name != "audit":  # its own creation is in there
        assert not foreign.exists()


def test_single_rows(release: Release, other_tenant: Tenant) -> None:
    version = release.version
    build = selectors.builds_of(release.tenant).get()
    reads: list[tuple[Callable[[Tenant, Any], Any], Any]] = [
        (selectors.model, version.model_id),
        (selectors.model, "minilm"),
        (selectors.version, version.pk),
        (selectors.build, build.pk),
        (selectors.release, release.pk),
    ]
    for read, key in reads:
        assert read(release.tenant, key).tenant_id == release.tenant_id
        with pytest.raises(NotFound):
            read(other_tenant, key)
        with pytest.raises(NotFound):
            read(release.tenant, "no-such-id")


def test_bytes(release: Release, other_tenant: Tenant) -> None:
    blob = TenantBlob.objects.first()
    assert blob is not None
    entry = selectors.entries_of(release).get()
    folder, _, name = entry.target_path.rpartition("/")
    target_name = f"{folder}/{entry.manifest_sha256}.{name}"
    for read, key in [
        (selectors.blob_claimed, blob.sha256),
        (selectors.tuf_metadata, "timestamp.json"),
        (selectors.tuf_metadata, "1.root.json"),
        (selectors.tuf_target, target_name),
    ]:
        assert read(release.tenant, key)
        assert not read(other_tenant, key)


def test_everything_made_belongs_to_its_tenant(release: Release) -> None:
    """No service forgets the tenant, or takes another row's."""
    for model in apps.get_models():
        if issubclass(model, TenantOwned) and model._meta.app_label in ("tenancy", "models_registry"):
            assert all(row.tenant_id == release.tenant_id for row in model._default_manager.all()), model


def test_equal_names_do_not_collide(app: App, other_app: App, actor: Actor) -> None:
    for each in (app, other_app):
        model = create_model(app=each, name="minilm", actor=actor)
        assert put_single(model=model, data=[b"graph"], size=5, actor=actor).number == 1
    assert Model.objects.count() == ModelVersion.objects.count() == 2
    assert {message.tenant_id for message in OutboxMessage.objects.all()} == {
        app.tenant_id,
        other_app.tenant_id,
    }


def test_every_row_carries_its_tenant() -> None:
    ours = ("tenancy", "models_registry", "devices", "rollouts", "telemetry")
    for model in apps.get_models():
        if model._meta.app_label in ours and model.__name__ not in NO_TENANT:
            names = {field.attname for field in model._meta.concrete_fields}
            assert "tenant_id" in names, model
            field: Any = model._meta.get_field("tenant" if issubclass(model, TenantOwned) else "tenant_id")
            assert not field.null or isinstance(field, orm.OneToOneField), model


def test_every_public_selector_takes_whose_rows_it_reads() -> None:
    """A selector without a tenant (or a row that has one) has to be named here, with its reason."""
    for_all_tenants = {
        "tenants_with_repository",  # the control worker's
        "as_id",  # reads nothing
    }
    for name, function in inspect.getmembers(selectors, inspect.isfunction):
        if function.__module__ == selectors.__name__ and not name.startswith("_"):
            first = next(iter(inspect.signature(function).parameters), "")
            assert name in for_all_tenants or first in ("tenant", "version", "model", "release"), name
