"""Writes of releases: the builds of one version, listed per class, signed, then immutable."""

from __future__ import annotations

import logging
import uuid
from datetime import datetime

from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from models_registry import lifecycle
from models_registry.errors import BuildsUnsettled, NothingToRelease, SigningFailed, WrongState
from models_registry.models import Artifact, ModelVersion, Release, ReleaseEntry, Tailoring
from models_registry.services.signing import add_targets
from quantize_worker.contract import QUEUE_CONTROL
from tenancy.actor import Actor
from tenancy.audit import record
from tenancy.outbox import enqueue

log = logging.getLogger(__name__)

TASK_SIGN_RELEASE = "models_registry.sign_release"


def target_path(build_id: object) -> str:
    """The TUF target path of a build's manifest."""
    return f"builds/{build_id}/manifest.json"


@transaction.atomic
def create_release(*, version: ModelVersion, actor: Actor) -> Release:
    """Fix the builds of a version as a release and have it signed.

    Raises:
        BuildsUnsettled: with ``classes``, those whose builds still run.
        NothingToRelease: if no class has a build that is ready.
    """
    locked = ModelVersion.objects.select_for_update(of=("self",)).select_related("model", "tenant")
    version = locked.get(pk=version.pk)
    tailorings = list(
        Tailoring.objects.filter(version=version).select_related("build__artifact").order_by("class_name")
    )
    _check_settled(version, tailorings)
    last = Release.objects.filter(version=version).aggregate(last=Max("number"))["last"] or 0
    release = Release.objects.create(
        tenant=version.tenant, version=version, number=last + 1, created_by=str(actor)[:100]
    )
    ReleaseEntry.objects.bulk_create(_entry(release, tailoring) for tailoring in tailorings)
    request_signature(release=release)
    record(
        tenant=version.tenant,
        actor=actor,
        action="release.create",
        subject_type="release",
        subject=release.pk,
        after={"model": version.model.name, "version": version.number, "number": release.number},
    )
    return release


def _check_settled(version: ModelVersion, tailorings: list[Tailoring]) -> None:
    unsettled = [each.class_name for each in tailorings if each.state == Tailoring.State.BUILDING]
    if unsettled:
        raise BuildsUnsettled(
            f"Builds of {version} still run for: {', '.join(unsettled)}. Wait for them, "
            "or cancel a build with POST /api/v1/builds/<id>/cancel.",
            classes=unsettled,
        )
    if not any(each.state == Tailoring.State.READY for each in tailorings):
        raise NothingToRelease(
            _why_nothing(version),
            classes=[each.class_name for each in tailorings],
        )


def _why_nothing(version: ModelVersion) -> str:
    if version.state == ModelVersion.State.READY:
        return f"No class has a build of {version} that is ready. Request builds, or look at the reasons."
    refusal = f": {version.refusal_message}" if version.refusal_message else "."
    return f"Only a version that is ready can be built and released; {version} is {version.state}{refusal}"


def _entry(release: Release, tailoring: Tailoring) -> ReleaseEntry:
    entry = ReleaseEntry(tenant=release.tenant, release=release, class_name=tailoring.class_name)
    if tailoring.state != Tailoring.State.READY or tailoring.build is None:
        entry.reason = tailoring.reason
        return entry
    artifact: Artifact = tailoring.build.artifact
    entry.build = tailoring.build
    entry.target_path = target_path(tailoring.build.pk)
    entry.manifest_sha256 = artifact.manifest_sha256
    entry.manifest_length = len(bytes(artifact.manifest))
    return entry


def request_signature(*, release: Release) -> None:
    """Ask the control worker, which alone has the keys, to sign."""
    enqueue(
        tenant=release.tenant,
        task=TASK_SIGN_RELEASE,
        queue=QUEUE_CONTROL,
        payload={"release": str(release.pk)},
    )


def publish_release(*, release_id: uuid.UUID | str, now: datetime | None = None) -> Release:
    """Sign a release's manifests as TUF targets; one that is not being signed is left as it is.

    Metadata, targets and the release's state change in one transaction. If it cannot be signed,
    the release becomes ``failed`` with the reason, and can be retried.
    """
    now = now or timezone.now()
    release = Release.objects.select_related("tenant", "version__model").get(pk=release_id)
    if release.state != Release.State.SIGNING:
        return release
    try:
        _publish(release, now)
    except SigningFailed as error:
        log.error("release %s: %s", release.pk, error.detail)
        _move(release, "fail", error=error.detail)
    release.refresh_from_db()
    return release


@transaction.atomic
def _publish(release: Release, now: datetime) -> None:
    entries = ReleaseEntry.objects.filter(release=release, build__isnull=False).select_related(
        "build__artifact"
    )
    targets = {entry.target_path: bytes(entry.build.artifact.manifest) for entry in entries if entry.build}
    if not _move(release, "publish", published_at=now, error=""):
        return
    add_targets(tenant=release.tenant, targets=targets, now=now)


def _move(release: Release, event: str, **changes: object) -> bool:
    return bool(
        Release.objects.filter(pk=release.pk, state__in=lifecycle.sources("release", event)).update(
            state=lifecycle.result("release", event), **changes
        )
    )


@transaction.atomic
def retry_release(*, release: Release, actor: Actor) -> Release:
    """Have a release signed whose signing failed.

    Raises:
        WrongState: if it has not failed.
    """
    if not _move(release, "retry", error=""):
        release.refresh_from_db()
        raise WrongState(
            f"{release} is {release.state}; only a failed one can be signed again.", state=release.state
        )
    request_signature(release=release)
    record(
        tenant=release.tenant,
        actor=actor,
        action="release.retry",
        subject_type="release",
        subject=release.pk,
    )
    release.refresh_from_db()
    return release
