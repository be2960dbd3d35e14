"""The append-only record of who did what. Services write it in the transaction of the change."""

from __future__ import annotations

from typing import Any

from tenancy.actor import Actor
from tenancy.models import AuditEntry, Tenant


def record(
    *,
    tenant: Tenant,
    actor: Actor,
    action: str,
    subject_type: str,
    subject: object,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> AuditEntry:
    """Write one entry.

    Args:
        action: noun and verb, e.g. ``rollout.start``.
        subject_type: kind of thing that changed, e.g. ``rollout``.
        subject: its id (or name, where it has none).
        before: the fields that changed, as they were; plain JSON types.
        after: the same fields as they are now. Never a secret.
    """
    return AuditEntry.objects.create(
        tenant=tenant,
        actor_kind=actor.kind,
        actor=actor.name[:100],
        action=action,
        subject_type=subject_type,
        subject=str(subject)[:64],
        before=before,
        after=after,
    )
