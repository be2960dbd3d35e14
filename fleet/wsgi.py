"""What granian serves: ``granian --interface wsgi fleet.wsgi:application``."""

from __future__ import annotations

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "fleet.settings")

from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
