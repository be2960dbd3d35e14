"""Canonical JSON and the exact bytes that are signed.

Canonical JSON here is OLPC canonical JSON, as TUF uses it (securesystemslib's encoder): sorted
keys, no white space, UTF-8, integers only. Numbers with a fraction are therefore not allowed in
signed documents; they are written as integers with the unit in the name, or as strings.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from securesystemslib.formats import encode_canonical


def canonical_json(document: Any) -> bytes:
    """Encode ``document`` as canonical JSON.

    Raises:
        securesystemslib.exceptions.FormatError: if it holds a float or another unsupported type.
    """
    encoded = encode_canonical(document)
    assert isinstance(encoded, str)
    return encoded.encode("utf-8")


def sha256_hex(data: bytes) -> str:
    """SHA-256 of ``data``, as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def b64(data: bytes) -> str:
    """URL-safe base64 without padding (RFC 4648, section 5)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def unb64(text: str) -> bytes:
    """Inverse of :func:`b64`.

    Raises:
        ValueError: if ``text`` is not URL-safe base64.
    """
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def enrolment_payload(*, nonce: str, public_key: str, server: str) -> bytes:
    """The bytes that a device signs to enrol: proof that it holds the private key.

    Args:
        nonce: single-use server nonce.
        public_key: raw Ed25519 public key, :func:`b64`.
        server: the audience the nonce was issued for, as the server named it.
    """
    return canonical_json({"_type": "enrol", "nonce": nonce, "public_key": public_key, "server": server})


def token_payload(*, nonce: str, device: str, server: str) -> bytes:
    """The bytes that a device signs to ask for a token."""
    return canonical_json({"_type": "token", "nonce": nonce, "device": device, "server": server})
