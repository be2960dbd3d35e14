"""Models and their versions: lists, uploads, aliases."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from typing import IO

from django.contrib import messages
from django.core.files.uploadedfile import UploadedFile
from django.db.models import Count, Max, OuterRef, Subquery
from django.http import HttpResponse
from django.shortcuts import redirect, render

from fleet.console.access import ConsoleRequest, action, form_page
from fleet.console.forms import ModelCreateForm, UploadForm, sent
from fleet.console.paging import keyset
from models_registry import selectors
from models_registry.models import Model, ModelVersion
from models_registry.services import models as services
from models_registry.services import versions as uploads
from models_registry.services.versions import FileSpec
from tenancy.errors import ProblemError
from tenancy.models import App
from tenancy.selectors import apps_of

READ_BYTES = 1 << 20


@form_page("models", "models:read")
def models(request: ConsoleRequest) -> HttpResponse:
    apps = list(apps_of(request.tenant))
    form = ModelCreateForm(sent(request), apps=apps)
    if request.method == "POST":
        request.can.require("models:write")
        model = _created(request, form, apps)
        if model is not None:
            return redirect("console:model", name=model.name)
    rows = selectors.models_of(request.tenant).prefetch_related("aliases__version")
    newest = ModelVersion.objects.filter(model=OuterRef("pk")).order_by("-number")
    rows = rows.annotate(
        newest=Max("versions__number"),
        newest_state=Subquery(newest.values("state")[:1]),
        uploads=Count("versions"),
    )
    context = {"page": keyset(request, rows, "name"), "form": form, "apps": apps}
    return render(request, "console/models.html", context)


def _created(request: ConsoleRequest, form: ModelCreateForm, apps: list[App]) -> Model | None:
    if not form.is_valid():
        return None
    data = dict(form.cleaned_data)
    app = next(app for app in apps if app.slug == data.pop("app"))
    try:
        return services.create_model(app=app, actor=request.actor, **data)
    except ProblemError as refusal:
        form.add_problem(refusal.detail, "name")
        return None


@form_page("models", "models:read")
def model(request: ConsoleRequest, name: str) -> HttpResponse:
    row = selectors.model(request.tenant, name)
    form = UploadForm(sent(request), request.FILES or None)
    if request.method == "POST":
        request.can.require("models:write")
        version = _uploaded(request, row, form)
        if version is not None:
            return redirect("console:version", version_id=version.pk)
    rows = selectors.versions_of(request.tenant, row, uploading=True).prefetch_related("aliases", "files")
    context = {"model": row, "page": keyset(request, rows, "-number"), "form": form}
    return render(request, "console/model.html", context)


def _uploaded(request: ConsoleRequest, model: Model, form: UploadForm) -> ModelVersion | None:
    if not form.is_valid():
        return None
    try:
        return _receive(request, model, list(_announced(form)))
    except ProblemError as refusal:
        form.add_problem(refusal.detail)
        return None


def _announced(form: UploadForm) -> Iterator[tuple[str, str, UploadedFile]]:
    """Role, path and content of each file. A graph on its own is always model.onnx."""
    chosen: list[UploadedFile] = form.cleaned_data["model"]
    for file in chosen:
        name = str(file.name)
        alone = len(chosen) == 1 and name.endswith(".onnx")
        yield "model", "model.onnx" if alone else name, file
    for role in ("evaluation", "calibration"):
        if form.cleaned_data[role]:
            yield role, f"{role}.npz", form.cleaned_data[role]


def _receive(
    request: ConsoleRequest, model: Model, files: list[tuple[str, str, UploadedFile]]
) -> ModelVersion:
    """An upload by form: announced, received and completed at once, or discarded."""
    specs = [
        FileSpec(role=role, path=path, size_bytes=file.size or 0, sha256=_sha256(file))
        for role, path, file in files
    ]
    version = uploads.create_version(model=model, files=specs, actor=request.actor)
    try:
        for _, path, file in files:
            uploads.receive_part(
                version=version, path=path, offset=0, stream=_chunks(file), actor=request.actor
            )
        return uploads.complete_version(version=version, actor=request.actor)
    except BaseException:
        uploads.discard_version(version=version, actor=request.actor)
        raise


def _chunks(file: UploadedFile | IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while chunk := file.read(READ_BYTES):
        yield chunk


def _sha256(file: UploadedFile) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(file):
        digest.update(chunk)
    return digest.hexdigest()


@action("models:write")
def set_alias(request: ConsoleRequest, version_id: uuid.UUID) -> HttpResponse:
    version = selectors.version(request.tenant, version_id)
    alias = services.set_alias(
        model=version.model, name=request.POST.get("name", ""), version=version, actor=request.actor
    )
    messages.success(request, f"{alias.name} points at {version}.")
    return redirect("console:version", version_id=version_id)


@action("models:write")
def discard(request: ConsoleRequest, version_id: uuid.UUID) -> HttpResponse:
    version = selectors.version(request.tenant, version_id)
    uploads.discard_version(version=version, actor=request.actor)
    messages.success(request, "The upload is discarded.")
    return redirect("console:model", name=version.model.name)


@action("models:write")
def recheck(request: ConsoleRequest, version_id: uuid.UUID) -> HttpResponse:
    uploads.recheck_version(version=selectors.version(request.tenant, version_id), actor=request.actor)
    return redirect("console:version", version_id=version_id)


@action("models:write")
def cancel(request: ConsoleRequest, version_id: uuid.UUID) -> HttpResponse:
    uploads.cancel_inspection(version=selectors.version(request.tenant, version_id), actor=request.actor)
    return redirect("console:version", version_id=version_id)
