"""Where telemetry lives: a second SQLite file in the embedded default, PostgreSQL's one database else.

Telemetry writes in the control data's file would hold up everything else (one writer a file).
The settings name this router only where the second database exists.
"""

from __future__ import annotations

from typing import Any

from django.db.models import Model

APP, ALIAS = "telemetry", "telemetry"


class TelemetryRouter:
    """Sends the telemetry app to its database, and nothing else there."""

    def db_for_read(self, model: type[Model], **hints: Any) -> str | None:
        return ALIAS if model._meta.app_label == APP else None

    def db_for_write(self, model: type[Model], **hints: Any) -> str | None:
        return ALIAS if model._meta.app_label == APP else None

    def allow_relation(self, first: Model, second: Model, **hints: Any) -> bool | None:
        apart = (first._meta.app_label == APP) != (second._meta.app_label == APP)
        return False if apart else None

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return (db == ALIAS) == (app_label == APP)
