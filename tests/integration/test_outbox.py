"""The transactional outbox over a real broker: nothing leaves early, nothing is lost."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from django.db import connection, transaction
from django.utils import timezone

from models_registry.services.sweeper import OUTBOX_KEPT, sweep
from tenancy import outbox
from tenancy.broker import celery_app
from tenancy.errors import BrokerUnavailable
from tenancy.models import OutboxMessage, Tenant
from tenancy.outbox import enqueue, relay

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
TASK = "models_registry.sign_release"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_paused_until", 0.0)


@pytest.fixture
def queue(settings: Any) -> Iterator[str]:
    """The control queue, emptied before and after: RabbitMQ's outlives a test."""
    drained(celery_app())
    yield "control"
    if Path(settings.BROKER_FOLDER).is_dir():
        drained(celery_app())


@pytest.fixture
def dead(queue: str, settings: Any) -> Iterator[Callable[[], None]]:
    """Takes the broker away: its folder is gone, or nothing listens. Calling it brings it back."""
    url, folder = settings.BROKER_URL, Path(settings.BROKER_FOLDER)
    if url.startswith("filesystem"):
        shutil.rmtree(folder)
    else:
        settings.BROKER_URL = "amqp://guest:guest@127.0.0.1:1//"
        celery_app.cache_clear()

    def revive() -> None:
        settings.BROKER_URL = url
        celery_app.cache_clear()

    yield revive
    revive()


def drained(app: Celery) -> list[dict[str, Any]]:
    """All messages of queue control, taken and acknowledged: task name and its argument."""
    found = []
    with app.connection_for_read() as broker:
        simple = broker.SimpleQueue(app.amqp.queues["control"])
        while True:
            try:
                message = simple.get(block=True, timeout=0.3)
            except simple.Empty:
                break
            (argument,) = json.loads(message.body)[0]
            found.append({"task": message.headers["task"], "argument": argument})
            message.ack()
        simple.close()
    return found


def send(tenant: Tenant, number: int) -> OutboxMessage:
    return enqueue(tenant=tenant, task=TASK, queue="control", payload={"number": number})


def test_it_leaves_after_commit_in_order(tenant: Tenant, queue: str) -> None:
    with transaction.atomic():
        for number in range(3):
            send(tenant, number)
        assert drained(celery_app()) == []
    assert drained(celery_app()) == [{"task": TASK, "argument": {"number": n}} for n in range(3)]
    assert OutboxMessage.objects.filter(sent_at__isnull=True).count() == 0
    assert relay() == 0


def test_a_rolled_back_decision_sends_nothing(tenant: Tenant, queue: str) -> None:
    def decide() -> None:
        with transaction.atomic():
            send(tenant, 1)
            raise RuntimeError("changed my mind")

    with pytest.raises(RuntimeError):
        decide()
    assert OutboxMessage.objects.count() == 0
    assert drained(celery_app()) == []


def test_a_dead_broker_delays_but_loses_nothing(tenant: Tenant, queue: str, dead: Callable[[], None]) -> None:
    message = send(tenant, 1)  # does not fail, though nothing takes the message
    message.refresh_from_db()
    assert (message.sent_at, message.attempts) == (None, 1)
    with pytest.raises(BrokerUnavailable):
        relay()
    assert sweep(now=timezone.now()).get("messages_sent") is None

    dead()
    assert sweep(now=timezone.now())["messages_sent"] == 1
    assert drained(celery_app()) == [{"task": TASK, "argument": {"number": 1}}]
    message.refresh_from_db()
    assert message.sent_at is not None
    assert message.attempts == 4


def test_requests_do_not_wait_for_a_broker_just_found_dead(
    tenant: Tenant, queue: str, dead: Callable[[], None]
) -> None:
    first, second = send(tenant, 1), send(tenant, 2)
    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.attempts, second.attempts) == (1, 0)


def test_two_relays_do_not_publish_twice(tenant: Tenant, queue: str) -> None:
    if not connection.features.has_select_for_update_skip_locked:
        pytest.skip("writers are alone on SQLite")
    waiting = [
        OutboxMessage(tenant=tenant, task=TASK, queue="control", payload={"number": n}) for n in range(40)
    ]
    OutboxMessage.objects.bulk_create(waiting)
    counts: list[int] = []

    def run() -> None:
        try:
            counts.append(relay())
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 40
    assert sorted(each["argument"]["number"] for each in drained(celery_app())) == list(range(40))


def test_sent_messages_are_dropped_after_a_week(tenant: Tenant, queue: str) -> None:
    send(tenant, 1)
    assert sweep(now=timezone.now() + OUTBOX_KEPT - timedelta(hours=1)).get("messages_dropped") is None
    assert sweep(now=timezone.now() + OUTBOX_KEPT + timedelta(hours=1))["messages_dropped"] == 1
