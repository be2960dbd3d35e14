"""HTTP with limits on everything: time, size, rate and protocol version."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import msgspec
import urllib3

from device_agent.errors import (
    DownloadTooSlow,
    ProtocolUnsupported,
    Refused,
    ResponseTooLarge,
    ServerUnreachable,
    TransportError,
)
from device_agent.protocol import PROTOCOL_HEADER, PROTOCOL_VERSION, compatible
from device_agent.protocol.messages import Problem

API_PREFIX = "/api/device/v1/"
MAX_BODY_BYTES = 4 * 2**20
PIECE_BYTES = 64 * 1024
GRACE_S = 10.0
RETRIES = 3
_TRY_AGAIN = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Response:
    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """Calls of one server.

    Args:
        server: base URL without a trailing slash.
        timeout_s: longest silence within a call.
        minimum_rate_bytes_per_s: slower downloads are given up.
        wait: sleeps, and returns True when the agent is to stop (``threading.Event.wait``).
        backoff_s: seconds before the given retry (from 0).
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        server: str,
        *,
        timeout_s: float,
        minimum_rate_bytes_per_s: int,
        wait: Callable[[float], bool] | None = None,
        backoff_s: Callable[[int], float] = lambda retry: 0.25 * 2.0**retry,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._minimum_rate = minimum_rate_bytes_per_s
        self._wait = wait or threading.Event().wait
        self._backoff_s = backoff_s
        self._clock_s = clock_s
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=min(5.0, timeout_s), read=timeout_s),
            retries=False,
            maxsize=4,
            headers={PROTOCOL_HEADER: str(PROTOCOL_VERSION), "Accept-Encoding": "identity"},
        )

    def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        accept: frozenset[int] = frozenset({200}),
    ) -> Response:
        """One call of the device API, retried while the server is unwell.

        Args:
            path: below the API's prefix.
            accept: statuses to return; others raise.

        Raises:
            ServerUnreachable, ProtocolUnsupported, Refused, ResponseTooLarge.
        """
        for retry in range(RETRIES):
            try:
                response = self._call_once(method, path, body, headers)
                if response.status in accept:
                    return response
                if response.status not in _TRY_AGAIN:
                    raise refusal(response)
                error: TransportError = ServerUnreachable(f"{path}: the server answered {response.status}")
            except ServerUnreachable as unreachable:
                error = unreachable
            if retry + 1 < RETRIES and self._wait(self._backoff_s(retry)):
                break
        raise error

    def stream(
        self, path: str, *, max_bytes: int, headers: Mapping[str, str] | None = None
    ) -> Iterator[bytes]:
        """The body of a GET, piece by piece; not retried.

        Raises (also while it is read):
            ServerUnreachable, Refused: as for :meth:`call`.
            ResponseTooLarge: past ``max_bytes``.
            DownloadTooSlow: under the minimum rate after a grace of 10 s.
        """
        response = self._open("GET", path, None, headers)
        try:
            if response.status != 200:
                raise _failure(path, self._read_all(path, response))
            yield from self._pieces(path, response, max_bytes)
            response.release_conn()
        finally:
            response.close()

    def close(self) -> None:
        self._pool.clear()

    def _call_once(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None
    ) -> Response:
        raw = self._open(method, path, body, headers)
        try:
            response = self._read_all(path, raw)
            raw.release_conn()
        finally:
            raw.close()
        _check_protocol(response)
        return response

    def _open(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None
    ) -> urllib3.BaseHTTPResponse:
        merged = {**self._pool.headers, **(headers or {})}
        if body is not None:
            merged["Content-Type"] = "application/json"
        try:
            return self._pool.request(
                method,
                f"{self._server}{API_PREFIX}{path}",
                body=body,
                headers=merged,
                preload_content=False,
                decode_content=False,
                redirect=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise ServerUnreachable(f"{self._server} cannot be reached: {error}") from error

    def _read_all(self, path: str, response: urllib3.BaseHTTPResponse) -> Response:
        body = b"".join(self._pieces(path, response, MAX_BODY_BYTES))
        return Response(status=response.status, headers=response.headers, body=body)

    def _pieces(self, path: str, response: urllib3.BaseHTTPResponse, max_bytes: int) -> Iterator[bytes]:
        started, received = self._clock_s(), 0
        try:
            while piece := response.read(PIECE_BYTES):
                received += len(piece)
                if received > max_bytes:
                    raise ResponseTooLarge(f"{path}: more than {max_bytes} bytes")
                elapsed = self._clock_s() - started
                if elapsed > GRACE_S + received / self._minimum_rate:
                    raise DownloadTooSlow(f"{path}: {received} bytes in {elapsed:.0f} s")
                yield piece
                if self._wait(0):
                    raise ServerUnreachable(f"{path}: given up because the agent stops")
        except urllib3.exceptions.HTTPError as error:
            raise ServerUnreachable(f"{path}: the connection broke: {error}") from error


def refusal(response: Response) -> TransportError:
    """The error that a response outside the accepted statuses stands for."""
    try:
        problem = msgspec.json.decode(response.body, type=Problem)
    except (msgspec.DecodeError, msgspec.ValidationError):
        problem = Problem(code=f"http_{response.status}", title="", status=response.status)
    if response.status == 426:
        return ProtocolUnsupported(
            f"the server does not speak protocol {PROTOCOL_VERSION} any more: update the agent. {problem.detail}"
        )
    return Refused(
        code=problem.code, status=response.status, detail=problem.detail or problem.title or "refused"
    )


def _failure(path: str, response: Response) -> TransportError:
    if response.status in _TRY_AGAIN:
        return ServerUnreachable(f"{path}: the server answered {response.status}")
    return refusal(response)


def _check_protocol(response: Response) -> None:
    named = response.headers.get(PROTOCOL_HEADER)
    if response.status in _TRY_AGAIN or response.status == 426:
        return  # a proxy's answer, or the server's own refusal: told apart by the caller
    if named is None or not named.isdigit():
        raise ProtocolUnsupported(
            f"the answer names no {PROTOCOL_HEADER}: is this address a Pocketfleet control plane?"
        )
    if not compatible(own=PROTOCOL_VERSION, peer=int(named)):
        raise ProtocolUnsupported(
            f"server speaks protocol {named}, agent {PROTOCOL_VERSION}: update the older of the two"
        )
