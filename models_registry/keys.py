"""Signing keys in a folder: one Ed25519 key per file, readable by its owner alone.

``<POCKETFLEET_KEYS>/<tenant slug>/<name>.pem`` (PKCS#8). The root keys belong offline in
production; only the control worker needs the others, and the web process ``assignment.pem``.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from django.conf import settings
from securesystemslib.signer import CryptoSigner

from models_registry.errors import KeyMissing

ROOT_KEYS = ("root-1", "root-2", "root-3")
ROOT_THRESHOLD = 2
ONLINE_KEYS = ("targets", "bins", "snapshot", "timestamp")
ASSIGNMENT_KEY = "assignment"
ALL_KEYS = (*ROOT_KEYS, *ONLINE_KEYS, ASSIGNMENT_KEY)


def signer(tenant_slug: str, name: str) -> CryptoSigner:
    """The tenant's key of that name.

    Raises:
        KeyMissing: if there is no such file, or it holds no Ed25519 key.
    """
    path = _path(tenant_slug, name)
    try:
        return _loaded(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise KeyMissing(
            f"The signing key {name!r} of tenant {tenant_slug!r} is not in {settings.KEYS_FOLDER}. "
            "Put it there (POCKETFLEET_KEYS names the folder), or set the tenant up first."
        ) from None
    except (ValueError, OSError) as error:
        raise KeyMissing(f"The signing key {path.name} cannot be used: {error}") from None


def make_key(tenant_slug: str, name: str) -> CryptoSigner:
    """The tenant's key of that name, made if it is not there. Never overwrites one."""
    path = _path(tenant_slug, name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _put_new(path, CryptoSigner.generate_ed25519().private_bytes)
    return signer(tenant_slug, name)


def _put_new(path: Path, content: bytes) -> None:
    """The whole file or none of it, whenever the process is killed; one that is there stays."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()


def _path(tenant_slug: str, name: str) -> Path:
    return Path(settings.KEYS_FOLDER) / tenant_slug / f"{name}.pem"


@lru_cache(maxsize=1024)
def _loaded(path: Path, changed_ns: int) -> CryptoSigner:
    key = load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("not an Ed25519 key")
    return CryptoSigner(key)
