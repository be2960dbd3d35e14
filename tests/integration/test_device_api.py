"""The device API as agents see it: real keys, real requests, and everything that must be refused."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.test import Client
from django.utils import timezone

from blobstore import BlobStore
from device_agent.protocol import PROTOCOL_HEADER, PROTOCOL_VERSION
from device_agent.protocol.canonical import canonical_json, sha256_hex, unb64
from device_agent.protocol.messages import (
    ASSIGNMENT_KEYS_TARGET,
    Accelerator,
    AssignedModel,
    Assignment,
    AssignmentKeys,
    CapabilityReport,
    Event,
    Report,
)
from fleet.devices import selectors as device_selectors
from fleet.devices import services as devices
from fleet.devices import tokens
from fleet.devices.models import AcceleratorFigure, Device, Nonce, ProvisioningKey
from fleet.devices.models import CapabilityReport as CapabilityRow
from fleet.rollouts import services as rollouts
from fleet.rollouts.models import Assignment as AssignmentRow
from fleet.rollouts.models import Rollout
from fleet.telemetry.models import InferenceRow
from models_registry.models import Build, TenantBlob, TufTarget
from models_registry.services.signing import initialise_repository
from quantize_worker.contract import blob_key
from tenancy.models import App, Tenant
from tests.factories import (
    ACTOR,
    DeviceKey,
    capability_report,
    inference,
    install_event,
    make_class,
    make_release,
    self_test,
)

pytestmark = pytest.mark.django_db(databases="__all__")

API = "/api/device/v1/"


@dataclass
class Phone:
    """An agent's side of the device API: its key, and plain HTTP."""

    provisioning_key: str
    server: str
    key: DeviceKey = field(default_factory=DeviceKey)
    protocol: str | None = str(PROTOCOL_VERSION)
    client: Client = field(default_factory=lambda: Client(raise_request_exception=False))
    device: str = ""
    token: str = ""

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        if self.protocol is not None:
            headers.setdefault(PROTOCOL_HEADER, self.protocol)
        if self.token:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        data = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        return self.client.generic(
            method, path if path.startswith("/") else API + path, data,
            content_type="application/json", headers=headers,
        )  # fmt: skip

    def nonce(self) -> str:
        return str(self.call("POST", "nonce").json()["nonce"])

    def enroll(self, **changes: Any) -> Any:
        nonce = changes.pop("nonce", None) or self.nonce()
        server = changes.pop("server", self.server)
        body = self.key.enrolment(nonce, provisioning_key=self.provisioning_key, server=server)
        response = self.call("POST", "enroll", body | changes)
        if response.status_code == 200:
            self.device = response.json()["device"]
        return response

    def ask_token(self, **changes: Any) -> Any:
        nonce = changes.pop("nonce", None) or self.nonce()
        server = changes.pop("server", self.server)
        body = self.key.token(nonce, device=self.device, server=server)
        return self.call("POST", "token", body | changes)

    def join(self) -> Phone:
        assert self.enroll().status_code == 200
        self.token = self.ask_token().json()["token"]
        return self

    @property
    def row(self) -> Device:
        return Device.objects.select_related("tenant").get(pk=self.device)


def problem(response: Any) -> tuple[int, str]:
    """Status and code of a problem document, which must be a well-formed one."""
    assert response["Content-Type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == response.status_code
    assert document["title"]
    assert document["detail"]
    assert response[PROTOCOL_HEADER] == str(PROTOCOL_VERSION)
    return response.status_code, document["code"]


def provision(tenant: Tenant, **options: Any) -> str:
    return devices.create_provisioning_key(tenant=tenant, name="test", actor=ACTOR, **options)[1]


@pytest.fixture
def phone(tenant: Tenant, settings: Any) -> Phone:
    return Phone(provision(tenant), settings.PUBLIC_URL)


@pytest.fixture
def stranger(other_tenant: Tenant, settings: Any) -> Phone:
    """An accepted device of another tenant."""
    return Phone(provision(other_tenant), settings.PUBLIC_URL).join()


# -- identity


def test_enrolment_token_and_a_first_call(phone: Phone, tenant: Tenant) -> None:
    answer = phone.enroll()
    assert answer.json() == {"device": phone.device, "tenant": str(tenant.pk), "state": "accepted"}
    granted = phone.ask_token().json()
    assert granted["expires_in_s"] == 900
    assert abs(granted["server_time"] - timezone.now().timestamp()) < 60
    phone.token = granted["token"]
    assert phone.call("GET", "desired").status_code == 200
    assert phone.row.seen.last_seen_at <= timezone.now()


def test_a_nonce_serves_once(phone: Phone) -> None:
    nonce = phone.nonce()
    assert phone.enroll(nonce=nonce).status_code == 200
    assert problem(phone.enroll(nonce=nonce)) == (403, "nonce_invalid")
    assert problem(phone.ask_token(nonce=nonce)) == (403, "nonce_invalid")


def test_a_nonce_is_used_up_even_by_a_refused_request(phone: Phone) -> None:
    nonce = phone.nonce()
    assert problem(phone.enroll(nonce=nonce, signature="AAAA")) == (403, "signature_invalid")
    assert problem(phone.enroll(nonce=nonce)) == (403, "nonce_invalid")


def test_an_expired_or_invented_nonce_is_refused(phone: Phone) -> None:
    nonce = phone.nonce()
    Nonce.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert problem(phone.enroll(nonce=nonce)) == (403, "nonce_invalid")
    assert problem(phone.enroll(nonce="invented")) == (403, "nonce_invalid")
    phone.nonce()  # which also clears away what has expired
    assert Nonce.objects.count() == 1


def test_a_signature_of_another_key_or_for_another_server_is_refused(phone: Phone) -> None:
    assert problem(phone.enroll(public_key=DeviceKey().public)) == (403, "signature_invalid")
    assert problem(phone.enroll(server="https://evil.example")) == (403, "signature_invalid")
    assert problem(phone.enroll(public_key="!!")) == (403, "signature_invalid")
    assert problem(phone.enroll(public_key="AAAA")) == (403, "signature_invalid")
    assert Device.objects.count() == 0


def test_an_enrolment_signature_is_no_token_request(phone: Phone) -> None:
    phone.enroll()
    nonce = phone.nonce()
    signature = phone.key.enrolment(nonce, provisioning_key="x", server=phone.server)["signature"]
    assert problem(phone.ask_token(nonce=nonce, signature=signature)) == (403, "signature_invalid")
    assert problem(phone.ask_token(server="https://evil.example")) == (403, "signature_invalid")
    assert problem(phone.ask_token(device=str(uuid.uuid4()))) == (403, "signature_invalid")
    assert problem(phone.ask_token(device="-" * 36)) == (403, "signature_invalid")


@pytest.mark.parametrize("key", ["", "pfk_", "pfk_00000000_invented", "nonsense"])
def test_an_unknown_provisioning_key_is_refused(phone: Phone, key: str) -> None:
    assert problem(phone.enroll(provisioning_key=key)) == (403, "provisioning_key_invalid")


def test_a_revoked_or_expired_provisioning_key_is_refused(phone: Phone) -> None:
    key = ProvisioningKey.objects.get()
    ProvisioningKey.objects.update(expires_at=timezone.now())
    assert problem(phone.enroll()) == (403, "provisioning_key_invalid")
    ProvisioningKey.objects.update(expires_at=None)
    devices.revoke_provisioning_key(key=key, actor=ACTOR)
    assert problem(phone.enroll()) == (403, "provisioning_key_invalid")


def test_the_same_key_again_is_the_same_device(phone: Phone) -> None:
    first = phone.enroll().json()
    assert phone.enroll(name="renamed").json() == first
    assert Device.objects.count() == 1


def test_a_device_never_moves_to_another_tenant(phone: Phone, tenant: Tenant, other_tenant: Tenant) -> None:
    phone.enroll()
    phone.provisioning_key = provision(other_tenant)
    assert problem(phone.enroll()) == (409, "device_belongs_elsewhere")
    assert phone.row.tenant == tenant


def test_a_pending_device_waits_for_an_operator(phone: Phone, tenant: Tenant) -> None:
    phone.provisioning_key = provision(tenant, accept=False)
    assert phone.enroll().json()["state"] == "pending"
    assert problem(phone.ask_token()) == (403, "device_pending")
    devices.reject_device(device=phone.row, actor=ACTOR)
    assert problem(phone.ask_token()) == (403, "device_rejected")
    devices.accept_device(device=phone.row, actor=ACTOR)
    assert phone.ask_token().status_code == 200


def test_decommissioning_holds_at_once_and_for_good(phone: Phone) -> None:
    phone.join()
    assert phone.call("GET", "desired").status_code == 200
    devices.decommission_device(device=phone.row, actor=ACTOR)
    for method, path in (("GET", "desired"), ("GET", "assignment"), ("GET", "blobs/" + "0" * 64)):
        assert problem(phone.call(method, path)) == (403, "device_decommissioned")
    assert problem(phone.ask_token()) == (403, "device_decommissioned")
    assert phone.enroll().json()["state"] == "decommissioned"


def test_tokens_that_are_not_believed(phone: Phone, settings: Any) -> None:
    phone.join()
    row, good = phone.row, phone.token
    claims: dict[str, Any] = {
        "device": row.pk,
        "tenant": row.tenant_id,
        "expires": int(timezone.now().timestamp()) + 60,
        "key_epoch": settings.TOKEN_KEY_EPOCH,
        "token_epoch": row.token_epoch,
    }

    def code(secret: bytes = device_selectors.token_secret(), **changes: Any) -> tuple[int, str]:
        phone.token = tokens.mint(secret, **claims | changes)
        return problem(phone.call("GET", "desired"))

    assert code(expires=int(timezone.now().timestamp()) - 1) == (401, "token_expired")
    assert code(secret=b"another") == (401, "token_invalid")
    assert code(tenant=uuid.uuid4()) == (401, "token_invalid")
    assert code(token_epoch=row.token_epoch + 1) == (401, "token_revoked")
    assert code(key_epoch=settings.TOKEN_KEY_EPOCH + 1) == (401, "token_revoked")
    phone.token = good
    assert phone.call("GET", "desired").status_code == 200
    settings.TOKEN_KEY_EPOCH += 1
    assert problem(phone.call("GET", "desired")) == (401, "token_revoked")
    for header in ("", "Bearer", "Bearer ", "Basic abc", f"Bearer {good} more", "Bearer pft1.ä.ö"):
        response = phone.call("GET", "desired", Authorization=header)
        assert problem(response) == (401, "token_invalid")
        assert response["WWW-Authenticate"] == "Bearer"


# -- protocol and form


@pytest.mark.parametrize("difference", [-1, 0, 1])
def test_one_version_apart_works(phone: Phone, difference: int) -> None:
    phone.protocol = str(PROTOCOL_VERSION + difference)
    phone.join()
    response = phone.call("GET", "desired")
    assert response.status_code == 200
    assert response[PROTOCOL_HEADER] == str(PROTOCOL_VERSION)


@pytest.mark.parametrize(
    "protocol", [str(PROTOCOL_VERSION + 2), "99", "-1", "", "one", "1.0", "9" * 5000, None]
)
def test_further_apart_is_refused_with_what_to_do(phone: Phone, protocol: str | None) -> None:
    phone.protocol = protocol
    for method, path in (("POST", "nonce"), ("GET", "desired"), ("POST", "reports"), ("GET", "nowhere")):
        response = phone.call(method, path)
        assert problem(response) == (426, "protocol_unsupported")
        assert str(PROTOCOL_VERSION) in response.json()["detail"]


def test_two_versions_behind_is_refused(phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.device_api.protocol.PROTOCOL_VERSION", 3)
    phone.protocol = "1"
    response = phone.call("POST", "nonce")
    assert response.status_code == 426
    assert "Update the agent" in response.json()["detail"]
    phone.protocol = "2"
    assert phone.call("POST", "nonce").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "nonce"), ("GET", "enroll"), ("POST", "capabilities"), ("POST", "desired"), ("GET", "reports")],
)
def test_the_wrong_method_is_named(phone: Phone, method: str, path: str) -> None:
    assert problem(phone.join().call(method, path)) == (405, "method_not_allowed")


@pytest.mark.parametrize("path", ["", "nowhere", "desired/more", "blobs/", "metadata/a/b"])
def test_an_unknown_call_is_a_problem_document(phone: Phone, path: str) -> None:
    assert problem(phone.join().call("GET", path))[0] == 404


HOSTILE = {
    "nothing": b"",
    "not json": b"hello",
    "cut off": b'{"boot": "',
    "trailing": b"{} {}",
    "not utf-8": b'{"boot": "\xff\xfe"}',
    "cut utf-8": b'{"boot": "\xc3"}',
    "NaN": b'{"boot": NaN}',
    "infinity": b'{"boot": Infinity}',
    "huge number": b'{"first_sequence": 1e999}',
    "huge integer": b'{"first_sequence": ' + b"9" * 400 + b"}",
    "surrogate": b'{"boot": "\\ud800"}',
    "NUL": b'{"boot": "\\u0000"}',
    "deep": b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "array": b"[]",
    "null": b"null",
    "number": b"7",
    "empty object": b"{}",
    "wrong types": b'{"boot": 1, "first_sequence": "x", "events": {}, "public_key": [], "device": {}}',
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bodies_are_refused_never_a_failure(phone: Phone, body: bytes) -> None:
    phone.join()
    for method, path in (("POST", "enroll"), ("POST", "token"), ("PUT", "capabilities"), ("POST", "reports")):
        status, code = problem(phone.call(method, path, body))
        assert (status, code) in {
            (400, "malformed_json"),
            (400, "invalid_message"),
            (413, "body_too_large"),
        }


def test_a_body_that_is_too_big_is_refused(phone: Phone) -> None:
    phone.join()
    for method, path, size in (
        ("POST", "enroll", 9_000),
        ("POST", "token", 9_000),
        ("PUT", "capabilities", 70_000),
        ("POST", "reports", 1_100_000),
        ("POST", "reports", 20_000_000),
    ):
        assert problem(phone.call(method, path, b"x" * size)) == (413, "body_too_large")


def test_unknown_fields_are_ignored(phone: Phone) -> None:
    """A newer agent may say more."""
    phone.join()
    body = msgspec.to_builtins(capability_report()) | {"new_in_the_next_version": {"a": [1]}}
    assert phone.call("PUT", "capabilities", body).status_code == 204


# -- capabilities


def test_capabilities_are_promoted_classified_and_kept_once(phone: Phone, tenant: Tenant) -> None:
    make_class(tenant, "entry", rank=2, filter="ram_mb < 4096")
    make_class(tenant, "npu", rank=1, filter='accelerator == "npu"', emulated=True)
    phone.join()
    assert phone.call("PUT", "capabilities", capability_report()).status_code == 204
    row = phone.row
    assert (row.class_name, row.soc, row.ram_mb, row.accelerators) == ("entry", "test-soc-1", 3072, ["cpu"])
    report = with_npu()
    for _ in range(2):
        assert phone.call("PUT", "capabilities", report).status_code == 204
    row = phone.row
    assert (row.class_name, row.accelerators, row.emulated) == ("npu", ["cpu", "npu"], True)
    assert CapabilityRow.objects.count() == 2
    assert CapabilityRow.objects.get(current=True).report["accelerators"][1]["kind"] == "npu"
    measured = AcceleratorFigure.objects.filter(metric="int8_gops").order_by("accelerator")
    assert list(measured.values_list("accelerator", "value", "emulated")) == [
        ("cpu", 40.0, False),
        ("npu", 900.0, True),
    ]


def with_npu() -> CapabilityReport:
    npu = Accelerator(
        name="npu", kind="npu", execution_provider="CPUExecutionProvider", data_types=["int8"],
        emulated=True, int8_gops=900.0,
    )  # fmt: skip
    return capability_report(accelerators=[*capability_report().accelerators, npu])


def test_declared_and_measured_figures_stand_side_by_side(phone: Phone, tenant: Tenant) -> None:
    phone.join().call("PUT", "capabilities", with_npu())
    for accelerator in ("cpu", "npu"):
        devices.declare_figure(
            tenant=tenant, soc="test-soc-1", accelerator=accelerator, metric="int8_gops", value=1000.0,
            source="data sheet", actor=ACTOR,
        )  # fmt: skip
    figures = {
        (figure.accelerator, figure.emulated): (figure.measured, figure.declared)
        for figure in device_selectors.capability_figures(tenant)
        if figure.metric == "int8_gops"
    }
    assert figures == {
        ("cpu", False): (40.0, 1000.0),
        ("npu", True): (900.0, None),  # an emulated one is never beside a declaration
        ("npu", False): (None, 1000.0),
    }


@pytest.mark.parametrize(
    "change",
    [
        {"ram_mb": 2**40},
        {"storage_free_mb": 2**31},
        {"tags": ["a" * 63 + "\n"]},
        {"accelerators": [{"fp32_gflops": 1e308}]},
        {"accelerators": [{"fp32_gflops": -1}]},
        {"accelerators": []},
        {"soc": "x" * 101},
    ],
)
def test_capabilities_that_no_row_could_hold_are_refused(phone: Phone, change: dict[str, Any]) -> None:
    body = msgspec.to_builtins(capability_report())
    if change.get("accelerators"):
        change = {"accelerators": [body["accelerators"][0] | change["accelerators"][0]]}
    assert problem(phone.join().call("PUT", "capabilities", body | change))[0] == 400
    assert phone.row.soc == ""


def test_granted_tags_stay(phone: Phone, tenant: Tenant) -> None:
    phone.provisioning_key = provision(tenant, tags=["lab"])
    phone.join()
    phone.call("PUT", "capabilities", capability_report(tags=["beta"]))
    assert phone.row.tags == ["beta", "lab"]
    phone.call("PUT", "capabilities", capability_report())
    assert phone.row.tags == ["lab"]


# -- desired state and assignment


@pytest.fixture
def rollout(app: App, tenant: Tenant) -> Rollout:
    make_class(tenant, "entry")
    initialise_repository(tenant=tenant)
    release = make_release(app, ["entry"])
    return rollouts.create_rollout(release=release, name="first", policy={"groups": [1.0]}, actor=ACTOR)


def test_a_poll_without_news_is_a_304(phone: Phone, rollout: Rollout) -> None:
    phone.join().call("PUT", "capabilities", capability_report())
    first = phone.call("GET", "desired")
    assert first.json()["models"] == []
    etag = first["ETag"]
    for condition in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        response = phone.call("GET", "desired", **{"If-None-Match": condition})
        assert (response.status_code, response.content, response["ETag"]) == (304, b"", etag)
        assert response[PROTOCOL_HEADER] == str(PROTOCOL_VERSION)
    rollouts.start_rollout(rollout=rollout, actor=ACTOR)
    changed = phone.call("GET", "desired", **{"If-None-Match": etag})
    assert changed.status_code == 200
    (model,) = changed.json()["models"]
    assert (model["model"], model["rollout"]) == ("minilm", str(rollout.pk))
    assert changed.json()["generation"] > first.json()["generation"]
    assert changed["ETag"].strip('"').startswith(f"{changed.json()['generation']}-")


def test_the_assignment_is_this_devices_and_signed_by_a_published_key(
    phone: Phone, rollout: Rollout, tenant: Tenant
) -> None:
    phone.join().call("PUT", "capabilities", capability_report())
    rollouts.start_rollout(rollout=rollout, actor=ACTOR)
    envelope = phone.call("GET", "assignment").json()
    body = bytes(TufTarget.objects.get(tenant=tenant, path=ASSIGNMENT_KEYS_TARGET).body)
    (key,) = msgspec.json.decode(body, type=AssignmentKeys).keys
    (signature,) = envelope["signatures"]
    assert signature["keyid"] == key.keyid
    Ed25519PublicKey.from_public_bytes(unb64(key.public)).verify(
        bytes.fromhex(signature["sig"]), canonical_json(envelope["signed"])
    )
    document = msgspec.convert(envelope["signed"], Assignment)
    assert (document.device, document.tenant) == (phone.device, str(tenant.pk))
    entry = rollout.release.entries.get()
    (model,) = document.models
    assert (model.target, model.sha256, model.length) == (
        entry.target_path,
        entry.manifest_sha256,
        entry.manifest_length,
    )


# -- reports


def test_a_report_moves_the_rollout_and_repeats_are_harmless(phone: Phone, rollout: Rollout) -> None:
    phone.join().call("PUT", "capabilities", capability_report())
    rollouts.start_rollout(rollout=rollout, actor=ACTOR)
    signed = phone.call("GET", "assignment").json()["signed"]
    offer = msgspec.convert(signed["models"][0], AssignedModel)
    now = timezone.now()
    events: list[Event] = [
        install_event(now, offer, "downloading"),
        install_event(now, offer, "active", self_test=self_test()),
        inference(uuid.UUID(offer.build), now, latency_ms=7),
    ]
    report = Report(boot=str(uuid.uuid4()), first_sequence=5, events=events)
    for _ in range(3):
        response = phone.call("POST", "reports", report)
        assert (response.status_code, response.json()) == (200, {"acknowledged": 7})
    assert AssignmentRow.objects.get().state == "active"
    assert InferenceRow.objects.count() == 1
    rollout.refresh_from_db()
    assert rollout.state == "finished"  # without waiting for the periodic step


def test_a_report_for_another_tenants_rollout_changes_nothing(
    phone: Phone, rollout: Rollout, stranger: Phone
) -> None:
    phone.join().call("PUT", "capabilities", capability_report())
    rollouts.start_rollout(rollout=rollout, actor=ACTOR)
    offer = msgspec.convert(phone.call("GET", "assignment").json()["signed"]["models"][0], AssignedModel)
    event = install_event(timezone.now(), offer, "failed", failure="internal")
    report = Report(boot=str(uuid.uuid4()), first_sequence=0, events=[event])
    assert stranger.call("POST", "reports", report).json() == {"acknowledged": 0}
    assert AssignmentRow.objects.get().state == "offered"


@pytest.mark.parametrize(
    "change",
    [
        {"boot": "-" * 36},
        {"first_sequence": -1},
        {"first_sequence": 2**60},
        {"events": []},
        {"events": [{"kind": "prompt", "text": "secret"}]},
        {"events": [{"kind": "inference"}]},
    ],
)
def test_reports_that_do_not_fit_are_refused(phone: Phone, change: dict[str, Any]) -> None:
    body = msgspec.to_builtins(
        Report(
            boot=str(uuid.uuid4()),
            first_sequence=0,
            events=[inference(uuid.uuid4(), timezone.now(), latency_ms=7)],
        )
    )
    assert problem(phone.join().call("POST", "reports", body | change))[0] == 400
    assert InferenceRow.objects.count() == 0


# -- metadata, targets and blobs


def claimed_blob(app: App, blobs: BlobStore, content: bytes) -> str:
    digest = sha256_hex(content)
    blobs.put_bytes(content, key=blob_key(digest))
    if not Build.objects.filter(tenant=app.tenant).exists():
        make_release(app, ["entry"])
    build = Build.objects.filter(tenant=app.tenant)[0]
    TenantBlob.objects.create(tenant=app.tenant, sha256=digest, size_bytes=len(content), build=build)
    return digest


def test_a_blob_is_streamed_to_its_tenants_devices_only(
    phone: Phone, stranger: Phone, app: App, blobs: BlobStore
) -> None:
    content = b"chunk" * 100_000
    digest = claimed_blob(app, blobs, content)
    phone.join()
    response = phone.call("GET", f"blobs/{digest}")
    assert b"".join(response.streaming_content) == content
    assert response["Content-Length"] == str(len(content))
    assert response[PROTOCOL_HEADER] == str(PROTOCOL_VERSION)
    assert problem(stranger.call("GET", f"blobs/{digest}")) == (404, "blob_not_found")
    phone.token = ""
    assert problem(phone.call("GET", f"blobs/{digest}")) == (401, "token_invalid")


def test_unclaimed_missing_and_malformed_blobs(phone: Phone, app: App, blobs: BlobStore) -> None:
    phone.join()
    unclaimed = sha256_hex(b"secret")
    blobs.put_bytes(b"secret", key=blob_key(unclaimed))
    lost = claimed_blob(app, blobs, b"lost")
    blobs.delete(blob_key(lost))
    assert problem(phone.call("GET", f"blobs/{unclaimed}")) == (404, "blob_not_found")
    assert problem(phone.call("GET", f"blobs/{lost}")) == (404, "blob_missing")
    for name in (lost.upper(), lost[:-1], lost + "%0A", "..%2f..%2fsecret_key", "%00" * 64):
        assert problem(phone.call("GET", f"{API}blobs/{name}"))[0] == 404


def test_a_store_that_is_no_folder_streams_too(
    phone: Phone, app: App, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with S3: nothing lies in a local file."""
    digest = claimed_blob(app, blobs, b"chunk")
    lost = claimed_blob(app, blobs, b"lost")
    blobs.delete(blob_key(lost))
    monkeypatch.setattr(BlobStore, "local_path", lambda self, key: None)
    phone.join()
    response = phone.call("GET", f"blobs/{digest}")
    assert (b"".join(response.streaming_content), response["Content-Length"]) == (b"chunk", "5")
    assert problem(phone.call("GET", f"blobs/{lost}")) == (404, "blob_missing")


def test_what_is_our_own_fault_is_a_problem_document_too(
    phone: Phone, app: App, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """A broken store or a bug: 5xx with a code, and nothing of the inside shows."""
    digest = claimed_blob(app, blobs, b"chunk")
    phone.join()
    settings.BLOBS_URL = "ftp://nowhere"
    assert problem(phone.call("GET", f"blobs/{digest}")) == (503, "blob_store_unavailable")
    monkeypatch.setattr(rollouts, "desired_for", lambda **_: 1 / 0)
    response = phone.call("GET", "desired")
    assert problem(response) == (500, "internal")
    assert b"division" not in response.content


def test_metadata_and_targets_are_the_tenants_own(
    phone: Phone, stranger: Phone, tenant: Tenant, other_tenant: Tenant
) -> None:
    initialise_repository(tenant=tenant)
    phone.join()
    for name in ("timestamp.json", "1.root.json", "1.snapshot.json"):
        response = phone.call("GET", f"metadata/{name}")
        assert response.status_code == 200
        assert json.loads(response.content)["signed"]
        assert problem(stranger.call("GET", f"metadata/{name}")) == (404, "metadata_not_found")
    target = TufTarget.objects.get(tenant=tenant, path=ASSIGNMENT_KEYS_TARGET)
    folder, _, name = target.path.rpartition("/")
    path = f"targets/{folder}/{target.sha256}.{name}"
    assert phone.call("GET", path).content == bytes(target.body)
    assert problem(stranger.call("GET", path)) == (404, "target_not_found")
    for odd in (
        "metadata/99999999999999999999.root.json",
        "metadata/" + "9" * 5000 + ".root.json",
        "metadata/%00.json",
        "metadata/..%2froot.json",
        "targets/" + "0" * 64 + ".%00",
        "targets/" + "x" * 5000,
    ):
        assert problem(phone.call("GET", API + odd))[0] == 404
