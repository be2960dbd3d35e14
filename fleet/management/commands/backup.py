"""``manage.py backup FILE``: all state of the embedded default in one archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from fleet.management.backup import BackupFailed, back_up, embedded_state


class Command(BaseCommand):
    help = (
        "Write databases, blobs, keys and secrets of the embedded default to FILE, also while it runs. "
        "The archive holds private keys and credentials: keep it as you keep those. "
        "Exit codes: 0 written, 1 not written."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help="ends in .tar.zst or .tar.gz")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            count = back_up(options["file"].absolute(), state=embedded_state(), now=timezone.now())
        except (BackupFailed, OSError) as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"{count} files are in {options['file']}")
