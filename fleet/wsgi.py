"""What granian serves: ``granian --interface wsgi fleet.wsgi:application``."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

from fleet.management.supervision.process_tree import end_with_parent

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fleet.settings")
if os.environ.get("POCKETFLEET_SUPERVISED"):  # set by manage.py up
    end_with_parent()

application = get_wsgi_application()
