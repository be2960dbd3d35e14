"""Addresses of the console."""

from __future__ import annotations

from django.urls import path, re_path

from fleet.console.views import (
    access,
    audit,
    builds,
    classes,
    devices,
    fleet,
    models,
    rollouts,
    session,
    tailorings,
    versions,
)

app_name = "console"
DEVICE = "devices/(?P<device_id>[0-9a-f-]{36})"
ROLLOUT = "rollouts/(?P<rollout_id>[0-9a-f-]{36})"
urlpatterns = [
    path("", fleet.fleet, name="fleet"),
    path("login", session.SignIn.as_view(), name="login"),
    path("logout", session.SignOut.as_view(), name="logout"),
    path("devices", devices.devices, name="devices"),
    path("devices/<uuid:device_id>", devices.device, name="device"),
    re_path(f"^{DEVICE}/(?P<event>accept|reject|decommission)$", devices.decide, name="device-decide"),
    path("classes", classes.classes, name="classes"),
    path("classes/new", classes.create, name="class-create"),
    path("classes/<slug:name>/edit", classes.edit, name="class-edit"),
    path("classes/<slug:name>/delete", classes.delete, name="class-delete"),
    path("models", models.models, name="models"),
    path("models/<slug:name>", models.model, name="model"),
    path("versions/<uuid:version_id>", versions.version, name="version"),
    path("versions/<uuid:version_id>/live", versions.version_live, name="version-live"),
    path("versions/<uuid:version_id>/preview", tailorings.preview, name="version-preview"),
    path("versions/<uuid:version_id>/build", versions.build, name="version-build"),
    path("versions/<uuid:version_id>/release", versions.release, name="version-release"),
    path("versions/<uuid:version_id>/alias", models.set_alias, name="version-alias"),
    path("versions/<uuid:version_id>/discard", models.discard, name="version-discard"),
    path("versions/<uuid:version_id>/recheck", models.recheck, name="version-recheck"),
    path("versions/<uuid:version_id>/cancel", models.cancel, name="version-cancel"),
    path("tailorings/<uuid:tailoring_id>", tailorings.tailoring, name="tailoring"),
    path("tailorings/<uuid:tailoring_id>/live", tailorings.tailoring_live, name="tailoring-live"),
    path("tailorings/<uuid:tailoring_id>/layers", tailorings.tailoring_layers, name="tailoring-layers"),
    path("releases/<uuid:release_id>/retry", versions.retry_release, name="release-retry"),
    path("builds/<uuid:build_id>", builds.build, name="build"),
    path("builds/<uuid:build_id>/live", builds.build_live, name="build-live"),
    path("builds/<uuid:build_id>/layers", tailorings.build_layers, name="build-layers"),
    path("builds/<uuid:build_id>/latency", builds.build_latency, name="build-latency"),
    path("builds/<uuid:build_id>/cancel", builds.cancel, name="build-cancel"),
    path("builds/<uuid:build_id>/retry", builds.retry, name="build-retry"),
    path("rollouts", rollouts.rollouts, name="rollouts"),
    path("rollouts/new", rollouts.create, name="rollout-create"),
    path("rollouts/<uuid:rollout_id>", rollouts.rollout, name="rollout"),
    path("rollouts/<uuid:rollout_id>/live", rollouts.rollout_live, name="rollout-live"),
    path("rollouts/<uuid:rollout_id>/delete", rollouts.delete, name="rollout-delete"),
    re_path(
        f"^{ROLLOUT}/(?P<event>start|pause|resume|cancel|roll_back)$", rollouts.steer, name="rollout-steer"
    ),
    path(
        "rollouts/<uuid:rollout_id>/tracks/<slug:class_name>/resume",
        rollouts.resume_track,
        name="track-resume",
    ),
    path("access", access.access, name="access"),
    path("access/root.json", access.trust_root, name="trust-root"),
    path("access/tokens/<uuid:token_id>/revoke", access.revoke_token, name="token-revoke"),
    path("access/keys/<uuid:key_id>/revoke", access.revoke_key, name="key-revoke"),
    path("audit", audit.audit, name="audit"),
]
