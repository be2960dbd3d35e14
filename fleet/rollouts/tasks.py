"""Periodic work on rollouts."""

from __future__ import annotations

from celery import shared_task
from django.utils import timezone

from fleet.rollouts import services


@shared_task(name="rollouts.step", ignore_result=True)
def step() -> None:
    """Step every running rollout: what devices reported, and the time that passed."""
    services.step_rollouts(now=timezone.now())
