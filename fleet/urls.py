"""The control plane's addresses, and the two that watchers of the process ask.

``/healthz`` says that the process answers, ``/readyz`` that database and blob store do as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from django.conf import settings
from django.db import connections
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path

from blobstore import open_store

log = logging.getLogger(__name__)


def healthz(request: HttpRequest) -> HttpResponse:
    """200 as long as the process answers."""
    return HttpResponse("ok\n", content_type="text/plain")


def _databases() -> None:
    for alias in connections:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")


def _blobs() -> None:
    open_store(settings.BLOBS_URL).exists("readiness")


def readyz(request: HttpRequest) -> HttpResponse:
    """200 when every part that requests need can be reached, else 503 with the ones that cannot."""
    checks: dict[str, Callable[[], None]] = {"database": _databases, "blobs": _blobs}
    states = {name: _state(name, check) for name, check in checks.items()}
    ready = all(state == "ok" for state in states.values())
    return JsonResponse({"ready": ready, **states}, status=200 if ready else 503)


def _state(name: str, check: Callable[[], None]) -> str:
    try:
        check()
    except Exception as error:  # whatever it is, the process is not ready
        log.warning("not ready: %s: %s", name, error)
        return "unreachable"
    return "ok"


urlpatterns = [
    path("healthz", healthz, name="healthz"),
    path("readyz", readyz, name="readyz"),
    path("api/device/v1/", include("fleet.device_api.urls")),
    path("", include("fleet.management_api.urls")),
    path("", include("fleet.console.urls")),
]
