"""Device tokens: who the device is and until when, under an HMAC-SHA256.

An asymmetric signature is checked once per token, this symmetric one at each request. The token
is ``pft1.<claims>.<tag>``, both parts base64url: claims are the device's and the tenant's UUID,
the expiry (Unix seconds), the epoch of the server's key and the epoch of the device's tokens,
big-endian. Raising an epoch revokes what was minted under the one before.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import uuid
from dataclasses import dataclass

from device_agent.protocol.canonical import b64, unb64
from fleet.devices.errors import TokenInvalid

PREFIX = "pft1"
_CLAIMS = struct.Struct(">16s16sQII")


@dataclass(frozen=True, slots=True)
class Claims:
    """``expires`` is in Unix seconds (UTC)."""

    device: uuid.UUID
    tenant: uuid.UUID
    expires: int
    key_epoch: int
    token_epoch: int


def mint(
    secret: bytes,
    *,
    device: uuid.UUID,
    tenant: uuid.UUID,
    expires: int,
    key_epoch: int,
    token_epoch: int,
) -> str:
    """A token for ``device`` that ends at ``expires`` (Unix seconds)."""
    claims = _CLAIMS.pack(device.bytes, tenant.bytes, expires, key_epoch, token_epoch)
    return f"{PREFIX}.{b64(claims)}.{b64(_tag(secret, claims))}"


def verify(secret: bytes, token: str, *, now: float, key_epoch: int) -> Claims:
    """The claims of a token whose tag, epoch and expiry hold.

    The device's own token epoch is left to the caller, who has its row.

    Raises:
        TokenInvalid: ``token_invalid`` (form, tag), ``token_revoked`` (key epoch) or
            ``token_expired``.
    """
    claims, tag = _split(token)
    if not hmac.compare_digest(tag, _tag(secret, claims)):
        raise TokenInvalid("This token was not made by this server. Ask for a new one.")
    device, tenant, expires, epoch, token_epoch = _CLAIMS.unpack(claims)
    if epoch != key_epoch:
        raise TokenInvalid("The server's token key has changed. Ask for a new token.", code="token_revoked")
    if now >= expires:
        raise TokenInvalid("The token has expired. Ask for a new one.", code="token_expired")
    return Claims(uuid.UUID(bytes=device), uuid.UUID(bytes=tenant), expires, epoch, token_epoch)


def _split(token: str) -> tuple[bytes, bytes]:
    parts = token.split(".")
    if len(parts) == 3 and parts[0] == PREFIX:
        try:
            claims, tag = unb64(parts[1]), unb64(parts[2])
        except ValueError:
            claims = tag = b""
        if len(claims) == _CLAIMS.size and len(tag) == hashlib.sha256().digest_size:
            return claims, tag
    raise TokenInvalid("This is not a device token. Ask for one with the call token.")


def _tag(secret: bytes, claims: bytes) -> bytes:
    return hmac.digest(secret, PREFIX.encode() + claims, "sha256")
