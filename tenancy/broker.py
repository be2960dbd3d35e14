"""The Celery application that servers publish with; workers of queue ``control`` run on it too."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from celery import Celery
from django.conf import settings

from quantize_worker.contract import celery_settings


@cache
def celery_app() -> Celery:
    """The process's Celery application, set up from Django's settings."""
    if settings.BROKER_URL.startswith("filesystem:"):
        _make_folders(Path(settings.BROKER_FOLDER))
    app = Celery("pocketfleet", set_as_current=True)
    app.conf.update(celery_settings(settings.BROKER_URL, str(settings.BROKER_FOLDER)))
    return app


def _make_folders(folder: Path) -> None:
    """The ``filesystem://`` transport makes none of its folders itself."""
    for each in (folder, folder / "control"):
        each.mkdir(parents=True, exist_ok=True)
