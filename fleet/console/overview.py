"""The first page's figures: what there is, and what needs somebody's attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db.models import Count, Exists, OuterRef
from django.urls import reverse
from django.utils import timezone

from fleet.devices.models import Device
from fleet.devices.selectors import class_counts, classes_of, state_counts
from fleet.rollouts.models import Rollout, RolloutTrack
from fleet.rollouts.selectors import rollouts_of, tracks_of
from models_registry.models import Build, ModelVersion, Release
from models_registry.selectors import builds_of, models_of, releases_of, versions_of
from models_registry.services.checks import CANCELLED
from tenancy.models import Tenant

SHOWN = 5  # of each kind
REFUSED_SHOWN = timedelta(days=7)


@dataclass(frozen=True)
class Attention:
    """Something that waits for a person."""

    state: str
    title: str
    detail: str
    address: str


@dataclass(frozen=True)
class Overview:
    """All figures of the page; the number of queries does not depend on the fleet's size."""

    devices: dict[str, int]
    classes: list[dict[str, Any]]
    unclassified: int
    builds: dict[str, int]
    models: int
    rollouts: list[Rollout]
    running: int
    attention: list[Attention] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.models or self.classes or sum(self.devices.values()))


def overview(tenant: Tenant) -> Overview:
    """Gather the first page's figures."""
    devices = state_counts(tenant)
    counts = class_counts(tenant)
    builds = dict(builds_of(tenant).order_by().values_list("state").annotate(n=Count("pk")))
    rollouts = rollouts_of(tenant)
    return Overview(
        devices=devices,
        classes=[{"row": row, "devices": counts.get(row.name, 0)} for row in classes_of(tenant)],
        unclassified=counts.get("", 0),
        builds={state: builds.get(state, 0) for state in Build.State.values},
        models=models_of(tenant).count(),
        rollouts=list(rollouts[:SHOWN]),
        running=rollouts.filter(state=Rollout.State.RUNNING).count(),
        attention=attention(tenant, pending=devices[Device.State.PENDING]),
    )


def attention(tenant: Tenant, *, pending: int) -> list[Attention]:
    """Paused tracks, failed builds and releases, refused uploads, devices that wait."""
    return [
        *_paused_tracks(tenant),
        *_failed_builds(tenant),
        *_failed_releases(tenant),
        *_refused_versions(tenant),
        *_pending_devices(pending),
    ]


def _paused_tracks(tenant: Tenant) -> list[Attention]:
    """Of rollouts that go on, and of those that stopped because all their classes are paused."""
    unfinished = (Rollout.State.RUNNING, Rollout.State.PAUSED)
    tracks = tracks_of(tenant, state=RolloutTrack.State.PAUSED).filter(rollout__state__in=unfinished)
    return [
        Attention(
            "paused",
            f"{track.class_name} paused in {track.rollout.name}",
            track.reason,
            reverse("console:rollout", args=[track.rollout_id]),
        )
        for track in tracks[:SHOWN]
    ]


def _failed_builds(tenant: Tenant) -> list[Attention]:
    builds = builds_of(tenant, state=Build.State.FAILED)
    return [
        Attention(
            "failed",
            f"{build.precision} build of {build.version} failed",
            build.error_message or build.error_code,
            reverse("console:build", args=[build.pk]),
        )
        for build in builds.order_by("-finished_at")[:SHOWN]
    ]


def _failed_releases(tenant: Tenant) -> list[Attention]:
    releases = releases_of(tenant).filter(state=Release.State.FAILED)
    return [
        Attention(
            "failed",
            f"Release {release} was not signed",
            release.error,
            reverse("console:version", args=[release.version_id]),
        )
        for release in releases.order_by("-created_at")[:SHOWN]
    ]


def _refused_versions(tenant: Tenant) -> list[Attention]:
    """Of the last days; a later version of the model that is ready settles the matter."""
    later = ModelVersion.objects.filter(
        model=OuterRef("model"), number__gt=OuterRef("number"), state=ModelVersion.State.READY
    )
    versions = versions_of(tenant).filter(state=ModelVersion.State.REFUSED).exclude(refusal_code=CANCELLED)
    recent = versions.filter(~Exists(later), created_at__gte=timezone.now() - REFUSED_SHOWN)
    return [
        Attention(
            "refused",
            f"{version} was refused",
            version.refusal_message,
            reverse("console:version", args=[version.pk]),
        )
        for version in recent.order_by("-created_at")[:SHOWN]
    ]


def _pending_devices(pending: int) -> list[Attention]:
    if not pending:
        return []
    what = "1 device waits" if pending == 1 else f"{pending} devices wait"
    address = reverse("console:devices") + f"?state={Device.State.PENDING}"
    return [Attention("pending", f"{what} to be accepted", "Accept or reject what asks to join.", address)]
