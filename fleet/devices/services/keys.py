"""Provisioning keys: what lets devices join a tenant."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import datetime

from django.db import transaction
from django.utils import timezone

from fleet.devices.errors import InvalidCapabilities
from fleet.devices.models import ProvisioningKey
from fleet.devices.selectors import PROVISIONING_PREFIX, secret_digest
from fleet.devices.services.inventory import checked_tags
from fleet.errors import Refused
from tenancy.actor import Actor
from tenancy.audit import record
from tenancy.models import App, Tenant


@transaction.atomic
def create_provisioning_key(
    *,
    tenant: Tenant,
    name: str,
    accept: bool = True,
    tags: Iterable[str] = (),
    app: App | None = None,
    expires_at: datetime | None = None,
    actor: Actor,
) -> tuple[ProvisioningKey, str]:
    """Make a provisioning key.

    Args:
        accept: whether devices that join with it are accepted at once, or wait as pending.
        tags: given to every device that joins with it.

    Returns:
        the row, and the plaintext ``pfk_<prefix>_<secret>``: shown once, never stored.

    Raises:
        Refused: ``invalid_name`` or ``invalid_tags``.
    """
    if not name or len(name) > 100:
        raise Refused("A provisioning key's name has 1 to 100 characters.", code="invalid_name")
    try:
        granted = checked_tags(tags)
    except InvalidCapabilities as error:
        raise Refused(error.detail, code="invalid_tags") from None
    prefix = secrets.token_hex(4)
    plaintext = f"{PROVISIONING_PREFIX}{prefix}_{secrets.token_urlsafe(32)}"
    key = ProvisioningKey.objects.create(
        tenant=tenant,
        app=app,
        name=name,
        prefix=prefix,
        digest=secret_digest(plaintext),
        accept=accept,
        tags=granted,
        expires_at=expires_at,
    )
    after = {"name": name, "prefix": prefix, "accept": accept, "tags": granted}
    _record(key, actor, "provisioning_key.create", after)
    return key, plaintext


@transaction.atomic
def revoke_provisioning_key(*, key: ProvisioningKey, actor: Actor) -> ProvisioningKey:
    """No device joins with it any more; those that did stay. Doing so twice is harmless."""
    revoked = ProvisioningKey.objects.filter(pk=key.pk, revoked_at__isnull=True).update(
        revoked_at=timezone.now()
    )
    if revoked:
        _record(key, actor, "provisioning_key.revoke", {"prefix": key.prefix})
    key.refresh_from_db()
    return key


def _record(key: ProvisioningKey, actor: Actor, action: str, after: dict[str, object]) -> None:
    record(
        tenant=key.tenant,
        actor=actor,
        action=action,
        subject_type="provisioning_key",
        subject=key.pk,
        after=after,
    )
