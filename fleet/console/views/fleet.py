"""The first page."""

from __future__ import annotations

from django.http import HttpResponse
from django.shortcuts import render

from fleet.console.access import READ_ALL, ConsoleRequest, page
from fleet.console.overview import overview


@page("fleet", *READ_ALL)
def fleet(request: ConsoleRequest) -> HttpResponse:
    return render(request, "console/fleet.html", {"overview": overview(request.tenant)})
