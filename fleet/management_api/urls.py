"""Addresses of the management API."""

from __future__ import annotations

from django.urls import include, path, re_path
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.views import SpectacularAPIView

from fleet.management_api.problems import unknown_address
from fleet.management_api.views import (
    access,
    builds,
    classes,
    devices,
    docs,
    models,
    plans,
    releases,
    rollouts,
    telemetry,
    versions,
)

app_name = "management_api"

v1 = [
    path("me", access.MeView.as_view(), name="me"),
    path("apps", access.AppsView.as_view(), name="apps"),
    path("tokens", access.TokensView.as_view(), name="tokens"),
    path("tokens/<uuid:token_id>", access.TokenView.as_view(), name="token"),
    path("audit", access.AuditView.as_view(), name="audit"),
    path("models", models.ModelsView.as_view(), name="models"),
    path("models/<slug:name>", models.ModelView.as_view(), name="model"),
    path("models/<slug:name>/aliases", models.AliasesView.as_view(), name="aliases"),
    path("models/<slug:name>/aliases/<slug:alias>", models.AliasView.as_view(), name="alias"),
    path("models/<slug:name>/versions", versions.ModelVersionsView.as_view(), name="model-versions"),
    path("models/<slug:name>/upload", versions.SinglePutView.as_view(), name="upload"),
    path("versions", versions.VersionsView.as_view(), name="versions"),
    path("versions/<uuid:version_id>", versions.VersionView.as_view(), name="version"),
    path("versions/<uuid:version_id>/files/<path:path>", versions.VersionFileView.as_view(), name="file"),
    path("versions/<uuid:version_id>/complete", versions.VersionCompleteView.as_view(), name="complete"),
    path("versions/<uuid:version_id>/recheck", versions.VersionRecheckView.as_view(), name="recheck"),
    path("versions/<uuid:version_id>/cancel", versions.VersionCancelView.as_view(), name="version-cancel"),
    path("versions/<uuid:version_id>/preview", plans.VersionPreviewView.as_view(), name="preview"),
    path("versions/<uuid:version_id>/builds", builds.VersionBuildsView.as_view(), name="version-builds"),
    path("versions/<uuid:version_id>/tailorings", builds.VersionTailoringsView.as_view(), name="tailorings"),
    path(
        "versions/<uuid:version_id>/releases", releases.VersionReleasesView.as_view(), name="version-releases"
    ),
    path("versions/<uuid:version_id>/telemetry", telemetry.VersionTelemetryView.as_view(), name="telemetry"),
    path("tailorings/<uuid:tailoring_id>", builds.TailoringView.as_view(), name="tailoring"),
    path("builds", builds.BuildsView.as_view(), name="builds"),
    path("builds/<uuid:build_id>", builds.BuildView.as_view(), name="build"),
    path("builds/<uuid:build_id>/layers", builds.BuildLayersView.as_view(), name="layers"),
    path("builds/<uuid:build_id>/manifest", builds.BuildManifestView.as_view(), name="manifest"),
    path("builds/<uuid:build_id>/cancel", builds.BuildCancelView.as_view(), name="build-cancel"),
    path("builds/<uuid:build_id>/retry", builds.BuildRetryView.as_view(), name="build-retry"),
    path("builds/<uuid:build_id>/latency", telemetry.BuildLatencyView.as_view(), name="latency"),
    path("releases", releases.ReleasesView.as_view(), name="releases"),
    path("releases/<uuid:release_id>", releases.ReleaseView.as_view(), name="release"),
    path("releases/<uuid:release_id>/retry", releases.ReleaseRetryView.as_view(), name="release-retry"),
    path("device-classes", classes.DeviceClassesView.as_view(), name="classes"),
    path("device-classes/<slug:name>", classes.DeviceClassView.as_view(), name="class"),
    path("devices", devices.DevicesView.as_view(), name="devices"),
    path("devices/<uuid:device_id>", devices.DeviceView.as_view(), name="device"),
    path("devices/<uuid:device_id>/accept", devices.DeviceAcceptView.as_view(), name="device-accept"),
    path("devices/<uuid:device_id>/reject", devices.DeviceRejectView.as_view(), name="device-reject"),
    path(
        "devices/<uuid:device_id>/decommission",
        devices.DeviceDecommissionView.as_view(),
        name="device-decommission",
    ),
    path("devices/<uuid:device_id>/telemetry", telemetry.DeviceTelemetryView.as_view(), name="samples"),
    path("capabilities", devices.CapabilityFiguresView.as_view(), name="capabilities"),
    path("trust-root", devices.TrustRootView.as_view(), name="trust-root"),
    path("provisioning-keys", devices.ProvisioningKeysView.as_view(), name="provisioning-keys"),
    path("provisioning-keys/<uuid:key_id>", devices.ProvisioningKeyView.as_view(), name="provisioning-key"),
    path("rollouts", rollouts.RolloutsView.as_view(), name="rollouts"),
    path("rollouts/<uuid:rollout_id>", rollouts.RolloutView.as_view(), name="rollout"),
    path("rollouts/<uuid:rollout_id>/start", rollouts.RolloutStartView.as_view(), name="rollout-start"),
    path("rollouts/<uuid:rollout_id>/pause", rollouts.RolloutPauseView.as_view(), name="rollout-pause"),
    path("rollouts/<uuid:rollout_id>/resume", rollouts.RolloutResumeView.as_view(), name="rollout-resume"),
    path("rollouts/<uuid:rollout_id>/roll-back", rollouts.RolloutRollBackView.as_view(), name="roll-back"),
    path("rollouts/<uuid:rollout_id>/cancel", rollouts.RolloutCancelView.as_view(), name="rollout-cancel"),
    path(
        "rollouts/<uuid:rollout_id>/tracks/<slug:class_name>/resume",
        rollouts.TrackResumeView.as_view(),
        name="track-resume",
    ),
    path("rollouts/<uuid:rollout_id>/decisions", rollouts.DecisionsView.as_view(), name="decisions"),
    path("rollouts/<uuid:rollout_id>/assignments", rollouts.AssignmentsView.as_view(), name="assignments"),
]
urlpatterns = [
    path("api/v1/", include(v1)),
    re_path(r"^api/v1/", csrf_exempt(unknown_address)),
    path("api/schema", SpectacularAPIView.as_view(), name="schema"),
    path("api/docs", docs.docs, name="docs"),
]
