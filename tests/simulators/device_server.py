"""A control plane as an agent sees it: the device API over real HTTP, with a real TUF repository.

It speaks the wire format of :mod:`device_agent.protocol` and holds everything in memory. Faults
are switched on by attributes of :class:`DeviceServer`.
"""

from __future__ import annotations

import secrets
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from device_agent.protocol import PROTOCOL_HEADER, PROTOCOL_VERSION
from device_agent.protocol.canonical import (
    b64,
    canonical_json,
    enrolment_payload,
    sha256_hex,
    token_payload,
    unb64,
)
from device_agent.protocol.manifest import Manifest
from device_agent.protocol.messages import (
    ASSIGNMENT_KEYS_TARGET,
    AssignedModel,
    Assignment,
    AssignmentKey,
    AssignmentKeys,
    CapabilityReport,
    Desired,
    DesiredModel,
    EnrollRequest,
    EnrollResponse,
    InstallEvent,
    NonceResponse,
    Report,
    ReportAck,
    Signature,
    SignedEnvelope,
    TokenRequest,
    TokenResponse,
)
from tests.simulators.artifacts import Artifact
from tests.simulators.tuf_repository import TufRepository

PREFIX = "/api/device/v1/"
AUDIENCE = "simulated-control-plane"
PROVISIONING_KEY = "pfk_test_secret"


class HttpProblem(Exception):
    def __init__(self, status: int, code: str, detail: str = "") -> None:
        super().__init__(code)
        self.status, self.code, self.detail = status, code, detail


class DeviceServer:
    """Start with ``with DeviceServer() as server:``; agents connect to :attr:`url`.

    Faults: ``offline`` (503 to everything), ``protocol`` (version named in answers), ``corrupt``
    (blobs that arrive damaged), ``drop_after_blobs`` (break connections after that many), and
    ``blob_delay_s``.
    """

    def __init__(self, *, port: int = 0, poll_interval_s: float = 0.3, token_lifetime_s: int = 900) -> None:
        self.tuf = TufRepository()
        self.tenant = str(uuid.uuid4())
        self.key = Ed25519PrivateKey.generate()
        self.keyid = sha256_hex(self.public)
        self.poll_interval_s = poll_interval_s
        self.token_lifetime_s = token_lifetime_s
        self.enroll_state = "accepted"
        self.generation = 1
        self.sequence = 1
        self.assigned: list[AssignedModel] = []
        self.blobs: dict[str, bytes] = {}
        self.devices: dict[str, str] = {}  # public key by device
        self.tokens: dict[str, str] = {}
        self.capabilities: list[CapabilityReport] = []
        self.reports: list[Report] = []
        self.calls: Counter[str] = Counter()
        self.offline = False
        self.protocol: int | None = PROTOCOL_VERSION
        self.corrupt: set[str] = set()
        self.drop_after_blobs: int | None = None
        self.blob_delay_s = 0.0
        self.envelope: Callable[[Assignment], bytes] = self.sign
        self.assignment_lifetime_s = 3600
        self._nonces: set[str] = set()
        self.tuf.add_target(ASSIGNMENT_KEYS_TARGET, self._keys())
        self._http = _QuietServer(("127.0.0.1", port), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> DeviceServer:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    # -- what an operator does ----------------------------------------------------------------

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def publish(self, artifact: Artifact) -> AssignedModel:
        """Make an artifact downloadable and signed; returns how it would be assigned."""
        return self.publish_manifest(artifact.manifest, artifact.manifest.encode(), artifact.blobs)

    def publish_manifest(self, manifest: Manifest, encoded: bytes, blobs: dict[str, bytes]) -> AssignedModel:
        path = f"builds/{manifest.build}/manifest.json"
        self.tuf.add_target(path, encoded)
        self.blobs |= blobs
        return AssignedModel(
            model=manifest.model,
            version=manifest.version,
            rollout=str(uuid.uuid4()),
            build=manifest.build,
            target=path,
            sha256=sha256_hex(encoded),
            length=len(encoded),
        )

    def assign(self, *models: AssignedModel) -> None:
        """Change what devices should run."""
        self.assigned = list(models)
        self.generation += 1
        self.sequence += 1

    def roll_out(self, artifact: Artifact) -> AssignedModel:
        """Publish, and assign alone."""
        assigned = self.publish(artifact)
        self.assign(assigned)
        return assigned

    def sign(self, assignment: Assignment) -> bytes:
        """The signed envelope."""
        signed = msgspec.to_builtins(assignment)
        signature = Signature(keyid=self.keyid, sig=self.key.sign(canonical_json(signed)).hex())
        return msgspec.json.encode(SignedEnvelope(signed=signed, signatures=[signature]))

    # -- what was reported --------------------------------------------------------------------

    def install_events(self, model: str = "") -> list[InstallEvent]:
        """Every install event so far, in order."""
        events = [event for report in self.reports for event in report.events]
        return [e for e in events if isinstance(e, InstallEvent) and (not model or e.model == model)]

    # -- the device API -----------------------------------------------------------------------

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        name, _, rest = path.partition("/")
        self.calls[name] += 1
        if self.offline:
            raise HttpProblem(503, "unavailable")
        if name in ("nonce", "enroll", "token"):
            return 200, {}, msgspec.json.encode(getattr(self, f"_{name}")(body))
        device = self._authenticated(headers)
        if name == "metadata":
            return 200, {}, _found(self.tuf.metadata, rest)
        if name == "targets":
            return 200, {}, _found(self.tuf.targets, rest)
        if name == "blobs":
            return 200, {}, self._blob(rest)
        if name == "desired":
            return self._desired(headers)
        if name == "assignment":
            return 200, {}, self.envelope(self._assignment(device))
        if (method, name) == ("PUT", "capabilities"):
            self.capabilities.append(msgspec.json.decode(body, type=CapabilityReport))
            return 204, {}, b""
        if (method, name) == ("POST", "reports"):
            return 200, {}, msgspec.json.encode(self._report(body))
        raise HttpProblem(404, "not_found")

    def _nonce(self, body: bytes) -> NonceResponse:
        nonce = secrets.token_urlsafe(16)
        self._nonces.add(nonce)
        return NonceResponse(nonce=nonce, server=AUDIENCE, expires_in_s=60)

    def _enroll(self, body: bytes) -> EnrollResponse:
        request = msgspec.json.decode(body, type=EnrollRequest)
        payload = enrolment_payload(nonce=request.nonce, public_key=request.public_key, server=AUDIENCE)
        self._prove(request.nonce, request.public_key, request.signature, payload)
        if request.provisioning_key != PROVISIONING_KEY:
            raise HttpProblem(403, "invalid_provisioning_key", "ask the operator for a valid key")
        known = {public: device for device, public in self.devices.items()}
        device = known.get(request.public_key) or str(uuid.uuid4())
        self.devices[device] = request.public_key
        return EnrollResponse(device=device, tenant=self.tenant, state=self.enroll_state)  # type: ignore[arg-type]

    def _token(self, body: bytes) -> TokenResponse:
        request = msgspec.json.decode(body, type=TokenRequest)
        if request.device not in self.devices or self.enroll_state != "accepted":
            raise HttpProblem(403, "not_accepted")
        payload = token_payload(nonce=request.nonce, device=request.device, server=AUDIENCE)
        self._prove(request.nonce, self.devices[request.device], request.signature, payload)
        token = secrets.token_urlsafe(16)
        self.tokens[token] = request.device
        return TokenResponse(token=token, expires_in_s=self.token_lifetime_s, server_time=int(time.time()))

    def _prove(self, nonce: str, public: str, signature: str, payload: bytes) -> None:
        if nonce not in self._nonces:
            raise HttpProblem(401, "invalid_nonce")
        self._nonces.remove(nonce)
        Ed25519PublicKey.from_public_bytes(unb64(public)).verify(unb64(signature), payload)

    def _authenticated(self, headers: Any) -> str:
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            raise HttpProblem(401, "invalid_token")
        return self.tokens[token]

    def _desired(self, headers: Any) -> tuple[int, dict[str, str], bytes]:
        etag = f'"{self.generation}"'
        if headers.get("If-None-Match") == etag:
            return 304, {"ETag": etag}, b""
        models = [
            DesiredModel(model=m.model, version=m.version, rollout=m.rollout, target=m.target)
            for m in self.assigned
        ]
        desired = Desired(generation=self.generation, poll_interval_s=self.poll_interval_s, models=models)
        return 200, {"ETag": etag}, msgspec.json.encode(desired)

    def _assignment(self, device: str) -> Assignment:
        now = int(time.time())
        return Assignment(
            device=device,
            tenant=self.tenant,
            sequence=self.sequence,
            issued=now,
            expires=now + self.assignment_lifetime_s,
            models=self.assigned,
        )

    def _report(self, body: bytes) -> ReportAck:
        report = msgspec.json.decode(body, type=Report)
        if not any((r.boot, r.first_sequence) == (report.boot, report.first_sequence) for r in self.reports):
            self.reports.append(report)
        return ReportAck(acknowledged=report.first_sequence + len(report.events) - 1)

    def _blob(self, sha256: str) -> bytes:
        if self.blob_delay_s:
            time.sleep(self.blob_delay_s)
        if self.drop_after_blobs is not None and self.calls["blobs"] > self.drop_after_blobs:
            raise ConnectionAbortedError
        content = _found(self.blobs, sha256)
        return content[:-1] + bytes([content[-1] ^ 1]) if sha256 in self.corrupt else content

    def _keys(self) -> bytes:
        keys = AssignmentKeys(keys=[AssignmentKey(keyid=self.keyid, public=b64(self.public))])
        return canonical_json(msgspec.to_builtins(keys))


class _QuietServer(ThreadingHTTPServer):
    """Clients that are killed in the middle of an answer are part of the tests."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _found(content: dict[str, bytes], name: str) -> bytes:
    if name not in content:
        raise HttpProblem(404, "not_found", name)
    return content[name]


def _handler(server: DeviceServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                path = self.path.removeprefix(PREFIX)
                status, headers, content = server.answer(self.command, path, self.headers, body)
            except HttpProblem as problem:
                status, headers = problem.status, {"Content-Type": "application/problem+json"}
                content = msgspec.json.encode(
                    {"code": problem.code, "title": problem.code, "status": status, "detail": problem.detail}
                )
            except ConnectionAbortedError:
                self.close_connection = True
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                return
            self.send_response(status)
            if server.protocol is not None:
                self.send_header(PROTOCOL_HEADER, str(server.protocol))
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = _serve

        def log_message(self, format: str, *args: object) -> None:
            return

    return Handler
