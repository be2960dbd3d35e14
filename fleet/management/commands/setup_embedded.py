"""``manage.py setup_embedded``: first tenant, app, administrator, tokens and signing keys."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from fleet.management.embedded import set_up


class Command(BaseCommand):
    help = (
        "Make the first tenant (demo), an app, an administrator, an API token, a provisioning key and "
        "a signing repository with generated demo keys. What is there already is kept. Credentials "
        "go to credentials.json in POCKETFLEET_VAR, readable by you alone; they are not printed."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--url", default=settings.PUBLIC_URL, help="address to put into the credentials")

    def handle(self, *args: Any, **options: Any) -> None:
        path = set_up(url=options["url"])
        self.stdout.write(f"Login, API token and provisioning key are in {path}")
