"""``manage.py restore FILE``: put the state of a backup in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections
from django.utils import timezone

from fleet.management.backup import BackupFailed, embedded_state, restore
from fleet.management.embedded import run_folder
from fleet.management.lock import Locked, acquire


class Command(BaseCommand):
    help = (
        "Put the state of a backup of the embedded default in place, after all of it has been checked. "
        "Refuses while 'manage.py up' runs, and over existing state without --force, which keeps the "
        "old state beside it. Exit codes: 0 restored, 1 nothing changed."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help="what 'manage.py backup' has written")
        parser.add_argument("--force", action="store_true", help="replace existing state (it is kept aside)")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            acquire(run_folder())  # held until this process ends
            connections.close_all()
            kept = restore(
                options["file"].absolute(), state=embedded_state(), force=options["force"], now=timezone.now()
            )
        except Locked as error:
            raise CommandError(
                f"'manage.py up' runs (process {error.holder}). Stop it first; nothing was changed."
            ) from None
        except (BackupFailed, OSError) as error:
            raise CommandError(str(error)) from None
        self.stdout.write("Restored. Start it with: manage.py up")
        if kept is not None:
            self.stdout.write(
                f"The state that was there before is in {kept}; delete it when you do not need it."
            )
