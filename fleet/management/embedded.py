"""The embedded default's state: made ready before a start, and set up once for its first users."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import msgspec
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connections, transaction
from django.utils import timezone

from fleet.devices.services import create_provisioning_key
from models_registry.selectors import tuf_metadata
from models_registry.services.signing import initialise_repository, refresh_timestamps
from models_registry.services.sweeper import expire_leases
from tenancy.actor import Actor
from tenancy.broker import celery_app
from tenancy.models import App, Tenant
from tenancy.scopes import SCOPES
from tenancy.selectors import apps_of, tenant_by_slug
from tenancy.services import create_api_token, create_app, create_tenant, create_user

TENANT = "demo"
APP = "default"
USERNAME = "admin"
SETUP = Actor(kind="system", name="setup_embedded")


def run_folder() -> Path:
    """Locks, process ids, schedules: nothing that outlives a run."""
    return Path(settings.VAR) / "run"


def log_folder() -> Path:
    return Path(settings.VAR) / "log"


def temporary_folder() -> Path:
    """Temporary files of all processes, on the file system of the state: a rename is atomic."""
    return Path(settings.VAR) / "tmp"


def credentials_path() -> Path:
    return Path(settings.VAR) / "credentials.json"


def root_path() -> Path:
    return Path(settings.VAR) / "root.json"


def prepare() -> None:
    """Folders, databases and queues, while nothing runs. The caller holds the lock."""
    var = Path(settings.VAR)
    for leftover in (temporary_folder(), var / "work", var / "blobs" / ".incoming"):  # of killed processes
        shutil.rmtree(leftover, ignore_errors=True)
    for folder in (run_folder(), log_folder(), temporary_folder(), Path(settings.STATIC_ROOT)):
        folder.mkdir(parents=True, exist_ok=True)
    for alias in connections:
        call_command("migrate", database=alias, run_syncdb=True, interactive=False, verbosity=0)
    celery_app()  # makes the folders of the filesystem:// broker
    if settings.EMBEDDED:
        # No worker runs yet: what one had begun is lost, and need not wait for its lease.
        expire_leases(now=timezone.now())
    refresh_timestamps(now=timezone.now())


def set_up(*, url: str) -> Path:
    """Make tenant, app, administrator, tokens and keys; what is there already is kept.

    Secrets are known only when they are made: if the credentials file is gone, new ones are.

    Args:
        url: where people and devices find the control plane.

    Returns:
        the credentials file, readable by its owner alone.
    """
    tenant = tenant_by_slug(TENANT) or create_tenant(slug=TENANT, name="Demo", actor=SETUP)
    app = apps_of(tenant).filter(slug=APP).first()
    app = app or create_app(tenant=tenant, slug=APP, name="Default", actor=SETUP)
    initialise_repository(tenant=tenant)
    _write(root_path(), tuf_metadata(tenant, "root.json") or b"", mode=0o644)
    credentials = _known_credentials() or _new_secrets(tenant, app)
    _write_credentials({**credentials, "url": url})
    return credentials_path()


def note_url(url: str) -> None:
    """Keep the credentials file right when the system listens elsewhere than the last time."""
    known = _known_credentials()
    if known is not None and known.get("url") != url:
        _write_credentials({**known, "url": url})


def _write_credentials(credentials: dict[str, Any]) -> None:
    _write(credentials_path(), msgspec.json.format(msgspec.json.encode(credentials), indent=2), mode=0o600)


def _known_credentials() -> dict[str, Any] | None:
    try:
        known: dict[str, Any] = msgspec.json.decode(credentials_path().read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return known


@transaction.atomic
def _new_secrets(tenant: Tenant, app: App) -> dict[str, Any]:
    password = secrets.token_urlsafe(15)
    user = User.objects.filter(username=USERNAME).first()
    if user is None:
        create_user(tenant=tenant, username=USERNAME, password=password, role="admin", actor=SETUP)
    else:
        user.set_password(password)
        user.save(update_fields=["password"])
    _, api_token = create_api_token(app=app, name="embedded default", scopes=SCOPES, actor=SETUP)
    _, provisioning_key = create_provisioning_key(
        tenant=tenant, name="embedded default", app=app, actor=SETUP
    )
    return {
        "username": USERNAME,
        "password": password,
        "api_token": api_token,
        "provisioning_key": provisioning_key,
        "root_json_path": str(root_path()),
        "tenant": tenant.slug,
        "app": app.slug,
    }


def _write(path: Path, data: bytes, *, mode: int) -> None:
    """Temporary file, fsync, rename; ``mode`` holds from the first byte on."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
