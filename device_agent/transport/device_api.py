"""The calls of the device API, with the token's life."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec

from device_agent.errors import ConfigError, Refused, TransportError
from device_agent.protocol.messages import (
    CapabilityReport,
    Desired,
    EnrollRequest,
    EnrollResponse,
    NonceResponse,
    ReportAck,
    TokenRequest,
    TokenResponse,
)
from device_agent.transport.credentials import DeviceKey
from device_agent.transport.http import HttpClient, Response

T = TypeVar("T")
METADATA_LIMIT_BYTES = 8 * 2**20
TARGET_LIMIT_BYTES = 16 * 2**20


class DeviceApi:
    """The server as this device sees it. Safe to call from several threads.

    Args:
        http: the client.
        key: the device's key.
        clock_s: monotonic seconds.
    """

    def __init__(
        self, http: HttpClient, key: DeviceKey, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._http = http
        self._key = key
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._device = ""
        self._token = ""
        self._refresh_at_s = 0.0

    def identify(self, device: str) -> None:
        """Use this device id, which enrolment returned, for tokens."""
        with self._lock:
            self._device, self._token = device, ""

    def enroll(self, *, provisioning_key: str, name: str) -> EnrollResponse:
        """Join the provisioning key's tenant; repeating it is harmless."""
        nonce = self._nonce()
        request = EnrollRequest(
            public_key=self._key.public,
            nonce=nonce.nonce,
            provisioning_key=provisioning_key,
            signature=self._key.sign_enrolment(nonce=nonce.nonce, server=nonce.server),
            name=name,
        )
        answer = self._http.call(
            "POST", "enroll", body=msgspec.json.encode(request), accept=frozenset({200, 201})
        )
        return _decode(answer, EnrollResponse)

    def put_capabilities(self, report: CapabilityReport) -> None:
        """Say what the device is."""
        self._call("PUT", "capabilities", body=msgspec.json.encode(report), accept=frozenset({200, 204}))

    def desired(self, etag: str) -> tuple[Desired, str] | None:
        """What devices of this deployment should run, with its ETag; None when unchanged."""
        headers = {"If-None-Match": etag} if etag else {}
        answer = self._call("GET", "desired", headers=headers, accept=frozenset({200, 304}))
        if answer.status == 304:
            return None
        return _decode(answer, Desired), answer.headers.get("ETag", "")

    def assignment(self) -> bytes:
        """The signed envelope of this device's assignment, unverified."""
        return self._call("GET", "assignment").body

    def report(self, payload: bytes) -> ReportAck:
        """Send one batch."""
        return _decode(self._call("POST", "reports", body=payload, accept=frozenset({200, 202})), ReportAck)

    def metadata(self, name: str) -> Iterator[bytes]:
        """TUF metadata of the tenant, e.g. ``timestamp.json``."""
        return self._stream(f"metadata/{name}", max_bytes=METADATA_LIMIT_BYTES)

    def target(self, name: str) -> Iterator[bytes]:
        """A TUF target, e.g. ``builds/<id>/<sha256>.manifest.json``."""
        return self._stream(f"targets/{name}", max_bytes=TARGET_LIMIT_BYTES)

    def blob(self, sha256: str, *, size_bytes: int) -> Iterator[bytes]:
        """A stored chunk of known size."""
        return self._stream(f"blobs/{sha256}", max_bytes=size_bytes)

    def _nonce(self) -> NonceResponse:
        return _decode(self._http.call("POST", "nonce", accept=frozenset({200, 201})), NonceResponse)

    def _call(self, method: str, path: str, **arguments: Any) -> Response:
        headers = dict(arguments.pop("headers", {}))
        try:
            return self._http.call(method, path, headers=headers | self._authorization(), **arguments)
        except Refused as error:
            if error.status != 401:
                raise
        self._forget_token()
        return self._http.call(method, path, headers=headers | self._authorization(), **arguments)

    def _stream(self, path: str, *, max_bytes: int) -> Iterator[bytes]:
        stream = self._http.stream(path, max_bytes=max_bytes, headers=self._authorization())
        try:
            first = next(stream, b"")
        except Refused as error:
            if error.status != 401:
                raise
            self._forget_token()
            stream = self._http.stream(path, max_bytes=max_bytes, headers=self._authorization())
            first = next(stream, b"")
        yield first
        yield from stream

    def _forget_token(self) -> None:
        with self._lock:
            self._token = ""

    def _authorization(self) -> dict[str, str]:
        with self._lock:
            if not self._token or self._clock_s() >= self._refresh_at_s:
                self._renew()
            return {"Authorization": f"Bearer {self._token}"}

    def _renew(self) -> None:
        if not self._device:
            raise ConfigError("the device is not enrolled yet")
        nonce = self._nonce()
        signature = self._key.sign_token_request(nonce=nonce.nonce, device=self._device, server=nonce.server)
        request = TokenRequest(device=self._device, nonce=nonce.nonce, signature=signature)
        asked_at_s = self._clock_s()
        answer = self._http.call("POST", "token", body=msgspec.json.encode(request))
        token = _decode(answer, TokenResponse)
        self._token = token.token
        self._refresh_at_s = asked_at_s + token.expires_in_s - min(60.0, token.expires_in_s * 0.2)


def _decode(response: Response, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(response.body, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise TransportError(f"the server's answer is not a {kind.__name__}: {error}") from error
