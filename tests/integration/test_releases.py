"""Releases: signed so that a third party's TUF client verifies what a device would install."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.utils import timezone
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata, Targets
from tuf.ngclient import FetcherInterface, Updater

from device_agent.protocol.canonical import canonical_json, sha256_hex, unb64
from device_agent.protocol.messages import ASSIGNMENT_KEYS_TARGET, AssignmentKeys, SignedEnvelope
from models_registry import selectors
from models_registry.errors import BuildsUnsettled, NothingToRelease, RepositoryMissing, WrongState
from models_registry.models import (
    Artifact,
    Build,
    Model,
    ModelVersion,
    Release,
    Tailoring,
    TufMetadata,
)
from models_registry.services.releases import (
    create_release,
    publish_release,
    retry_release,
    target_path,
)
from models_registry.services.signing import (
    LIFETIME,
    add_targets,
    initialise_repository,
    refresh_timestamp,
    refresh_timestamps,
    sign_assignment,
)
from models_registry.services.sweeper import sweep
from quantize_worker.contract import LEASE_S
from tenancy.actor import Actor
from tenancy.models import App, OutboxMessage, Tenant

MANIFEST = b'{"format_version":1}'


class SelectorFetcher(FetcherInterface):
    """Fetches what the device API would serve, straight from the selectors."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.fetched: list[str] = []

    def _fetch(self, url: str) -> Iterator[bytes]:
        kind, _, name = url.removeprefix("https://device.test/").partition("/")
        read = selectors.tuf_metadata if kind == "metadata" else selectors.tuf_target
        self.fetched.append(name)
        body = read(self.tenant, name)
        if body is None:
            raise DownloadHTTPError("missing", 404)
        return iter([body])


def client(tenant: Tenant, folder: Path) -> Updater:
    """A fresh client that trusts the tenant's first root."""
    folder.mkdir(parents=True)
    (folder / "targets").mkdir()
    return Updater(
        metadata_dir=str(folder),
        metadata_base_url="https://device.test/metadata/",
        target_dir=str(folder / "targets"),
        target_base_url="https://device.test/targets/",
        fetcher=SelectorFetcher(tenant),
        bootstrap=selectors.tuf_metadata(tenant, "1.root.json"),
    )


def fetched(updater: Updater, path: str) -> bytes | None:
    info = updater.get_targetinfo(path)
    return Path(updater.download_target(info)).read_bytes() if info else None


@pytest.fixture
def version(app: App, actor: Actor) -> ModelVersion:
    model = Model.objects.create(tenant=app.tenant, app=app, name="minilm")
    return ModelVersion.objects.create(
        tenant=app.tenant, model=model, number=1, state="ready", source_digest="0" * 64
    )


def settled(version: ModelVersion, name: str, state: str) -> Tailoring:
    build = None
    if state == "ready":
        build = Build.objects.create(
            tenant=version.tenant,
            version=version,
            recipe_digest=sha256_hex(name.encode()),
            plan={},
            precision="int8-qdq",
            state="ready",
        )
        Artifact.objects.create(
            tenant=version.tenant,
            build=build,
            manifest=MANIFEST,
            manifest_sha256=sha256_hex(MANIFEST),
            size_bytes=1,
            download_bytes=1,
            memory_bytes=1,
            latency_p50_ms=1.0,
        )
    reason = "" if build else "needs 2 GB, the class has 1 GB"
    return Tailoring.objects.create(
        tenant=version.tenant,
        version=version,
        class_name=name,
        target={},
        target_digest="",
        state=state,
        build=build,
        reason=reason,
    )


def test_a_tuf_client_verifies_what_was_released(
    tenant: Tenant, version: ModelVersion, actor: Actor, tmp_path: Path
) -> None:
    initialise_repository(tenant=tenant)
    ready = settled(version, "flagship", "ready")
    settled(version, "entry", "impossible")
    release = create_release(version=version, actor=actor)
    message = OutboxMessage.objects.get()
    assert (message.task, message.queue) == ("models_registry.sign_release", "control")
    publish_release(release_id=message.payload["release"])

    release.refresh_from_db()
    assert release.state == "published"
    assert ready.build is not None
    path = target_path(ready.build.pk)
    updater = client(tenant, tmp_path / "client")
    assert fetched(updater, path) == MANIFEST
    assert updater.get_targetinfo("builds/none/manifest.json") is None
    entries = {entry.class_name: entry for entry in selectors.entries_of(release)}
    assert entries["flagship"].target_path == path
    assert entries["flagship"].manifest_sha256 == hashlib.sha256(MANIFEST).hexdigest()
    assert entries["flagship"].manifest_length == len(MANIFEST)
    assert (entries["entry"].build, entries["entry"].reason) == (None, "needs 2 GB, the class has 1 GB")


def test_publishing_twice_signs_once(tenant: Tenant, version: ModelVersion, actor: Actor) -> None:
    initialise_repository(tenant=tenant)
    settled(version, "flagship", "ready")
    release = create_release(version=version, actor=actor)
    publish_release(release_id=release.pk)
    rows = TufMetadata.objects.count()
    publish_release(release_id=str(release.pk))
    assert TufMetadata.objects.count() == rows


def test_only_changed_bins_are_signed_anew(tenant: Tenant, tmp_path: Path) -> None:
    initialise_repository(tenant=tenant)
    before = set(TufMetadata.objects.values_list("role", "version"))
    add_targets(tenant=tenant, targets={"builds/a/manifest.json": b"a"})
    new = set(TufMetadata.objects.values_list("role", "version")) - before
    roles = {role for role, _ in new}
    assert len(new) == 3
    assert {"snapshot", "timestamp"} < roles
    add_targets(tenant=tenant, targets={"builds/a/manifest.json": b"a"})
    assert set(TufMetadata.objects.values_list("role", "version")) == before | new  # nothing changed
    add_targets(tenant=tenant, targets={"builds/a/manifest.json": b"b"})
    assert fetched(client(tenant, tmp_path / "client"), "builds/a/manifest.json") == b"b"


def test_the_repository_is_made_as_designed(tenant: Tenant, own_state: Path) -> None:
    assert initialise_repository(tenant=tenant)
    assert not initialise_repository(tenant=tenant)
    root = Metadata.from_bytes(selectors.latest_metadata(tenant, "root") or b"")
    assert root.signed.consistent_snapshot
    assert (len(root.signed.roles["root"].keyids), root.signed.roles["root"].threshold) == (3, 2)
    targets = Metadata[Targets].from_bytes(selectors.latest_metadata(tenant, "targets") or b"")
    assert targets.signed.delegations is not None
    succinct = targets.signed.delegations.succinct_roles
    assert succinct is not None
    assert (succinct.bit_length, succinct.name_prefix) == (8, "bins")
    keys = sorted((own_state / "keys" / tenant.slug).iterdir())
    assert len(keys) == 8
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_an_assignment_verifies_with_the_published_key(tenant: Tenant, tmp_path: Path) -> None:
    initialise_repository(tenant=tenant)
    body = fetched(client(tenant, tmp_path / "client"), ASSIGNMENT_KEYS_TARGET)
    assert body is not None
    (key,) = msgspec.json.decode(body, type=AssignmentKeys).keys
    signed = {"_type": "assignment", "sequence": 1, "models": []}
    envelope = msgspec.json.decode(sign_assignment(tenant=tenant, assignment=signed), type=SignedEnvelope)
    assert envelope.signed == signed
    assert envelope.signatures[0].keyid == key.keyid
    public = Ed25519PublicKey.from_public_bytes(unb64(key.public))
    public.verify(bytes.fromhex(envelope.signatures[0].sig), canonical_json(envelope.signed))


def test_timestamps_are_renewed_at_half_their_life(tenant: Tenant, tmp_path: Path) -> None:
    now = timezone.now()
    initialise_repository(tenant=tenant, now=now)
    assert refresh_timestamp(tenant=tenant, now=now + timedelta(hours=11)) == []
    assert refresh_timestamp(tenant=tenant, now=now + timedelta(hours=13)) == ["timestamp"]
    assert fetched(client(tenant, tmp_path / "client"), ASSIGNMENT_KEYS_TARGET) is not None
    assert refresh_timestamps(now=now + timedelta(hours=14)) == {}


def test_everything_ageing_is_renewed(tenant: Tenant, other_tenant: Tenant, tmp_path: Path) -> None:
    made = datetime.now(UTC) - LIFETIME["bins"]
    initialise_repository(tenant=tenant, now=made)
    roles = refresh_timestamps(now=datetime.now(UTC))["acme"]
    assert len(roles) == 256 + 3  # bins, targets, snapshot, timestamp
    assert fetched(client(tenant, tmp_path / "client"), ASSIGNMENT_KEYS_TARGET) is not None


def test_old_timestamps_go_old_snapshots_stay(tenant: Tenant) -> None:
    now = timezone.now()
    initialise_repository(tenant=tenant, now=now)
    for day in range(1, 10):
        refresh_timestamp(tenant=tenant, now=now + timedelta(days=day))
    assert TufMetadata.objects.filter(role="timestamp").count() == 5
    assert selectors.tuf_metadata(tenant, "1.snapshot.json") is not None


def test_a_release_that_cannot_be_signed_says_why_and_can_be_retried(
    tenant: Tenant, version: ModelVersion, actor: Actor, own_state: Path
) -> None:
    settled(version, "flagship", "ready")
    release = create_release(version=version, actor=actor)
    with pytest.raises(WrongState):
        retry_release(release=release, actor=actor)
    failed = publish_release(release_id=release.pk)
    assert failed.state == "failed"
    assert "no signing repository" in failed.error
    initialise_repository(tenant=tenant)
    key = own_state / "keys" / tenant.slug / "bins.pem"
    key.rename(key.with_suffix(".away"))
    assert retry_release(release=release, actor=actor).state == "signing"
    assert "'bins'" in publish_release(release_id=release.pk).error
    assert TufMetadata.objects.filter(role="snapshot").count() == 2  # nothing half published
    key.with_suffix(".away").rename(key)
    retry_release(release=release, actor=actor)
    assert publish_release(release_id=release.pk).state == "published"


def test_releases_need_settled_classes(version: ModelVersion, actor: Actor) -> None:
    with pytest.raises(NothingToRelease, match="Request builds"):
        create_release(version=version, actor=actor)
    tailoring = settled(version, "entry", "impossible")
    with pytest.raises(NothingToRelease):
        create_release(version=version, actor=actor)
    Tailoring.objects.filter(pk=tailoring.pk).update(state="building")
    with pytest.raises(BuildsUnsettled) as caught:
        create_release(version=version, actor=actor)
    assert caught.value.extensions["classes"] == ["entry"]
    assert "POST /api/v1/builds/<id>/cancel" in caught.value.detail
    assert Release.objects.count() == 0


def test_a_refused_version_is_not_to_be_built(version: ModelVersion, actor: Actor) -> None:
    refusal = "The file is empty; upload it again as a new version."
    ModelVersion.objects.filter(pk=version.pk).update(state="refused", refusal_message=refusal)
    with pytest.raises(NothingToRelease) as caught:
        create_release(version=version, actor=actor)
    assert "Only a version that is ready" in caught.value.detail
    assert caught.value.detail.endswith(f"is refused: {refusal}")
    assert "Request builds" not in caught.value.detail


@pytest.mark.parametrize(
    "name",
    ["", "timestamp", "../root.json", "1.timestamp.json.json", "snapshot.json", "0.root.json", "9.root.json"],
)
def test_metadata_that_is_not_there(tenant: Tenant, name: str) -> None:
    initialise_repository(tenant=tenant)
    assert selectors.tuf_metadata(tenant, name) is None
    assert selectors.tuf_target(tenant, name) is None


def test_a_lost_request_for_a_signature_is_repeated(
    tenant: Tenant, version: ModelVersion, actor: Actor
) -> None:
    initialise_repository(tenant=tenant)
    settled(version, "flagship", "ready")
    create_release(version=version, actor=actor)
    now = timezone.now()
    later = now + timedelta(seconds=LEASE_S + 1)
    assert sweep(now=later).get("signatures") is None  # the first message still waits in the outbox
    OutboxMessage.objects.update(sent_at=now)
    assert sweep(now=later)["signatures"] == 1
    assert sweep(now=now + timedelta(seconds=LEASE_S)).get("signatures") is None  # that one is recent
    assert OutboxMessage.objects.count() == 2


def test_no_targets_without_a_repository(tenant: Tenant) -> None:
    with pytest.raises(RepositoryMissing):
        add_targets(tenant=tenant, targets={"a": b"a"})


def test_a_tenant_without_keys_does_not_hold_up_others(
    tenant: Tenant, other_tenant: Tenant, own_state: Path, caplog: Any
) -> None:
    now = timezone.now()
    initialise_repository(tenant=tenant, now=now)
    initialise_repository(tenant=other_tenant, now=now)
    (own_state / "keys" / tenant.slug / "timestamp.pem").unlink()
    assert list(refresh_timestamps(now=now + timedelta(hours=20))) == ["rival"]
    assert "acme" in caplog.text
