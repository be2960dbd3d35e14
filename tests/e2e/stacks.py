"""The two stacks that every end-to-end test runs on: the embedded default and the production one.

The production stack takes a database and a virtual host of its own on the PostgreSQL and RabbitMQ
servers named by ``POCKETFLEET_TEST_POSTGRES`` and ``POCKETFLEET_TEST_RABBITMQ``, and starts an S3
API (moto) on loopback. All of it is removed at the end.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import urllib3

from demo.control_plane import free_port


@dataclass(frozen=True)
class Stack:
    name: str
    var: Path
    environment: dict[str, str] = field(default_factory=dict)


def production_available() -> bool:
    return bool(os.environ.get("POCKETFLEET_TEST_POSTGRES") and os.environ.get("POCKETFLEET_TEST_RABBITMQ"))


@contextlib.contextmanager
def embedded(var: Path) -> Iterator[Stack]:
    yield Stack("embedded", var)


@contextlib.contextmanager
def production(var: Path) -> Iterator[Stack]:
    name = f"pocketfleet_{secrets.token_hex(6)}"
    with _database(name) as database, _virtual_host(name) as broker, _s3(name.replace("_", "-")) as s3:
        yield Stack(
            "production",
            var,
            {
                "POCKETFLEET_SECRET_KEY": secrets.token_urlsafe(50),
                "POCKETFLEET_DATABASE_URL": database,
                "POCKETFLEET_BROKER_URL": broker,
                **s3,
            },
        )


@contextlib.contextmanager
def _database(name: str) -> Iterator[str]:
    server = os.environ["POCKETFLEET_TEST_POSTGRES"]
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    try:
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@contextlib.contextmanager
def _virtual_host(name: str) -> Iterator[str]:
    """A virtual host where ``rabbitmqctl`` may make one; else the server's own default."""
    server = os.environ["POCKETFLEET_TEST_RABBITMQ"]
    user = urlsplit(server).username or "guest"

    def rabbitmqctl(*arguments: str) -> bool:
        try:
            return (
                subprocess.run(["rabbitmqctl", "-q", *arguments], capture_output=True, timeout=60).returncode
                == 0
            )
        except (OSError, subprocess.TimeoutExpired):
            return False

    if rabbitmqctl("add_vhost", name) and rabbitmqctl("set_permissions", "-p", name, user, ".*", ".*", ".*"):
        try:
            yield urlsplit(server)._replace(path=f"/{name}").geturl()
        finally:
            rabbitmqctl("delete_vhost", name)
    else:
        raise RuntimeError("rabbitmqctl could not make a virtual host for the test")


@contextlib.contextmanager
def _s3(bucket: str) -> Iterator[dict[str, str]]:
    port = free_port(0)
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if urllib3.request("PUT", f"{endpoint}/{bucket}", retries=False, timeout=2).status == 200:
                    break
            assert time.monotonic() < deadline, "the S3 test server did not start"
            assert process.poll() is None, "the S3 test server ended"
            time.sleep(0.3)
        yield {
            "POCKETFLEET_BLOBS_URL": f"s3://{bucket}/blobs",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
        }
    finally:
        process.terminate()
        process.wait(20)
