"""Migrations expand first: the version before goes on writing rows while the new one is rolled out."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

APPS = ("tenancy", "models_registry", "devices", "rollouts", "telemetry")


def executor() -> MigrationExecutor:
    return MigrationExecutor(connection)


@pytest.mark.parametrize("app", APPS)
def test_every_column_that_was_added_may_be_left_out_by_the_version_before(db: None, app: str) -> None:
    loader = executor().loader
    first = loader.project_state((app, "0001_initial")).models
    for (label, name), model in loader.project_state().models.items():
        if label == app and (label, name) in first:
            for added in model.fields.keys() - first[label, name].fields.keys():
                field: Any = model.fields[added]
                assert field.null or field.has_db_default(), f"{label}.{name}.{added}"
            assert not first[label, name].fields.keys() - model.fields.keys(), f"{label}.{name} lost a column"


@pytest.mark.django_db(transaction=True)
def test_builds_from_before_know_whether_they_were_verified() -> None:
    newest = executor().loader.graph.leaf_nodes("models_registry")
    before = [("models_registry", "0002_tailoring_by_layer")]
    try:
        executor().migrate(before)
        apps = executor().loader.project_state(before).apps
        tenant = apps.get_model("tenancy", "Tenant").objects.create(slug="old", name="Old")
        app = apps.get_model("tenancy", "App").objects.create(tenant=tenant, slug="a", name="A")
        model = apps.get_model("models_registry", "Model").objects.create(tenant=tenant, app=app, name="m")
        versions = apps.get_model("models_registry", "ModelVersion").objects
        builds = apps.get_model("models_registry", "Build").objects
        for number, generated in enumerate((True, False)):
            version = versions.create(
                tenant=tenant, model=model, number=number, lineage={"synthetic_samples": generated}
            )
            for quality in ({"value": 1.0}, None):
                builds.create(
                    tenant=tenant, version=version, recipe_digest=uuid.uuid4().hex, plan={}, quality=quality
                )
    finally:
        executor().migrate(newest)
    from models_registry.models import Build

    marked = {
        (build.version.number, build.quality is not None): build.unverified
        for build in Build.objects.select_related("version")
    }
    assert marked == {(0, True): True, (0, False): False, (1, True): False, (1, False): False}
