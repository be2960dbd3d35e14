"""A tenant's TUF repository: who may vouch for what a device installs.

TUF 1.0 with consistent snapshots and hash bins: ``targets`` delegates to 256 bins by the hash of
the target path (TAP 15), so that a client fetches one small bin however many builds there are.
Everything of one change (targets, bins, snapshot, timestamp) becomes visible in one transaction.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, TypeVar

import msgspec
from django.db import transaction
from django.utils import timezone
from tuf.api.metadata import (
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

from device_agent.protocol.canonical import b64, canonical_json
from device_agent.protocol.messages import ASSIGNMENT_KEYS_TARGET, AssignmentKey, AssignmentKeys
from models_registry.errors import RepositoryMissing
from models_registry.keys import ASSIGNMENT_KEY, ONLINE_KEYS, ROOT_KEYS, ROOT_THRESHOLD, make_key, signer
from models_registry.models import TufMetadata, TufTarget
from models_registry.selectors import latest_metadata, tenants_with_repository
from tenancy.models import Tenant

log = logging.getLogger(__name__)

BIN_BITS = 8
BIN_PREFIX = "bins"
# How long metadata of a role is good for. The timestamp's life bounds how long a freeze attack
# goes unnoticed; the root is renewed by people, the others by refresh_timestamp.
LIFETIME = {
    "root": timedelta(days=5 * 365),
    "targets": timedelta(days=365),
    "bins": timedelta(days=365),
    "snapshot": timedelta(days=30),
    "timestamp": timedelta(days=1),
}
TIMESTAMPS_KEPT = 5

Role = TypeVar("Role", Root, Targets, Snapshot, Timestamp)


@transaction.atomic
def initialise_repository(*, tenant: Tenant, now: datetime | None = None) -> bool:
    """Make a tenant's repository with generated demo keys; root needs two keys of three.

    Returns:
        False if the tenant has one already: it is left as it is.
    """
    now = now or timezone.now()
    _lock(tenant)
    if latest_metadata(tenant, "root") is not None:
        return False
    for name in (*ROOT_KEYS, *ONLINE_KEYS, ASSIGNMENT_KEY):
        make_key(tenant.slug, name)
    succinct = SuccinctRoles([_keyid(tenant, "bins")], 1, BIN_BITS, BIN_PREFIX)
    roles: dict[str, Signed] = {"root": _root(tenant, now), "targets": _targets(tenant, succinct, now)}
    roles |= {name: Targets(expires=_expiry("bins", now)) for name in succinct.get_roles()}
    meta = {f"{name}.json": MetaFile(1) for name in roles if name != "root"}
    roles["snapshot"] = Snapshot(expires=_expiry("snapshot", now), meta=meta)
    roles["timestamp"] = Timestamp(expires=_expiry("timestamp", now), snapshot_meta=MetaFile(1))
    TufMetadata.objects.bulk_create(_signed(tenant, name, signed) for name, signed in roles.items())
    add_targets(tenant=tenant, targets={ASSIGNMENT_KEYS_TARGET: _assignment_keys(tenant)}, now=now)
    return True


def _root(tenant: Tenant, now: datetime) -> Root:
    root = Root(expires=_expiry("root", now), consistent_snapshot=True)
    for name in ROOT_KEYS:
        root.add_key(signer(tenant.slug, name).public_key, "root")
    root.roles["root"].threshold = ROOT_THRESHOLD
    for role in ("targets", "snapshot", "timestamp"):
        root.add_key(signer(tenant.slug, role).public_key, role)
    return root


def _targets(tenant: Tenant, succinct: SuccinctRoles, now: datetime) -> Targets:
    key = signer(tenant.slug, "bins").public_key
    delegations = Delegations({key.keyid: key}, succinct_roles=succinct)
    return Targets(expires=_expiry("targets", now), delegations=delegations)


def _assignment_keys(tenant: Tenant) -> bytes:
    key = signer(tenant.slug, ASSIGNMENT_KEY).public_key
    public = b64(bytes.fromhex(key.keyval["public"]))
    return canonical_json(
        msgspec.to_builtins(AssignmentKeys(keys=[AssignmentKey(keyid=key.keyid, public=public)]))
    )


@transaction.atomic
def add_targets(*, tenant: Tenant, targets: dict[str, bytes], now: datetime | None = None) -> None:
    """Publish target files; only bins that change are signed anew.

    Args:
        targets: content by target path. A path that exists gets the new content.

    Raises:
        RepositoryMissing: if the tenant has no repository.
        KeyMissing: if a signing key is not in the keys folder.
    """
    now = now or timezone.now()
    _lock(tenant)
    by_bin: dict[str, list[TargetFile]] = defaultdict(list)
    succinct = SuccinctRoles([], 1, BIN_BITS, BIN_PREFIX)
    for path, body in targets.items():
        by_bin[succinct.get_role_for_target(path)].append(TargetFile.from_data(path, body, ["sha256"]))
    bins = {name: load_role(tenant, name, Targets) for name in by_bin}
    changed = {
        name: role
        for name, role in bins.items()
        if any(role.targets.get(file.path) != file for file in by_bin[name])
    }
    if not changed:
        return
    for name, role in changed.items():
        role.targets |= {file.path: file for file in by_bin[name]}
    _store_targets(tenant, targets)
    _publish(tenant, changed, now)


def _store_targets(tenant: Tenant, targets: dict[str, bytes]) -> None:
    TufTarget.objects.bulk_create(
        (
            TufTarget(tenant=tenant, path=path, sha256=hashlib.sha256(body).hexdigest(), body=body)
            for path, body in targets.items()
        ),
        ignore_conflicts=True,
    )


def _publish(tenant: Tenant, changed: dict[str, Targets], now: datetime) -> None:
    """Sign changed roles with their next version, and with them snapshot and timestamp."""
    snapshot = load_role(tenant, "snapshot", Snapshot)
    for name, role in changed.items():
        role.version += 1
        role.expires = _expiry(name, now)
        snapshot.meta[f"{name}.json"] = MetaFile(role.version)
    snapshot.version += 1
    snapshot.expires = _expiry("snapshot", now)
    rows = [_signed(tenant, name, role) for name, role in changed.items()]
    TufMetadata.objects.bulk_create([*rows, _signed(tenant, "snapshot", snapshot)])
    _publish_timestamp(tenant, snapshot.version, now)


def _publish_timestamp(tenant: Tenant, snapshot_version: int, now: datetime) -> None:
    timestamp = load_role(tenant, "timestamp", Timestamp)
    timestamp.version += 1
    timestamp.expires = _expiry("timestamp", now)
    timestamp.snapshot_meta = MetaFile(snapshot_version)
    _signed(tenant, "timestamp", timestamp).save(force_insert=True)
    TufMetadata.objects.filter(
        tenant=tenant, role="timestamp", version__lte=timestamp.version - TIMESTAMPS_KEPT
    ).delete()


@transaction.atomic
def refresh_timestamp(*, tenant: Tenant, now: datetime) -> list[str]:
    """Sign anew what has spent half its life: the timestamp, and what it leads to.

    Returns:
        the roles that were signed.
    """
    _lock(tenant)
    ageing = {name: role for name, role in _all_targets_roles(tenant) if _ageing(name, role, now)}
    if ageing or _ageing("snapshot", load_role(tenant, "snapshot", Snapshot), now):
        _publish(tenant, ageing, now)
        return [*ageing, "snapshot", "timestamp"]
    if _ageing("timestamp", load_role(tenant, "timestamp", Timestamp), now):
        _publish_timestamp(tenant, load_role(tenant, "snapshot", Snapshot).version, now)
        return ["timestamp"]
    return []


def refresh_timestamps(*, now: datetime) -> dict[str, list[str]]:
    """:func:`refresh_timestamp` for every tenant that has a repository.

    A tenant whose keys are missing does not hold up the others; it is logged.
    """
    refreshed: dict[str, list[str]] = {}
    for tenant in tenants_with_repository():
        try:
            if roles := refresh_timestamp(tenant=tenant, now=now):
                refreshed[tenant.slug] = roles
        except Exception:
            log.exception("metadata of tenant %s could not be refreshed", tenant.slug)
    return refreshed


def _all_targets_roles(tenant: Tenant) -> Iterable[tuple[str, Targets]]:
    snapshot = load_role(tenant, "snapshot", Snapshot)
    wanted = {name.removesuffix(".json"): meta.version for name, meta in snapshot.meta.items()}
    rows = TufMetadata.objects.filter(tenant=tenant, role__in=wanted)
    for row in rows.order_by("role", "version").iterator():
        if wanted[row.role] == row.version:
            yield row.role, Metadata[Targets].from_bytes(bytes(row.body)).signed


def _ageing(name: str, signed: Signed, now: datetime) -> bool:
    return signed.expires - now < LIFETIME[_kind(name)] / 2


def load_role(tenant: Tenant, name: str, kind: type[Role]) -> Role:
    """The newest signed part of a role.

    Raises:
        RepositoryMissing: if there is none.
    """
    body = latest_metadata(tenant, name)
    if body is None:
        raise RepositoryMissing(
            f"Tenant {tenant.slug!r} has no signing repository. Set it up first (manage.py setup_embedded)."
        )
    metadata: Metadata[Role] = Metadata.from_bytes(body)
    return metadata.signed


def _signed(tenant: Tenant, name: str, signed: Signed) -> TufMetadata:
    metadata: Metadata[Any] = Metadata(signed)
    for key in ROOT_KEYS if name == "root" else (_kind(name),):
        metadata.sign(signer(tenant.slug, key), append=True)
    return TufMetadata(tenant=tenant, role=name, version=signed.version, body=metadata.to_bytes())


def _kind(name: str) -> str:
    """The key and lifetime of a role: all bins share one."""
    return BIN_PREFIX if name.startswith(f"{BIN_PREFIX}-") else name


def _keyid(tenant: Tenant, name: str) -> str:
    return signer(tenant.slug, name).public_key.keyid


def _expiry(name: str, now: datetime) -> datetime:
    return (now + LIFETIME[_kind(name)]).replace(microsecond=0)


def _lock(tenant: Tenant) -> None:
    """One change of a repository at a time (on SQLite every transaction that writes is alone)."""
    Tenant.objects.select_for_update().get(pk=tenant.pk)


def sign_assignment(*, tenant: Tenant, assignment: dict[str, Any]) -> bytes:
    """Sign what one device may install.

    Args:
        assignment: :class:`~device_agent.protocol.messages.Assignment` as plain JSON types.

    Returns:
        the envelope, JSON: the signature covers the canonical JSON of ``signed``.
    """
    signature = signer(tenant.slug, ASSIGNMENT_KEY).sign(canonical_json(assignment))
    return canonical_json(
        {"signed": assignment, "signatures": [{"keyid": signature.keyid, "sig": signature.signature}]}
    )
