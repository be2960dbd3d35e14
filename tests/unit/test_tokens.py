"""Device tokens: what is believed, and what is not."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.protocol.canonical import b64, unb64
from fleet.devices.errors import TokenInvalid
from fleet.devices.tokens import Claims, mint, verify

SECRET = b"s" * 32
DEVICE, TENANT = uuid.uuid4(), uuid.uuid4()


def minted(**changes: Any) -> str:
    claims: dict[str, Any] = {
        "device": DEVICE,
        "tenant": TENANT,
        "expires": 1_000,
        "key_epoch": 3,
        "token_epoch": 7,
    }
    return mint(SECRET, **claims | changes)


def code_of(token: str, *, secret: bytes = SECRET, now: float = 999, key_epoch: int = 3) -> str:
    with pytest.raises(TokenInvalid) as caught:
        verify(secret, token, now=now, key_epoch=key_epoch)
    assert caught.value.status == 401
    return caught.value.code


def test_claims_come_back() -> None:
    claims = verify(SECRET, minted(), now=999.9, key_epoch=3)
    assert claims == Claims(DEVICE, TENANT, 1_000, 3, 7)


@pytest.mark.parametrize("now", [1_000, 1_000.5, 10**9])
def test_expired(now: float) -> None:
    assert code_of(minted(), now=now) == "token_expired"


@pytest.mark.parametrize("epoch", [2, 4])
def test_another_key_epoch(epoch: int) -> None:
    assert code_of(minted(), key_epoch=epoch) == "token_revoked"


def test_another_secret() -> None:
    assert code_of(minted(), secret=b"x" * 32) == "token_invalid"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "pft1",
        "pft1..",
        "pft1.AAAA.AAAA",
        "pft1.A.B",
        "pft2." + minted().split(".", 1)[1],
        minted() + ".more",
        minted()[:-3],
        "pft1.ü." + minted().split(".")[2],
    ],
)
def test_not_a_token(token: str) -> None:
    assert code_of(token) == "token_invalid"


@settings(deadline=None)
@given(st.integers(0, 47), st.integers(1, 255))
def test_no_byte_of_the_claims_can_change(position: int, flip: int) -> None:
    prefix, claims, tag = minted().split(".")
    changed = bytearray(unb64(claims))
    changed[position] ^= flip
    assert code_of(f"{prefix}.{b64(bytes(changed))}.{tag}") == "token_invalid"
