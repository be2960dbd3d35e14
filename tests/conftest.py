"""Fixtures for all tests: every test has blobs, broker and keys of its own under ``tmp_path``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blobstore import BlobStore, open_store
from tenancy import broker
from tenancy.actor import Actor
from tenancy.models import App, Tenant
from tenancy.services import create_app, create_tenant


@pytest.fixture(autouse=True)
def own_state(settings: Any, tmp_path: Path) -> Iterator[Path]:
    """Blob store, signing keys and (with ``filesystem://``) broker of this test alone."""
    folder = tmp_path / "pocketfleet"
    settings.BLOBS_URL = f"file://{folder}/blobs"
    settings.KEYS_FOLDER = folder / "keys"
    settings.BROKER_FOLDER = folder / "broker"
    broker.celery_app.cache_clear()
    yield folder
    broker.celery_app.cache_clear()


@pytest.fixture
def blobs(own_state: Path, settings: Any) -> BlobStore:
    return open_store(settings.BLOBS_URL)


@pytest.fixture
def actor() -> Actor:
    return Actor(kind="user", name="tester")


@pytest.fixture
def tenant(db: None) -> Tenant:
    return create_tenant(slug="acme", name="Acme")


@pytest.fixture
def other_tenant(db: None) -> Tenant:
    return create_tenant(slug="rival", name="Rival")


@pytest.fixture
def app(tenant: Tenant, actor: Actor) -> App:
    return create_app(tenant=tenant, slug="search", name="Search", actor=actor)


@pytest.fixture
def other_app(other_tenant: Tenant, actor: Actor) -> App:
    return create_app(tenant=other_tenant, slug="search", name="Search", actor=actor)
