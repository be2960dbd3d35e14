"""Health checks of the containers; exit code 0 = healthy, 1 = not, with the reason on stderr.

    healthcheck.py http http://127.0.0.1:8440/healthz     answers 2xx
    healthcheck.py queue tailor.small                     somebody consumes this queue
    healthcheck.py fresh /var/lib/pocketfleet/beat 600    the file (or one named so plus a suffix) was
                                                          written within this many seconds

Only the standard library, and kombu for ``queue``. Workers answer no remote control (it is switched
off), so what the broker knows about their consumers is the evidence.
"""

from __future__ import annotations

import os
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

TIMEOUT_S = 4.0


class Unhealthy(Exception):
    """The check failed; the message says why."""


def http(address: str) -> None:
    """The address answers 2xx. Proxies from the environment are not used."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=TIMEOUT_S):
            pass
    except OSError as error:
        raise Unhealthy(f"{address}: {error}") from error


def queue(name: str) -> None:
    """A consumer is attached to the queue on the broker of ``POCKETFLEET_BROKER_URL`` (RabbitMQ)."""
    from kombu import Connection

    broker = os.environ.get("POCKETFLEET_BROKER_URL", "")
    if not broker.startswith(("amqp://", "amqps://")):
        raise Unhealthy("POCKETFLEET_BROKER_URL names no RabbitMQ; this check needs one")
    try:
        with Connection(broker, connect_timeout=TIMEOUT_S) as connection:
            connection.ensure_connection(max_retries=1, timeout=TIMEOUT_S)
            consumers = connection.default_channel.queue_declare(queue=name, passive=True).consumer_count
    except Exception as error:  # kombu raises the transport's own errors, which differ in kind
        raise Unhealthy(f"queue {name}: {type(error).__name__}") from error  # the URL holds a password
    if not consumers:
        raise Unhealthy(f"queue {name} has no consumer")


def fresh(path: str, seconds: str) -> None:
    """A file of this name was written within the last ``seconds``."""
    target = Path(path)
    times = [file.stat().st_mtime for file in target.parent.glob(f"{target.name}*") if file.is_file()]
    if not times:
        raise Unhealthy(f"{path} does not exist")
    age = time.time() - max(times)
    if age > float(seconds):
        raise Unhealthy(f"{path} was last written {age:.0f} s ago")


CHECKS: dict[str, Callable[..., None]] = {"http": http, "queue": queue, "fresh": fresh}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in CHECKS:
        sys.stderr.write(__doc__ or "")
        return 1
    try:
        CHECKS[arguments[0]](*arguments[1:])
    except Unhealthy as error:
        sys.stderr.write(f"unhealthy: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
