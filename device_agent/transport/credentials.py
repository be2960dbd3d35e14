"""The device's Ed25519 key: made on the device, never leaves it."""

from __future__ import annotations

import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from device_agent.errors import ConfigError
from device_agent.protocol.canonical import b64, enrolment_payload, token_payload
from device_agent.store import write_durably


class DeviceKey:
    """Signs proofs of possession."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @classmethod
    def load_or_create(cls, path: Path) -> DeviceKey:
        """Read the key at ``path`` (PEM, PKCS #8), or make one there with mode 0600.

        Raises:
            ConfigError: if others may read it, or it is not an Ed25519 key.
        """
        if not path.exists():
            private = Ed25519PrivateKey.generate()
            pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            write_durably(path, pem, mode=0o600)
            return cls(private)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"others may read the device key: chmod 600 {path}")
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except ValueError as error:
            raise ConfigError(f"{path} is not a private key: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{path} is not an Ed25519 key")
        return cls(key)

    @property
    def public(self) -> str:
        """The raw public key, base64url."""
        return b64(self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def sign_enrolment(self, *, nonce: str, server: str) -> str:
        """Signature that an enrolment request carries, base64url."""
        payload = enrolment_payload(nonce=nonce, public_key=self.public, server=server)
        return b64(self._private.sign(payload))

    def sign_token_request(self, *, nonce: str, device: str, server: str) -> str:
        """Signature that a token request carries, base64url."""
        return b64(self._private.sign(token_payload(nonce=nonce, device=device, server=server)))
