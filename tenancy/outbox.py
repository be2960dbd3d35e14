"""The transactional outbox: messages to workers leave only if the decision behind them stands.

A message is a row written in the caller's transaction. After commit a relay publishes it, and
marks it sent once the broker has confirmed it; a periodic sweep publishes what was missed. A
relay that dies in between publishes twice: consumers are idempotent.
"""

from __future__ import annotations

import logging
import time
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from tenancy.broker import celery_app
from tenancy.errors import BrokerUnavailable
from tenancy.models import OutboxMessage, Tenant

log = logging.getLogger(__name__)

PAUSE_AFTER_FAILURE_S = 5.0  # requests do not wait for a broker that has just been found dead
_paused_until = 0.0  # monotonic clock of this process


def enqueue(*, tenant: Tenant, task: str, queue: str, payload: dict[str, Any]) -> OutboxMessage:
    """Store a message; it is published when the surrounding transaction commits.

    Args:
        task: name of the task that consumes it.
        queue: the broker's queue.
        payload: its one argument, plain JSON types.
    """
    message = OutboxMessage.objects.create(tenant=tenant, task=task, queue=queue, payload=payload)
    transaction.on_commit(_relay_after_commit)
    return message


def _relay_after_commit() -> None:
    """Never fails: the change that led here is committed, and the sweep will try again."""
    if time.monotonic() < _paused_until:
        return
    try:
        relay()
    except BrokerUnavailable as error:
        log.warning("%s The sweep will publish what is waiting.", error.detail)


def relay(limit: int = 100) -> int:
    """Publish unsent messages, oldest first.

    Returns:
        how many were published.

    Raises:
        BrokerUnavailable: if the broker did not take one; it and those after it stay unsent.
    """
    sent, last = 0, 0
    while sent < limit:
        identifier = _relay_next(after=last)
        if identifier is None:
            break
        sent, last = sent + 1, identifier
    return sent


def _relay_next(*, after: int) -> int | None:
    """Publish the first unsent message behind ``after`` that no other relay holds."""
    failure: Exception | None = None
    with transaction.atomic():
        waiting = OutboxMessage.objects.filter(sent_at__isnull=True, id__gt=after).order_by("id")
        message = waiting.select_for_update(skip_locked=True).first()
        if message is None:
            return None
        changes: dict[str, Any] = {"attempts": F("attempts") + 1}
        try:
            _publish(message)
            changes["sent_at"] = timezone.now()
        except Exception as error:  # transports raise their own kinds; all mean "not taken"
            failure = error
        OutboxMessage.objects.filter(pk=message.pk).update(**changes)
    if failure is not None:
        _pause()
        raise BrokerUnavailable(f"The broker did not take message {message.pk}: {failure}") from failure
    return message.pk


def _publish(message: OutboxMessage) -> None:
    """Hand one message to the broker; returns when it has been confirmed."""
    celery_app().send_task(message.task, args=[message.payload], queue=message.queue, ignore_result=True)


def _pause() -> None:
    global _paused_until
    _paused_until = time.monotonic() + PAUSE_AFTER_FAILURE_S


def drop_sent(*, before: datetime) -> int:
    """Delete messages sent before that time; returns how many."""
    return OutboxMessage.objects.filter(sent_at__lt=before).delete()[0]
