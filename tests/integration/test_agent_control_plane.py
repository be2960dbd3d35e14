"""The real agent against the real control plane, over real HTTP: the contract as both sides live it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.utils import timezone

from blobstore import BlobStore
from device_agent.errors import Refused
from fleet.devices import services as devices
from fleet.devices.models import Device, ProvisioningKey
from fleet.rollouts import services as rollouts
from fleet.rollouts.models import Assignment, Rollout
from fleet.telemetry.models import DeviceRow
from models_registry.models import Build, Release, ReleaseEntry, TenantBlob
from models_registry.selectors import tuf_metadata
from models_registry.services.signing import add_targets, initialise_repository
from quantize_worker.contract import blob_key
from tenancy.models import App, Tenant
from tests.factories import ACTOR, make_class, make_release
from tests.simulators.agents import InProcessAgent
from tests.simulators.artifacts import Artifact, sha256, tiny_artifact, tiny_inputs

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")

EVERYBODY = "ram_mb > 0"
POLICY = {"groups": [1.0]}


def publish(app: App, artifact: Artifact, blobs: BlobStore) -> Release:
    """A release of one artifact for class ``all``, signed as the control worker does."""
    manifest = artifact.manifest
    release = make_release(app, ["all"], model=manifest.model, number=manifest.version)
    entry = ReleaseEntry.objects.get(release=release)
    path = f"builds/{manifest.build}/manifest.json"
    build = Build.objects.create(
        pk=manifest.build,
        tenant=app.tenant,
        version=release.version,
        recipe_digest=sha256(manifest.build.encode()),
        plan={},
        precision="fp32",
        state="ready",
    )
    encoded = manifest.encode()
    ReleaseEntry.objects.filter(pk=entry.pk).update(
        build=build, target_path=path, manifest_sha256=sha256(encoded), manifest_length=len(encoded)
    )
    for digest, content in artifact.blobs.items():
        blobs.put_bytes(content, key=blob_key(digest))
        TenantBlob.objects.create(tenant=app.tenant, build=build, sha256=digest, size_bytes=len(content))
    add_targets(tenant=app.tenant, targets={path: encoded})
    return release


def roll_out(release: Release) -> Rollout:
    rollout = rollouts.create_rollout(
        release=release, name=f"v{release.version.number}", filter="", policy=POLICY, actor=ACTOR
    )
    return rollouts.start_rollout(rollout=rollout, actor=ACTOR)


@pytest.fixture
def repository(tenant: Tenant) -> Tenant:
    make_class(tenant, "all", filter=EVERYBODY)
    initialise_repository(tenant=tenant)
    return tenant


@pytest.fixture
def agent(repository: Tenant, live_server: Any, settings: Any, tmp_path: Path) -> Iterator[InProcessAgent]:
    settings.PUBLIC_URL = live_server.url
    _, key = devices.create_provisioning_key(tenant=repository, name="test", actor=ACTOR)
    server: Any = SimpleNamespace(
        url=live_server.url, tuf=SimpleNamespace(root=tuf_metadata(repository, "1.root.json"))
    )
    agent = InProcessAgent(server, tmp_path / "state", provisioning_key=key)
    yield agent
    agent.close()


def test_from_enrolment_to_a_finished_rollout(agent: InProcessAgent, app: App, blobs: BlobStore) -> None:
    assert agent.run() == "active"  # nothing assigned yet
    device = Device.objects.get()
    assert (device.state, device.class_name, device.name) == ("accepted", "all", "test")
    rollout = roll_out(publish(app, tiny_artifact(), blobs))
    assert agent.run() == "active"
    assert agent.output(tiny_inputs()).shape == (4, 16)
    assignment = Assignment.objects.get(rollout=rollout)
    assert assignment.state == "active"
    assert (assignment.self_test or {})["passed"]
    assert DeviceRow.objects.exists()
    rollouts.step_rollouts(now=timezone.now())
    rollout.refresh_from_db()
    assert rollout.state == "finished"


def test_a_failed_update_leaves_the_old_one_and_can_be_tried_again(
    agent: InProcessAgent, app: App, blobs: BlobStore
) -> None:
    agent.run()
    roll_out(publish(app, tiny_artifact(), blobs))
    agent.run()
    second = roll_out(publish(app, tiny_artifact(version=2, shift=0.5, honest=False), blobs))
    assert agent.run() == "failed"
    failed = Assignment.objects.get(rollout=second)
    assert (failed.state, failed.failure) == ("rolled_back", "output_mismatch")
    assert agent.run() == "active"  # the server assigns the build before again
    assert agent.device.runtime.model("tiny").manifest.version == 1
    rollouts.step_rollouts(now=timezone.now())
    track = second.tracks.get()
    assert track.state == "paused"
    rollouts.resume_track(track=track, actor=ACTOR)
    assert agent.run() == "failed"  # offered again, and it fails again
    assert agent.device.runtime.model("tiny").manifest.version == 1


def test_a_device_waits_to_be_accepted_and_ends_when_it_is_decommissioned(
    agent: InProcessAgent,
) -> None:
    ProvisioningKey.objects.update(accept=False)
    with pytest.raises(Refused, match="pending"):
        agent.run()
    devices.accept_device(device=Device.objects.get(), actor=ACTOR)
    assert agent.run() == "active"
    devices.decommission_device(device=Device.objects.get(), actor=ACTOR)
    for _ in range(3):
        with pytest.raises(Refused) as caught:
            agent.run()
    assert caught.value.code == "device_decommissioned"


def test_an_accepted_device_outlives_its_provisioning_key(agent: InProcessAgent) -> None:
    agent.run()
    ProvisioningKey.objects.update(revoked_at=timezone.now())
    Device.objects.update(token_epoch=7)  # every token is void
    assert agent.run() == "active"
