"""What the agent refuses to believe: assignments, metadata and manifests that were tampered with."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tuf.api.metadata import TargetFile

from device_agent.errors import (
    AgentError,
    DownloadTooSlow,
    Refused,
    ServerUnreachable,
    TrustError,
    UntrustedAssignment,
    UntrustedMetadata,
)
from device_agent.protocol.canonical import b64, canonical_json, sha256_hex
from device_agent.protocol.manifest import decode_manifest
from device_agent.protocol.messages import ASSIGNMENT_KEYS_TARGET, AssignedModel, Assignment, AssignmentKey
from device_agent.store import Database, VersionFloors
from device_agent.trust import (
    Repository,
    agree,
    assignment_keys,
    trusted_model,
    verify_assignment,
    verify_root,
)
from tests.simulators.artifacts import tiny_artifact
from tests.simulators.tuf_repository import TufRepository

DEVICE, TENANT = str(uuid.uuid4()), str(uuid.uuid4())
NOW = 1_800_000_000.0


class Signer:
    """An assignment key."""

    def __init__(self) -> None:
        self.private = Ed25519PrivateKey.generate()
        raw = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.key = AssignmentKey(keyid=sha256_hex(raw), public=b64(raw))

    def envelope(self, signed: Any) -> bytes:
        signature = self.private.sign(canonical_json(signed)).hex()
        signatures = [{"keyid": self.key.keyid, "sig": signature}]
        return msgspec.json.encode({"signed": signed, "signatures": signatures})


def assigned_model(**changes: Any) -> AssignedModel:
    values: dict[str, Any] = {
        "model": "tiny",
        "version": 1,
        "rollout": str(uuid.uuid4()),
        "build": str(uuid.uuid4()),
        "target": "builds/x/manifest.json",
        "sha256": "a" * 64,
        "length": 10,
    }
    return AssignedModel(**{**values, **changes})


def document(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "device": DEVICE,
        "tenant": TENANT,
        "sequence": 5,
        "issued": int(NOW) - 10,
        "expires": int(NOW) + 100,
        "models": [assigned_model()],
    }
    built: dict[str, Any] = msgspec.to_builtins(Assignment(**{**values, **changes}))
    return built


@pytest.fixture
def signer() -> Signer:
    return Signer()


def verify(envelope: bytes, signer: Signer, *, floor: int = 5, now: float = NOW) -> Assignment:
    return verify_assignment(
        envelope, keys=[signer.key], device=DEVICE, tenant=TENANT, sequence_floor=floor, now=now
    )


class TestAssignment:
    def test_an_honest_one_is_accepted_also_again(self, signer: Signer) -> None:
        assert verify(signer.envelope(document()), signer).sequence == 5

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"device": str(uuid.uuid4())}, "another device"),
            ({"tenant": str(uuid.uuid4())}, "another tenant"),
            ({"sequence": 4}, "older than 5"),
            ({"expires": int(NOW)}, "expired"),
            ({"models": [assigned_model(), assigned_model()]}, "twice"),
        ],
    )
    def test_a_rule_that_does_not_hold(self, signer: Signer, changes: dict[str, Any], reason: str) -> None:
        with pytest.raises(UntrustedAssignment, match=reason):
            verify(signer.envelope(document(**changes)), signer)

    def test_signed_by_somebody_else(self, signer: Signer) -> None:
        with pytest.raises(UntrustedAssignment, match="no trusted key"):
            verify(Signer().envelope(document()), signer)

    def test_somebody_else_under_the_trusted_keyid(self, signer: Signer) -> None:
        other = Signer()
        other.key = msgspec.structs.replace(other.key, keyid=signer.key.keyid)
        with pytest.raises(UntrustedAssignment, match="no trusted key"):
            verify(other.envelope(document()), signer)

    def test_changed_after_signing(self, signer: Signer) -> None:
        envelope = msgspec.json.decode(signer.envelope(document()))
        envelope["signed"]["models"][0]["sha256"] = "b" * 64
        with pytest.raises(UntrustedAssignment, match="no trusted key"):
            verify(msgspec.json.encode(envelope), signer)

    @pytest.mark.parametrize("signature", ["", "zz", "00" * 64])
    def test_signatures_that_are_none(self, signer: Signer, signature: str) -> None:
        signatures = [{"keyid": signer.key.keyid, "sig": signature}]
        envelope = msgspec.json.encode({"signed": document(), "signatures": signatures})
        with pytest.raises(UntrustedAssignment, match="no trusted key"):
            verify(envelope, signer)

    def test_a_key_that_is_none(self, signer: Signer) -> None:
        broken = AssignmentKey(keyid=signer.key.keyid, public="AAAA")
        with pytest.raises(UntrustedAssignment, match="no trusted key"):
            verify_assignment(
                signer.envelope(document()),
                keys=[broken],
                device=DEVICE,
                tenant=TENANT,
                sequence_floor=0,
                now=NOW,
            )

    def test_one_of_several_signatures_is_enough(self, signer: Signer) -> None:
        envelope = msgspec.json.decode(signer.envelope(document()))
        stranger = msgspec.json.decode(Signer().envelope(document()))
        envelope["signatures"] = stranger["signatures"] + envelope["signatures"]
        assert verify(msgspec.json.encode(envelope), signer).device == DEVICE

    @pytest.mark.parametrize(
        "envelope",
        [b"", b"[]", b'{"signed": {}}', b'{"signed": {"x": 1.5}, "signatures": []}', b"[" * 100_000],
    )
    def test_no_envelope(self, signer: Signer, envelope: bytes) -> None:
        with pytest.raises(UntrustedAssignment, match="not a signed envelope"):
            verify(envelope, signer)

    @pytest.mark.parametrize("changes", [{"_type": "root"}, {"device": "me"}, {"sequence": "5"}])
    def test_signed_but_no_assignment(self, signer: Signer, changes: dict[str, Any]) -> None:
        with pytest.raises(UntrustedAssignment, match="not an assignment"):
            verify(signer.envelope({**document(), **changes}), signer)

    def test_it_must_agree_with_tuf(self) -> None:
        assigned = assigned_model()
        agree(assigned, sha256=assigned.sha256, length=assigned.length)
        for sha256, length in ((None, 10), ("b" * 64, 10), (assigned.sha256, 11)):
            with pytest.raises(UntrustedAssignment):
                agree(assigned, sha256=sha256, length=length)


class Network:
    """Serves a TUF repository's files; ``fault`` may change or refuse them."""

    def __init__(self, tuf: TufRepository) -> None:
        self.tuf = tuf
        self.fault: Callable[[str, bytes], bytes] = lambda name, content: content
        self.fetched: list[str] = []

    def metadata(self, name: str) -> Iterator[bytes]:
        return self._serve(self.tuf.metadata, name)

    def target(self, name: str) -> Iterator[bytes]:
        return self._serve(self.tuf.targets, name)

    def _serve(self, files: dict[str, bytes], name: str) -> Iterator[bytes]:
        self.fetched.append(name)
        if name not in files:
            raise Refused(code="not_found", status=404, detail=name)
        yield self.fault(name, files[name])


@pytest.fixture(scope="module")
def published() -> TufRepository:
    """A repository that tests only read."""
    tuf = TufRepository()
    tuf.add_target("a/b.json", b"hello")
    return tuf


@pytest.fixture
def floors(tmp_path: Path) -> VersionFloors:
    return VersionFloors(Database(tmp_path / "state.db"))


def repository(
    network: Network,
    floors: VersionFloors,
    folder: Path,
    *,
    root: bytes | None = None,
    clock: Callable[[], float] = time.time,
) -> Repository:
    return Repository(
        folder / "tuf",
        root=root or network.tuf.root,
        metadata=network.metadata,
        target=network.target,
        floors=floors,
        clock=clock,
    )


class TestMetadata:
    def test_targets_are_found_and_cached(
        self, published: TufRepository, floors: VersionFloors, tmp_path: Path
    ) -> None:
        network = Network(published)
        first = repository(network, floors, tmp_path)
        first.refresh()
        target = first.fetch("a/b.json")
        assert (target.content, target.length) == (b"hello", 5)
        assert first.find("a/none.json") is None
        network.fetched.clear()
        again = repository(network, floors, tmp_path)
        again.refresh()
        assert again.fetch("a/b.json").content == b"hello"
        assert network.fetched == ["2.root.json", "timestamp.json"]

    def test_a_root_of_somebody_else(
        self, published: TufRepository, floors: VersionFloors, tmp_path: Path
    ) -> None:
        stranger = repository(Network(published), floors, tmp_path, root=TufRepository().root)
        with pytest.raises(UntrustedMetadata):
            stranger.refresh()

    def test_no_root_at_all(self, published: TufRepository, floors: VersionFloors, tmp_path: Path) -> None:
        with pytest.raises(UntrustedMetadata):
            repository(Network(published), floors, tmp_path, root=b"{}")

    @pytest.mark.parametrize("name", ["timestamp.json", "2.snapshot.json", "1.targets.json"])
    def test_tampered_metadata(
        self, published: TufRepository, floors: VersionFloors, tmp_path: Path, name: str
    ) -> None:
        network = Network(published)
        network.fault = lambda n, content: (
            content.replace(b'"expires":"20', b'"expires":"21') if n == name else content
        )
        assert name in published.metadata
        with pytest.raises(UntrustedMetadata):
            repository(network, floors, tmp_path).refresh()

    def test_a_tampered_target(self, published: TufRepository, floors: VersionFloors, tmp_path: Path) -> None:
        network = Network(published)
        network.fault = lambda name, content: b"HELLO" if name.endswith("b.json") else content
        repo = repository(network, floors, tmp_path)
        repo.refresh()
        with pytest.raises(UntrustedMetadata):
            repo.fetch("a/b.json")

    def test_endless_metadata(self, published: TufRepository, floors: VersionFloors, tmp_path: Path) -> None:
        network = Network(published)
        network.fault = lambda name, content: content + b" " * 20_000 if name == "timestamp.json" else content
        with pytest.raises(UntrustedMetadata):
            repository(network, floors, tmp_path).refresh()

    def test_an_unknown_target(self, published: TufRepository, floors: VersionFloors, tmp_path: Path) -> None:
        repo = repository(Network(published), floors, tmp_path)
        repo.refresh()
        with pytest.raises(UntrustedMetadata, match="no target"):
            repo.fetch("a/none.json")

    def test_rollback_is_refused_even_when_the_cache_was_lost(
        self, floors: VersionFloors, tmp_path: Path
    ) -> None:
        tuf = TufRepository()
        old = dict(tuf.metadata)
        tuf.add_target("x", b"1")
        network = Network(tuf)
        repository(network, floors, tmp_path / "one").refresh()
        tuf.metadata = old  # all of it correctly signed, but from before
        with pytest.raises(UntrustedMetadata, match="went back"):
            repository(network, floors, tmp_path / "two").refresh()

    def test_zeroed_cache_files_do_no_harm(self, floors: VersionFloors, tmp_path: Path) -> None:
        network = Network(TufRepository())
        repository(network, floors, tmp_path).refresh()
        for path in (tmp_path / "tuf").rglob("*.json"):
            path.write_bytes(b"\0" * 100)
        repository(network, floors, tmp_path).refresh()

    def test_expired_metadata(self, floors: VersionFloors, tmp_path: Path) -> None:
        network = Network(TufRepository(lifetime=timedelta(seconds=-1)))
        with pytest.raises(UntrustedMetadata, match="expired"):
            repository(network, floors, tmp_path).refresh()

    def test_a_clock_that_went_back_does_not_revive_metadata(
        self, published: TufRepository, floors: VersionFloors, tmp_path: Path
    ) -> None:
        floors.raise_time(int(time.time() + timedelta(days=30).total_seconds()))
        repo = repository(Network(published), floors, tmp_path)
        with pytest.raises(UntrustedMetadata, match="clock"):
            repo.refresh()
        assert repo.now > time.time() + 1000

    @pytest.mark.parametrize(
        "error",
        [
            ServerUnreachable("gone"),
            DownloadTooSlow("slow"),
            Refused(code="x", status=403, detail="no"),
        ],
    )
    def test_a_server_that_is_away_is_no_breach_of_trust(
        self, published: TufRepository, floors: VersionFloors, tmp_path: Path, error: AgentError
    ) -> None:
        def fault(name: str, content: bytes) -> bytes:
            if name == "timestamp.json":
                raise error
            return content

        network = Network(published)
        network.fault = fault
        with pytest.raises(type(error)):
            repository(network, floors, tmp_path).refresh()

    def test_a_cache_that_cannot_be_written(
        self, published: TufRepository, floors: VersionFloors, tmp_path: Path
    ) -> None:
        (tmp_path / "tuf" / "metadata" / "root_history" / "1.root.json").mkdir(parents=True)
        with pytest.raises(AgentError, match="cache"):
            repository(Network(published), floors, tmp_path)


class TestRoot:
    def test_a_root_that_holds(self) -> None:
        verify_root(TufRepository().root)

    def test_other_metadata(self) -> None:
        with pytest.raises(UntrustedMetadata, match="timestamp metadata"):
            verify_root(TufRepository().metadata["timestamp.json"])

    @pytest.mark.parametrize(
        "data", [b"", b"{}", b"[]", b'"root"', b"\xff", b'{"signed": {}, "signatures": []}']
    )
    def test_no_metadata(self, data: bytes) -> None:
        with pytest.raises(UntrustedMetadata):
            verify_root(data)

    def test_fewer_signatures_than_its_threshold(self) -> None:
        root = msgspec.json.decode(TufRepository().root)
        del root["signatures"][1]
        with pytest.raises(UntrustedMetadata, match="1/2"):
            verify_root(msgspec.json.encode(root))

    def test_a_change_after_signing(self) -> None:
        root = msgspec.json.decode(TufRepository().root)
        root["signed"]["version"] = 2
        with pytest.raises(UntrustedMetadata, match="0/2"):
            verify_root(msgspec.json.encode(root))


class TestModels:
    @pytest.fixture
    def network(self) -> Network:
        return Network(TufRepository())

    def _assign(self, network: Network, encoded: bytes, manifest: Any, **changes: Any) -> AssignedModel:
        path = f"builds/{manifest.build}/manifest.json"
        network.tuf.add_target(path, encoded)
        return assigned_model(
            **{
                "build": manifest.build,
                "target": path,
                "sha256": sha256_hex(encoded),
                "length": len(encoded),
                **changes,
            }
        )

    def test_assignment_and_tuf_agree(self, network: Network, floors: VersionFloors, tmp_path: Path) -> None:
        manifest = tiny_artifact().manifest
        assigned = self._assign(network, manifest.encode(), manifest)
        assert trusted_model(assigned, repository(network, floors, tmp_path)).manifest == manifest

    @pytest.mark.parametrize(
        "changes", [{"sha256": "b" * 64}, {"length": 1}, {"target": "builds/other/manifest.json"}]
    )
    def test_the_assignment_says_otherwise(
        self, network: Network, floors: VersionFloors, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        manifest = tiny_artifact().manifest
        assigned = self._assign(network, manifest.encode(), manifest, **changes)
        with pytest.raises(UntrustedAssignment):
            trusted_model(assigned, repository(network, floors, tmp_path))

    @pytest.mark.parametrize("changes", [{"model": "other"}, {"version": 2}, {"build": str(uuid.uuid4())}])
    def test_a_manifest_of_something_else(
        self, network: Network, floors: VersionFloors, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        manifest = tiny_artifact().manifest
        assigned = self._assign(network, manifest.encode(), manifest, **changes)
        with pytest.raises(UntrustedAssignment, match="another build"):
            trusted_model(assigned, repository(network, floors, tmp_path))

    @pytest.mark.parametrize(
        "path", ["../../etc/passwd", "/etc/passwd", "a/../../b", "a\\b", "", "a//b", "."]
    )
    def test_a_manifest_that_leaves_its_slot(
        self, network: Network, floors: VersionFloors, tmp_path: Path, path: str
    ) -> None:
        manifest = tiny_artifact().manifest
        manifest.files[0].path = manifest.entry = path
        assigned = self._assign(network, manifest.encode(), manifest)
        with pytest.raises(UntrustedMetadata, match="leaves the slot"):
            trusted_model(assigned, repository(network, floors, tmp_path))

    @pytest.mark.parametrize("tolerance", [0, -1_000_000])
    def test_a_self_test_that_cannot_fail(
        self, network: Network, floors: VersionFloors, tmp_path: Path, tolerance: int
    ) -> None:
        manifest = tiny_artifact().manifest
        manifest.golden.min_cosine_ppm = tolerance
        assigned = self._assign(network, manifest.encode(), manifest)
        with pytest.raises(UntrustedMetadata, match="not positive"):
            trusted_model(assigned, repository(network, floors, tmp_path))

    def test_the_smallest_tolerance(self) -> None:
        manifest = tiny_artifact().manifest
        manifest.golden.min_cosine_ppm = 1
        assert decode_manifest(manifest.encode()) == manifest

    def test_a_malformed_manifest(self, network: Network, floors: VersionFloors, tmp_path: Path) -> None:
        manifest = tiny_artifact().manifest
        assigned = self._assign(network, b'{"format_version": 1}', manifest)
        with pytest.raises(UntrustedMetadata, match="refused"):
            trusted_model(assigned, repository(network, floors, tmp_path))

    def test_a_target_without_a_sha256(self, network: Network, floors: VersionFloors, tmp_path: Path) -> None:
        description = TargetFile.from_data("x", b"1", ["sha512"])
        network.tuf.add_target("x", b"1", description=description)
        repo = repository(network, floors, tmp_path)
        with pytest.raises(UntrustedMetadata, match="SHA-256"):
            repo.fetch("x")

    def test_assignment_keys(self, network: Network, floors: VersionFloors, tmp_path: Path) -> None:
        key = Signer().key
        network.tuf.add_target(ASSIGNMENT_KEYS_TARGET, msgspec.json.encode({"keys": [key]}))
        assert assignment_keys(repository(network, floors, tmp_path)) == [key]

    def test_malformed_assignment_keys(self, network: Network, floors: VersionFloors, tmp_path: Path) -> None:
        network.tuf.add_target(ASSIGNMENT_KEYS_TARGET, b'{"keys": 3}')
        with pytest.raises(TrustError, match="malformed"):
            assignment_keys(repository(network, floors, tmp_path))
