"""The audit log."""

from __future__ import annotations

from django.http import HttpResponse
from django.shortcuts import render

from fleet.console.access import READ_ALL, ConsoleRequest, page
from fleet.console.paging import keyset
from tenancy.selectors import audit_entries


@page("audit", *READ_ALL)
def audit(request: ConsoleRequest) -> HttpResponse:
    action = request.GET.get("action", "").strip()
    rows = audit_entries(request.tenant)
    if action:
        rows = rows.filter(action__startswith=action)
    return render(request, "console/audit.html", {"page": keyset(request, rows, "-id"), "action": action})
