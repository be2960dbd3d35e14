"""Writes of models and their aliases."""

from __future__ import annotations

import re

from django.db import IntegrityError, transaction

from models_registry.errors import ModelExists, WrongState
from models_registry.models import Alias, Model, ModelVersion
from tenancy.actor import Actor
from tenancy.audit import record
from tenancy.errors import Invalid
from tenancy.models import App

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")  # also a device's name of the model
MAX_DESCRIPTION = 2000


@transaction.atomic
def create_model(*, app: App, name: str, description: str = "", actor: Actor) -> Model:
    """Register a model of ``app``; its name is unique in the tenant, for devices know it by it.

    Raises:
        Invalid: ``invalid_name`` or ``description_too_long``.
        ModelExists: if the tenant has a model of that name.
    """
    if not NAME.match(name):
        raise Invalid(
            "A model's name is 1 to 63 lower-case letters, digits, hyphens or underscores, "
            "beginning with a letter or digit.",
            code="invalid_name",
        )
    if len(description) > MAX_DESCRIPTION:
        raise Invalid(f"A description has at most {MAX_DESCRIPTION} characters.", code="description_too_long")
    try:
        with transaction.atomic():
            model = Model.objects.create(tenant=app.tenant, app=app, name=name, description=description)
    except IntegrityError:
        raise ModelExists(
            f"There is a model {name!r} already. Upload a new version of it, or choose another name."
        ) from None
    record(
        tenant=app.tenant,
        actor=actor,
        action="model.create",
        subject_type="model",
        subject=model.pk,
        after={"name": name},
    )
    return model


@transaction.atomic
def set_alias(*, model: Model, name: str, version: ModelVersion, actor: Actor) -> Alias:
    """Point an alias at a version that is ready; it may point at another one already.

    Raises:
        Invalid: ``invalid_name``, or ``wrong_model`` if the version is another model's.
        WrongState: if the version is not ready.
    """
    if not NAME.match(name):
        raise Invalid("An alias is lower-case letters, digits, hyphens or underscores.", code="invalid_name")
    if version.model_id != model.pk:
        raise Invalid(f"{version} is not a version of {model.name}.", code="wrong_model")
    if version.state != ModelVersion.State.READY:
        raise WrongState(f"{version} is {version.state}; an alias needs a ready one.", state=version.state)
    before = Alias.objects.filter(model=model, name=name).select_related("version").first()
    alias, _ = Alias.objects.update_or_create(
        model=model, name=name, defaults={"version": version, "tenant": model.tenant}
    )
    record(
        tenant=model.tenant,
        actor=actor,
        action="alias.set",
        subject_type="model",
        subject=model.pk,
        before={"alias": name, "version": before.version.number} if before else None,
        after={"alias": name, "version": version.number},
    )
    return alias


@transaction.atomic
def delete_alias(*, model: Model, name: str, actor: Actor) -> None:
    """Remove an alias; one that is not there is fine."""
    deleted, _ = Alias.objects.filter(model=model, name=name).delete()
    if deleted:
        record(
            tenant=model.tenant,
            actor=actor,
            action="alias.delete",
            subject_type="model",
            subject=model.pk,
            before={"alias": name},
        )
