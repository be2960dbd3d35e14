"""Who a device is: nonce, enrolment with its own key, and tokens.

A nonce is stored as a digest and deleted by the one request that uses it, whatever comes of that
request. Signatures are Ed25519 over the canonical JSON of
:mod:`device_agent.protocol.canonical`, and name this server as the audience.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.conf import settings
from django.db import IntegrityError, transaction

from device_agent.protocol.canonical import b64, enrolment_payload, token_payload, unb64
from device_agent.protocol.messages import EnrollRequest, TokenRequest, TokenResponse
from fleet.devices import tokens
from fleet.devices.errors import DeviceBelongsElsewhere, EnrolmentRefused
from fleet.devices.models import Device, Nonce, ProvisioningKey
from fleet.devices.selectors import (
    provisioning_key_for,
    require_accepted,
    secret_digest,
    token_secret,
    uuid_of,
)
from tenancy.actor import Actor
from tenancy.audit import record

NONCE_LIFETIME = timedelta(minutes=2)
TOKEN_LIFETIME = timedelta(minutes=15)


def issue_nonce(*, now: datetime) -> str:
    """A nonce that one request may use within two minutes. Expired ones are removed on the way."""
    Nonce.objects.filter(expires_at__lt=now).delete()
    nonce = secrets.token_urlsafe(32)
    Nonce.objects.create(digest=secret_digest(nonce), expires_at=now + NONCE_LIFETIME)
    return nonce


def enroll(*, request: EnrollRequest, now: datetime) -> Device:
    """Join the tenant of the provisioning key. The same key again gives the same device.

    Raises:
        EnrolmentRefused: ``nonce_invalid``, ``signature_invalid``, ``provisioning_key_invalid``.
        DeviceBelongsElsewhere: the public key is known in another tenant; devices never move.
    """
    _use_nonce(request.nonce, now=now)
    payload = enrolment_payload(
        nonce=request.nonce, public_key=request.public_key, server=settings.PUBLIC_URL
    )
    public_key = _verified_key(request.public_key, request.signature, payload)
    key = provisioning_key_for(request.provisioning_key, now=now)
    if key is None:
        raise EnrolmentRefused(
            "The provisioning key is unknown, expired or revoked. Ask the fleet's operator for one.",
            code="provisioning_key_invalid",
        )
    return _device_of(public_key, name=request.name, key=key)


def issue_token(*, request: TokenRequest, now: datetime) -> TokenResponse:
    """A token for an accepted device that proves possession of its private key.

    Raises:
        EnrolmentRefused: ``nonce_invalid``, ``signature_invalid`` (also for an unknown device).
        DeviceNotAccepted: ``device_pending``, ``device_rejected``, ``device_decommissioned``.
    """
    _use_nonce(request.nonce, now=now)
    device = Device.objects.filter(pk=uuid_of(request.device)).first()
    if device is None:
        raise _signature_invalid()
    payload = token_payload(nonce=request.nonce, device=request.device, server=settings.PUBLIC_URL)
    _verified_key(device.public_key, request.signature, payload)
    require_accepted(device)
    token = tokens.mint(
        token_secret(),
        device=device.pk,
        tenant=device.tenant_id,
        expires=int((now + TOKEN_LIFETIME).timestamp()),
        key_epoch=settings.TOKEN_KEY_EPOCH,
        token_epoch=device.token_epoch,
    )
    return TokenResponse(
        token=token,
        expires_in_s=int(TOKEN_LIFETIME.total_seconds()),
        server_time=int(now.timestamp()),
    )


def _use_nonce(nonce: str, *, now: datetime) -> None:
    """Delete the nonce; of two requests with the same one, the database lets one through."""
    deleted, _ = Nonce.objects.filter(digest=secret_digest(nonce), expires_at__gt=now).delete()
    if deleted != 1:
        raise EnrolmentRefused(
            "The nonce is unknown, used or expired. Ask for a new one and sign that.", code="nonce_invalid"
        )


def _verified_key(public_key: str, signature: str, payload: bytes) -> str:
    """The public key in its one canonical spelling, once the signature holds."""
    try:
        raw = unb64(public_key)
        Ed25519PublicKey.from_public_bytes(raw).verify(unb64(signature), payload)
    except (ValueError, InvalidSignature):
        raise _signature_invalid() from None
    return b64(raw)


def _signature_invalid() -> EnrolmentRefused:
    return EnrolmentRefused(
        f"The signature does not hold. Sign the payload for the server {settings.PUBLIC_URL} with the "
        "device's Ed25519 key.",
        code="signature_invalid",
    )


def _device_of(public_key: str, *, name: str, key: ProvisioningKey) -> Device:
    device = Device.objects.filter(public_key=public_key).first()
    if device is None:
        try:
            device = _create(public_key, name=name, key=key)
        except IntegrityError:  # the same device, twice at once
            device = Device.objects.get(public_key=public_key)
    if device.tenant_id != key.tenant_id:
        raise DeviceBelongsElsewhere(
            "This device's key is enrolled with another tenant. Make a new key and enrol with that."
        )
    return device


@transaction.atomic
def _create(public_key: str, *, name: str, key: ProvisioningKey) -> Device:
    state = Device.State.ACCEPTED if key.accept else Device.State.PENDING
    device = Device.objects.create(
        tenant=key.tenant,
        name=name,
        public_key=public_key,
        state=state,
        tags=key.tags,
        granted_tags=key.tags,
    )
    record(
        tenant=key.tenant,
        actor=Actor(kind="device", name=str(device.pk)),
        action="device.enroll",
        subject_type="device",
        subject=device.pk,
        after={"state": state.value, "provisioning_key": key.prefix},
    )
    return device
