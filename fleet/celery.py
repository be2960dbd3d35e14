"""The control worker's Celery application and the schedule of periodic tasks.

``celery -A fleet.celery worker -Q control`` and ``celery -A fleet.celery beat``.
"""

from __future__ import annotations

import logging
import os

from django.conf import settings

from quantize_worker.contract import QUEUE_CONTROL
from tenancy.broker import celery_app

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fleet.settings")  # read from here on

# In seconds.
PERIODIC = {
    "models_registry.sweep": settings.SWEEP_INTERVAL_S,
    "rollouts.step": settings.SWEEP_INTERVAL_S,
    "telemetry.roll_up": 60.0,
    "models_registry.refresh_timestamps": 3600.0,
    "models_registry.drop_orphaned_parts": 3600.0,
}

app = celery_app()
app.autodiscover_tasks(["models_registry", "fleet.rollouts", "fleet.telemetry"])
# A message that was not taken before its successor is due is worth nothing: it expires.
app.conf.beat_schedule = {
    task: {"task": task, "schedule": interval, "options": {"queue": QUEUE_CONTROL, "expires": interval}}
    for task, interval in PERIODIC.items()
}

# A line for every periodic task every few seconds would bury the rest; failures still show.
for _name in ("celery.app.trace", "celery.worker.strategy", "celery.beat"):
    logging.getLogger(_name).setLevel(logging.WARNING)
