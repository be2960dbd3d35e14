"""``manage.py up``: the whole embedded system under one supervisor."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections

from fleet.management import embedded
from fleet.management.lock import Locked, acquire
from fleet.management.supervision.plan import RunPlan, embedded_children
from tenancy.env import env_float, env_str


class Command(BaseCommand):
    help = (
        "Run web, control worker, tailor worker and periodic tasks under one supervisor, which restarts "
        "what dies. The first start sets everything up. Ctrl-C (or SIGTERM) stops all of it. "
        "Exit codes: 0 after a stop, 1 if it cannot start (another one runs, the port is taken)."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
        parser.add_argument("--port", type=int, default=8440, help="port to listen on (8440)")
        parser.add_argument("--status", action="store_true", help="print process ids as JSON and exit")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["status"]:
            self._print_status()
            return
        host, port = options["host"], options["port"]
        lock = _lock()
        _check_port(host, port)
        url = env_str("POCKETFLEET_PUBLIC_URL", f"http://{_reachable(host)}:{port}").rstrip("/")
        first = not embedded.credentials_path().exists()
        embedded.prepare()
        if first:
            self.stdout.write(f"First start: login and tokens are in {embedded.set_up(url=url)}")
        else:
            embedded.note_url(url)
        self.stdout.flush()
        _become_guard(_plan(host, port, url, lock), url)

    def _print_status(self) -> None:
        try:
            self.stdout.write((embedded.run_folder() / "pids.json").read_text())
        except FileNotFoundError:
            raise CommandError("Nothing runs. Start it with: manage.py up") from None


def _lock() -> int:
    try:
        return acquire(embedded.run_folder())
    except Locked as error:
        raise CommandError(
            f"Another 'manage.py up' or 'restore' (process {error.holder}) uses {settings.VAR}. "
            "Stop it first, or set POCKETFLEET_VAR to another folder."
        ) from None


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CommandError(
                f"Cannot listen on {host}:{port}: {error.strerror}. Choose another port with --port."
            ) from None


def _reachable(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _plan(host: str, port: int, url: str, lock: int) -> RunPlan:
    run_folder = embedded.run_folder()
    level = env_str("POCKETFLEET_LOG_LEVEL", "INFO")
    return RunPlan(
        children=embedded_children(host=host, port=port, run_folder=run_folder, log_level=level),
        run_folder=str(run_folder),
        log_folder=str(embedded.log_folder()),
        ready_url=f"http://{_reachable(host)}:{port}/readyz",
        ready_line=f"Pocketfleet is ready at {url} (logs in {embedded.log_folder()}; Ctrl-C stops it)",
        lock_descriptor=lock,
        grace_s=env_float("POCKETFLEET_STOP_GRACE_S", 10.0),
    )


def _become_guard(plan: RunPlan, url: str) -> None:
    """Replace this process: the guard needs neither Django nor its memory."""
    connections.close_all()
    os.set_inheritable(plan.lock_descriptor, True)
    os.environ |= {
        "DJANGO_SETTINGS_MODULE": os.environ.get("DJANGO_SETTINGS_MODULE", "fleet.settings"),
        "ORT_DISABLE_TELEMETRY": "1",
        "POCKETFLEET_PUBLIC_URL": url,
        "POCKETFLEET_SUPERVISED": "1",
        "POCKETFLEET_VAR": str(settings.VAR),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(embedded.temporary_folder()),
    }
    os.chdir(Path(settings.BASE_DIR))
    os.execv(  # noqa: S606
        sys.executable,
        [sys.executable, "-m", "fleet.management.supervision.guard", msgspec.json.encode(plan).decode()],
    )
