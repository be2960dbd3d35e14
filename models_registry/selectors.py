"""Reads of the registry. Every one is filtered by tenant."""

from __future__ import annotations

import re
import uuid
from typing import TypeVar

from django.db import models as orm
from django.db.models import QuerySet

from models_registry.models import (
    Alias,
    Build,
    CandidateBatch,
    Model,
    ModelVersion,
    Release,
    ReleaseEntry,
    Tailoring,
    TenantBlob,
    TufMetadata,
    TufTarget,
)
from tenancy.errors import NotFound
from tenancy.models import Tenant

_METADATA_NAME = re.compile(r"(?:(?P<version>[1-9][0-9]{0,8})\.)?(?P<role>[a-z][a-z0-9-]{0,62})\.json\Z")
_TARGET_NAME = re.compile(r"(?P<folder>(?:[^/]+/)*)(?P<sha256>[0-9a-f]{64})\.(?P<name>[^/]+)\Z")
_UNVERSIONED = ("timestamp", "root")

Row = TypeVar("Row", bound=orm.Model)
Id = uuid.UUID | str
NO_ID = uuid.UUID(int=0)


def models_of(tenant: Tenant) -> QuerySet[Model]:
    """The tenant's models by name, with their aliases."""
    return (
        Model.objects.filter(tenant=tenant).select_related("app").prefetch_related("aliases").order_by("name")
    )


def model(tenant: Tenant, name_or_id: Id) -> Model:
    """A model by id or name. Raises NotFound."""
    key = as_id(name_or_id)
    found = models_of(tenant).filter(name=name_or_id) if key == NO_ID else models_of(tenant).filter(pk=key)
    return _one(found, "model", name_or_id)


def versions_of(
    tenant: Tenant, model: Model | None = None, *, uploading: bool = False
) -> QuerySet[ModelVersion]:
    """Versions, the newest first.

    Args:
        uploading: uploads that are not complete, too; they are nobody's business but the uploader's.
    """
    versions = ModelVersion.objects.filter(tenant=tenant).select_related("model")
    if model is not None:
        versions = versions.filter(model=model)
    if not uploading:
        versions = versions.exclude(state=ModelVersion.State.UPLOADING)
    return versions.order_by("-created_at", "-id")


def version(tenant: Tenant, id: Id) -> ModelVersion:
    """A version, an upload in progress too, with its files. Raises NotFound."""
    found = ModelVersion.objects.filter(tenant=tenant, pk=as_id(id))
    return _one(found.select_related("model__app", "tenant").prefetch_related("files"), "version", id)


def version_by_alias(model: Model, alias: str) -> ModelVersion | None:
    """The version that an alias points at."""
    found = Alias.objects.filter(model=model, name=alias).select_related("version__model").first()
    return found.version if found else None


def batches_of(version: ModelVersion) -> QuerySet[CandidateBatch]:
    """The batches of a version's check, by number."""
    return CandidateBatch.objects.filter(tenant_id=version.tenant_id, version=version).order_by("number")


def builds_of(
    tenant: Tenant, *, version: ModelVersion | None = None, state: str | None = None
) -> QuerySet[Build]:
    """Builds, the newest first, with artifact and the classes that use them."""
    builds = Build.objects.filter(tenant=tenant).select_related("version__model", "artifact")
    if version is not None:
        builds = builds.filter(version=version)
    if state is not None:
        builds = builds.filter(state=state)
    return builds.prefetch_related("tailorings").order_by("-created_at", "-id")


def build(tenant: Tenant, id: Id) -> Build:
    """Raises NotFound."""
    return _one(builds_of(tenant).filter(pk=as_id(id)), "build", id)


def tailorings_of(version: ModelVersion) -> QuerySet[Tailoring]:
    """The version's classes by name, each with its build."""
    tailorings = Tailoring.objects.filter(tenant_id=version.tenant_id, version=version)
    return tailorings.select_related("build__artifact", "version__model").order_by("class_name")


def tailoring(tenant: Tenant, id: Id) -> Tailoring:
    """Raises NotFound."""
    found = Tailoring.objects.filter(tenant=tenant, pk=as_id(id))
    return _one(found.select_related("build__artifact", "version__model", "tenant"), "tailoring", id)


def releases_of(tenant: Tenant, *, version: ModelVersion | None = None) -> QuerySet[Release]:
    """Releases, the newest first, with their entries."""
    releases = Release.objects.filter(tenant=tenant).select_related("version__model")
    if version is not None:
        releases = releases.filter(version=version)
    return releases.prefetch_related("entries__build__artifact").order_by("-created_at", "-id")


def release(tenant: Tenant, id: Id) -> Release:
    """Raises NotFound."""
    return _one(releases_of(tenant).filter(pk=as_id(id)), "release", id)


def entries_of(release: Release) -> QuerySet[ReleaseEntry]:
    """A release's classes by name, those without a build too."""
    entries = ReleaseEntry.objects.filter(tenant_id=release.tenant_id, release=release)
    return entries.select_related("build__artifact").order_by("class_name")


def blob_claimed(tenant: Tenant, sha256: str) -> bool:
    """Whether devices of the tenant may download the blob."""
    return TenantBlob.objects.filter(tenant=tenant, sha256=sha256).exists()


def latest_metadata(tenant: Tenant, role: str) -> bytes | None:
    """The newest version of a role's signed metadata."""
    rows = TufMetadata.objects.filter(tenant=tenant, role=role).order_by("-version")
    body = rows.values_list("body", flat=True).first()
    return bytes(body) if body is not None else None


def tuf_metadata(tenant: Tenant, filename: str) -> bytes | None:
    """Metadata as clients ask for it (TUF 1.0, section 5): ``timestamp.json``, ``3.root.json``.

    ``root.json`` is the newest root, for people who set up a device.
    """
    match = _METADATA_NAME.match(filename)
    if match is None:
        return None
    if match["version"] is None:
        return latest_metadata(tenant, match["role"]) if match["role"] in _UNVERSIONED else None
    rows = TufMetadata.objects.filter(tenant=tenant, role=match["role"], version=int(match["version"]))
    body = rows.values_list("body", flat=True).first()
    return bytes(body) if body is not None else None


def tuf_target(tenant: Tenant, filename: str) -> bytes | None:
    """A target as clients ask for it under consistent snapshots: ``<folder>/<sha256>.<name>``."""
    match = _TARGET_NAME.match(filename)
    if match is None:
        return None
    path = match["folder"] + match["name"]
    rows = TufTarget.objects.filter(tenant=tenant, path=path, sha256=match["sha256"])
    body = rows.values_list("body", flat=True).first()
    return bytes(body) if body is not None else None


def tenants_with_repository() -> QuerySet[Tenant]:
    """For the control worker, which serves all tenants."""
    return Tenant.objects.filter(pk__in=TufMetadata.objects.filter(role="root").values("tenant")).order_by(
        "slug"
    )


def as_id(text: Id) -> uuid.UUID:
    """``text`` as an id; what is none becomes the nil UUID, which no row has."""
    try:
        return text if isinstance(text, uuid.UUID) else uuid.UUID(text)
    except ValueError:
        return NO_ID


def _one(found: QuerySet[Row], kind: str, name: Id) -> Row:
    row = found.first()
    if row is None:
        raise NotFound(f"There is no {kind} {str(name)!r} here.", code=f"{kind}_not_found")
    return row
