"""Frame of every call: protocol version, method, authentication, body, errors.

Answers carry ``Pocketfleet-Protocol``; errors are RFC 9457 problem+json with a stable code.
Whatever a device sends, it gets a 4xx that says what to do, never a stack trace.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from django.http import HttpRequest, HttpResponse, UnreadablePostError
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from blobstore.errors import BlobError, BlobMissing
from device_agent.protocol import PROTOCOL_HEADER, PROTOCOL_VERSION, compatible
from fleet.devices import selectors, services
from fleet.devices.models import Device
from fleet.errors import Missing, NotAuthenticated, ProtocolUnsupported, Refused, TooLarge, WrongMethod
from tenancy.errors import ProblemError

log = logging.getLogger(__name__)

DRAINED_BYTES = 8 * 2**20

View = Callable[..., HttpResponseBase]
Message = TypeVar("Message", bound=msgspec.Struct)


class StoreUnavailable(ProblemError):
    code = "blob_store_unavailable"
    title = "The blob store does not answer; try again later"
    status = 503


def call(method: str) -> Callable[[View], View]:
    """A call without a token: ``view(request)``."""

    def decorate(view: View) -> View:
        return _framed(method, view)

    return decorate


def device_call(method: str) -> Callable[[View], View]:
    """A call of an accepted device: ``view(request, device)``. Notes that it was seen."""

    def decorate(view: View) -> View:
        @functools.wraps(view)
        def authenticated(request: HttpRequest, **arguments: Any) -> HttpResponseBase:
            now = timezone.now()
            device = selectors.device_for_token(_bearer(request), now)
            services.note_seen(device=device, now=now)
            return view(request, device, **arguments)

        return _framed(method, authenticated)

    return decorate


def _framed(method: str, view: View) -> View:
    @csrf_exempt
    @functools.wraps(view)
    def framed(request: HttpRequest, **arguments: Any) -> HttpResponseBase:
        response = _answer(method, view, request, arguments)
        response[PROTOCOL_HEADER] = str(PROTOCOL_VERSION)
        return response

    return framed


def _answer(method: str, view: View, request: HttpRequest, arguments: dict[str, Any]) -> HttpResponseBase:
    try:
        _check_protocol(request)
        if "\0" in request.path:
            raise Missing("There is no such address. Send it without NUL.", code="unknown_call")
        _check_method(method, request)
        return view(request, **arguments)
    except ProblemError as error:
        return problem(error)
    except BlobMissing:
        return problem(
            Missing("This blob is not in the store. Fetch the metadata again.", code="blob_missing")
        )
    except BlobError:
        log.exception("blob store")
        return problem(StoreUnavailable("The blob store does not answer. Try again later."))
    except Device.DoesNotExist:
        return problem(NotAuthenticated("The device is gone. Enrol again."))
    except Exception:
        log.exception("%s %s", request.method, request.path)
        return problem(ProblemError("The server has logged what went wrong. Try again later."))


def problem(error: ProblemError) -> HttpResponse:
    """The problem document of an error."""
    response = HttpResponse(
        msgspec.json.encode(error.as_problem()),
        status=error.status,
        content_type="application/problem+json",
    )
    if error.status == 401:
        response["WWW-Authenticate"] = "Bearer"
    return response


def _check_protocol(request: HttpRequest) -> None:
    """RFC 9110 wants an Upgrade header beside 426; WSGI forbids it as hop-by-hop, so the detail says it."""
    text = request.headers.get(PROTOCOL_HEADER, "")
    peer = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
    if peer is None:
        raise ProtocolUnsupported(
            f"Send the header {PROTOCOL_HEADER} with the agent's protocol version; this server speaks "
            f"{PROTOCOL_VERSION}.",
            supported=PROTOCOL_VERSION,
        )
    if not compatible(own=PROTOCOL_VERSION, peer=peer):
        older = "agent" if peer < PROTOCOL_VERSION else "server"
        raise ProtocolUnsupported(
            f"The agent speaks protocol {peer}, this server {PROTOCOL_VERSION}; they may differ by one. "
            f"Update the {older}.",
            supported=PROTOCOL_VERSION,
        )


def _check_method(method: str, request: HttpRequest) -> None:
    if request.method != method:
        raise WrongMethod(f"This call is a {method}. Send it as one.", allowed=[method])


def _bearer(request: HttpRequest) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise NotAuthenticated("Send Authorization: Bearer <token>; ask for one with the call token.")
    return token.strip()


def decode(request: HttpRequest, kind: type[Message], *, limit_bytes: int) -> Message:
    """The request's body as a message, strictly: types as declared, unknown fields ignored.

    Raises:
        TooLarge: ``body_too_large``.
        Refused: ``malformed_json`` (not JSON, nested too deep, unfit for storage) or
            ``invalid_message`` (JSON of another shape).
    """
    body = _body(request, limit_bytes)
    if not body:  # WSGI shows no body that comes without a Content-Length
        raise Refused("There is no body. Send one, with its Content-Length.", code="malformed_json")
    if b"\\u0000" in body:  # valid JSON, but PostgreSQL stores no NUL in a text
        raise Refused("The body has a NUL character. Send text without it.", code="malformed_json")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Refused(f"{error}. See the message {kind.__name__}.", code="invalid_message") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise Refused(f"The body is not usable JSON: {reason}.", code="malformed_json") from None


def _drain(request: HttpRequest, length: int) -> None:
    """Read what is still being sent, within reason: who is cut off in the middle sees no answer."""
    try:
        while length <= DRAINED_BYTES and request.read(64 * 1024):
            pass
    except OSError:
        log.debug("the sender of a body of %d bytes is gone", length)


def _body(request: HttpRequest, limit_bytes: int) -> bytes:
    length = request.headers.get("Content-Length", "")
    if length.isdigit() and int(length) > limit_bytes:
        _drain(request, int(length))
        raise TooLarge(f"The body has more than {limit_bytes} bytes. Send smaller batches.")
    try:
        body = request.body
    except UnreadablePostError:
        raise Refused("The body ended early. Send it again.", code="malformed_json") from None
    if len(body) > limit_bytes:
        raise TooLarge(f"The body has more than {limit_bytes} bytes. Send smaller batches.")
    return body
