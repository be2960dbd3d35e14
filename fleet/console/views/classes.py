"""Device classes: the list and the form."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render

from fleet.console.access import ConsoleRequest, action, form_page, page
from fleet.console.forms import MB, DeviceClassForm, sent
from fleet.devices import selectors, services
from fleet.devices.models import DeviceClass
from fleet.devices.speed import speeds_of
from tenancy.errors import ProblemError


@page("classes", "devices:read")
def classes(request: ConsoleRequest) -> HttpResponse:
    rows = list(selectors.classes_of(request.tenant))
    context = {
        "classes": rows,
        "counts": selectors.class_counts(request.tenant),
        "speeds": speeds_of(request.tenant, rows),
    }
    return render(request, "console/classes.html", context)


@form_page("classes", "devices:write")
def create(request: ConsoleRequest) -> HttpResponse:
    form = DeviceClassForm(sent(request))
    if request.method == "POST" and form.is_valid():
        if selectors.classes_of(request.tenant).filter(name=form.cleaned_data["name"]).exists():
            form.add_problem("There is a class of this name already.", "name")
        elif _saved(request, form):
            return redirect("console:classes")
    return render(request, "console/class_form.html", {"form": form, "title": "New device class"})


@form_page("classes", "devices:write")
def edit(request: ConsoleRequest, name: str) -> HttpResponse:
    row = selectors.device_class(request.tenant, name)
    form = DeviceClassForm(sent(request), initial=_initial(row))
    form.fields["name"].disabled = True
    if request.method == "POST" and form.is_valid() and _saved(request, form):
        return redirect("console:classes")
    context = {"form": form, "title": row.title or row.name, "row": row}
    return render(request, "console/class_form.html", context)


def _initial(row: DeviceClass) -> dict[str, object]:
    initial = {name: getattr(row, name, None) for name in DeviceClassForm.base_fields}
    return initial | {
        "precisions": ", ".join(row.precisions),
        "memory_mb": _megabytes(row.memory_bytes),
        "storage_mb": _megabytes(row.storage_bytes),
    }


def _megabytes(count: int) -> int | float:
    return count / MB if count % MB else count // MB


def _saved(request: ConsoleRequest, form: DeviceClassForm) -> bool:
    """Whether the service took it; what it refuses is shown at its field."""
    try:
        row = services.save_device_class(tenant=request.tenant, actor=request.actor, **form.values())
    except ProblemError as refusal:
        field = refusal.extensions.get("field", "filter" if refusal.code == "invalid_filter" else "")
        form.add_problem(
            refusal.detail, {"memory_bytes": "memory_mb", "storage_bytes": "storage_mb"}.get(field, field)
        )
        return False
    messages.success(
        request, f"{row.title or row.name} is saved as version {row.version}; devices are sorted anew."
    )
    return True


@action("devices:write")
def delete(request: ConsoleRequest, name: str) -> HttpResponse:
    row = selectors.device_class(request.tenant, name)
    services.delete_device_class(device_class=row, actor=request.actor)
    messages.success(request, f"{row.title or row.name} is out of use.")
    return redirect("console:classes")
