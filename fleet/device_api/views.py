"""What agents call: each view decodes, calls one service and renders.

Every call with a token speaks for one device, and sees its tenant's data alone.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

import msgspec
from django.conf import settings
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone

from blobstore import BlobStore, open_store
from blobstore.errors import BlobMissing
from device_agent.protocol import messages
from fleet.device_api.protocol import call, decode, device_call
from fleet.devices import services as devices
from fleet.devices.models import Device
from fleet.devices.services.enrolment import NONCE_LIFETIME
from fleet.errors import Missing
from fleet.rollouts import services as rollouts
from fleet.telemetry import services as telemetry
from models_registry import selectors as registry
from quantize_worker.contract import blob_key

SMALL_BODY_BYTES = 8 * 1024  # enroll, token
CAPABILITIES_BODY_BYTES = 64 * 1024
REPORT_BODY_BYTES = 2**20  # 500 events
FILENAME_LENGTH = 300
_SHA256 = re.compile(r"[0-9a-f]{64}")


@call("POST")
def nonce(request: HttpRequest) -> HttpResponse:
    """A single-use nonce, and the audience to sign it for."""
    now = timezone.now()
    return _json(
        messages.NonceResponse(
            nonce=devices.issue_nonce(now=now),
            server=settings.PUBLIC_URL,
            expires_in_s=int(NONCE_LIFETIME.total_seconds()),
        )
    )


@call("POST")
def enroll(request: HttpRequest) -> HttpResponse:
    """Join the fleet of the provisioning key's tenant."""
    message = decode(request, messages.EnrollRequest, limit_bytes=SMALL_BODY_BYTES)
    device = devices.enroll(request=message, now=timezone.now())
    return _json(
        messages.EnrollResponse(
            device=str(device.pk),
            tenant=str(device.tenant_id),
            state=device.state,  # type: ignore[arg-type]  # the model's choices are the protocol's
        )
    )


@call("POST")
def token(request: HttpRequest) -> HttpResponse:
    """A token for the calls below."""
    message = decode(request, messages.TokenRequest, limit_bytes=SMALL_BODY_BYTES)
    return _json(devices.issue_token(request=message, now=timezone.now()))


@device_call("PUT")
def capabilities(request: HttpRequest, device: Device) -> HttpResponse:
    """Store what the device is, when that changed."""
    report = decode(request, messages.CapabilityReport, limit_bytes=CAPABILITIES_BODY_BYTES)
    devices.store_capabilities(device=device, report=report)
    return HttpResponse(status=204)


@device_call("GET")
def desired(request: HttpRequest, device: Device) -> HttpResponse:
    """The desired state of the device's deployment, or 304. The ETag is generation and deployment."""
    generation, document = rollouts.desired_for(device=device, now=timezone.now())
    body = msgspec.json.encode(document)
    etag = f'"{generation}-{hashlib.sha256(body).hexdigest()[:16]}"'
    if _matches(request.headers.get("If-None-Match", ""), etag):
        response = HttpResponse(status=304)
        del response["Content-Type"]
    else:
        response = HttpResponse(body, content_type="application/json")
    response["ETag"] = etag
    response["Cache-Control"] = "private, no-cache"
    return response


def _matches(condition: str, etag: str) -> bool:
    """If-None-Match with the weak comparison (RFC 9110, section 13.1.2)."""
    candidates = [candidate.strip().removeprefix("W/") for candidate in condition.split(",")]
    return "*" in candidates or etag in candidates


@device_call("GET")
def assignment(request: HttpRequest, device: Device) -> HttpResponse:
    """What this device may install, signed."""
    envelope = rollouts.signed_assignment_for(device=device, now=timezone.now())
    return _bytes(envelope, "application/json")


@device_call("POST")
def reports(request: HttpRequest, device: Device) -> HttpResponse:
    """Store a numbered batch. The answer comes after commit; a repeat is harmless."""
    report = decode(request, messages.Report, limit_bytes=REPORT_BODY_BYTES)
    now = timezone.now()
    acknowledged, events = telemetry.ingest(device=device, report=report, received_at=now)
    if events:
        applied = rollouts.apply_install_events(device=device, events=events, now=now)
        rollouts.step_touched(rollout_ids=applied.ended, now=now)
    return _json(messages.ReportAck(acknowledged=acknowledged))


@device_call("GET")
def metadata(request: HttpRequest, device: Device, filename: str) -> HttpResponse:
    """TUF metadata of the device's tenant."""
    body = registry.tuf_metadata(device.tenant, filename) if len(filename) < FILENAME_LENGTH else None
    if body is None:
        raise Missing("There is no such metadata. Refresh from root.json on.", code="metadata_not_found")
    return _bytes(body, "application/json")


@device_call("GET")
def target(request: HttpRequest, device: Device, filename: str) -> HttpResponse:
    """A TUF target of the device's tenant: a manifest, or the assignment keys."""
    body = registry.tuf_target(device.tenant, filename) if len(filename) < FILENAME_LENGTH else None
    if body is None:
        raise Missing("There is no such target. Refresh the metadata.", code="target_not_found")
    return _bytes(body, "application/octet-stream")


@device_call("GET")
def blob(request: HttpRequest, device: Device, sha256: str) -> HttpResponseBase:
    """A stored chunk, streamed; only what the device's tenant has a claim on."""
    if not _SHA256.fullmatch(sha256) or not registry.blob_claimed(device.tenant, sha256):
        raise Missing("There is no such blob for this tenant. Refresh the metadata.", code="blob_not_found")
    store, key = _store(settings.BLOBS_URL), blob_key(sha256)
    response = _from_folder(store, key) or _from_store(store, key)
    response["Cache-Control"] = "private, max-age=31536000, immutable"
    response["ETag"] = f'"{sha256}"'
    return response


def _from_folder(store: BlobStore, key: str) -> HttpResponseBase | None:
    path = store.local_path(key)
    if path is None:
        return None
    try:
        return FileResponse(path.open("rb"), content_type="application/octet-stream")
    except FileNotFoundError:
        raise BlobMissing(key) from None


def _from_store(store: BlobStore, key: str) -> HttpResponseBase:
    size = store.size(key)
    if size is None:
        raise BlobMissing(key)
    response = StreamingHttpResponse(store.iter_bytes(key), content_type="application/octet-stream")
    response["Content-Length"] = str(size)
    return response


@lru_cache(maxsize=4)
def _store(url: str) -> BlobStore:
    return open_store(url)


@call("GET")
def unknown(request: HttpRequest) -> HttpResponse:
    """Whatever is no call."""
    raise Missing("There is no such call in the device API, version 1.", code="unknown_call")


def _json(message: msgspec.Struct) -> HttpResponse:
    return HttpResponse(msgspec.json.encode(message), content_type="application/json")


def _bytes(body: bytes, content_type: str) -> HttpResponse:
    response = HttpResponse(body, content_type=content_type)
    response["Cache-Control"] = "private, no-cache"
    return response
