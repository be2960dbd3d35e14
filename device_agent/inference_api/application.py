"""Routes of the Open Inference Protocol v2.

| route | answer |
|---|---|
| ``GET /v2`` | name, version, extensions |
| ``GET /v2/health/live``, ``/v2/health/ready`` | 200, empty |
| ``GET /v2/models/{m}[/versions/{v}]`` | inputs and outputs |
| ``GET /v2/models/{m}[/versions/{v}]/ready`` | 200 or 404 |
| ``POST /v2/models/{m}[/versions/{v}]/infer`` | outputs |
| ``POST /v2/repository/index`` | what is served |

Errors are ``{"error": "…"}`` with a 4xx (the request) or 5xx (the device) status.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from device_agent.errors import InferenceError
from device_agent.inference_api.inference import BINARY_HEADER, Meter, describe, infer
from device_agent.runtime import Runtime

log = logging.getLogger(__name__)

SERVER_NAME = "pocketfleet-agent"
LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})


def build_application(runtime: Runtime, *, meter: Meter, version: str, max_request_bytes: int) -> Starlette:
    """The ASGI application.

    Args:
        meter: counts requests for telemetry.
        version: of the agent.
        max_request_bytes: longest body accepted.
    """
    api = _Api(runtime, meter, version, max_request_bytes)
    model = "/v2/models/{model}"
    versioned = model + "/versions/{version}"
    routes = [
        Route("/v2", api.server_metadata),
        Route("/v2/health/live", api.healthy),
        Route("/v2/health/ready", api.healthy),
        Route("/v2/repository/index", api.index, methods=["POST"]),
    ]
    for prefix in (model, versioned):
        routes += [
            Route(prefix, api.model_metadata),
            Route(prefix + "/ready", api.model_ready),
            Route(prefix + "/infer", api.infer, methods=["POST"]),
        ]
    handlers: dict[Any, Any] = {
        InferenceError: _refuse,
        HTTPException: _no_route,
        ClientDisconnect: _gone,
        Exception: _broken,
    }
    return Starlette(routes=routes, exception_handlers=handlers)


class _Api:
    def __init__(self, runtime: Runtime, meter: Meter, version: str, max_request_bytes: int) -> None:
        self._runtime = runtime
        self._meter = meter
        self._version = version
        self._max_request_bytes = max_request_bytes

    async def server_metadata(self, request: Request) -> Response:
        _require_local(request)
        return _json(
            {
                "name": SERVER_NAME,
                "version": self._version,
                "extensions": ["binary_tensor_data", "model_repository"],
            }
        )

    async def healthy(self, request: Request) -> Response:
        _require_local(request)
        return Response()

    async def index(self, request: Request) -> Response:
        _require_local(request)
        return _json(
            [
                {
                    "name": one.manifest.model,
                    "version": str(one.manifest.version),
                    "state": "READY",
                    "reason": "",
                }
                for one in self._runtime.models()
            ]
        )

    async def model_metadata(self, request: Request) -> Response:
        return _json(describe(self._served(request)))

    async def model_ready(self, request: Request) -> Response:
        self._served(request)
        return Response()

    async def infer(self, request: Request) -> Response:
        served = self._served(request)
        body = await self._body(request)
        answer = await infer(
            self._runtime, served, body, request.headers.get(BINARY_HEADER), meter=self._meter
        )
        if answer.json_length is None:
            return Response(answer.body, media_type="application/json")
        headers = {BINARY_HEADER: str(answer.json_length)}
        return Response(answer.body, media_type="application/octet-stream", headers=headers)

    def _served(self, request: Request) -> Any:
        _require_local(request)
        return self._runtime.model(request.path_params["model"], request.path_params.get("version", ""))

    async def _body(self, request: Request) -> bytes:
        if request.headers.get("content-encoding", "identity") != "identity":
            raise InferenceError(
                "compressed requests are not supported", status=415, code="unsupported_encoding"
            )
        pieces, size = [], 0
        async for piece in request.stream():
            size += len(piece)
            if size > self._max_request_bytes:
                raise InferenceError(
                    f"the request is longer than {self._max_request_bytes} bytes",
                    status=413,
                    code="too_large",
                )
            pieces.append(piece)
        return b"".join(pieces)


def _require_local(request: Request) -> None:
    """Only loopback names: a web page must not reach the API by re-pointing its own host name."""
    host = request.headers.get("host", "")
    name = host if host.endswith("]") else host.rsplit(":", 1)[0]
    if name not in LOCAL_HOSTS:
        raise InferenceError("this API answers to loopback names only", status=403, code="not_local")


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _error(message: str, status: int) -> Response:
    return Response(msgspec.json.encode({"error": message}), status, media_type="application/json")


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, InferenceError)
    return _error(str(error), error.status)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(f"{request.method} {request.url.path}: {error.detail}", error.status_code)


async def _gone(request: Request, error: Exception) -> Response:
    return _error("the client went away", 400)


async def _broken(request: Request, error: Exception) -> Response:
    log.error("a request failed unexpectedly", exc_info=error)
    return _error("the agent failed; see its log", 500)
