"""Periodic work on telemetry."""

from __future__ import annotations

from celery import shared_task
from django.utils import timezone

from fleet.telemetry import services


@shared_task(name="telemetry.roll_up", ignore_result=True)
def roll_up() -> None:
    """Rebuild the hours that got rows since the last time."""
    services.roll_up(now=timezone.now())
