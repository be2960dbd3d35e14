"""The signed assignment: what *this* device may install (Uptane's director, in one document). Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.exceptions import FormatError

from device_agent.errors import UntrustedAssignment
from device_agent.protocol.canonical import canonical_json, unb64
from device_agent.protocol.messages import (
    AssignedModel,
    Assignment,
    AssignmentKey,
    Signature,
    SignedEnvelope,
)


def verify_assignment(
    envelope: bytes,
    *,
    keys: Iterable[AssignmentKey],
    device: str,
    tenant: str,
    sequence_floor: int,
    now: float,
) -> Assignment:
    """Check an envelope and decode what it signs.

    Args:
        envelope: the answer of ``assignment``.
        keys: from the TUF target ``pocketfleet/assignment-keys.json``.
        device, tenant: this device's own.
        sequence_floor: the highest sequence accepted so far; an equal one is the same document.
        now: Unix seconds, never earlier than the time floor.

    Raises:
        UntrustedAssignment: naming the first rule that does not hold.
    """
    try:
        sealed = msgspec.json.decode(envelope, type=SignedEnvelope)
        signed = canonical_json(sealed.signed)
    except (msgspec.DecodeError, msgspec.ValidationError, FormatError, RecursionError) as error:
        raise UntrustedAssignment(f"the assignment is not a signed envelope: {error}") from error
    if not _any_valid(signed, sealed.signatures, {key.keyid: key.public for key in keys}):
        raise UntrustedAssignment("no trusted key has signed the assignment")
    try:
        assignment = msgspec.convert(sealed.signed, Assignment)
    except msgspec.ValidationError as error:
        raise UntrustedAssignment(f"the signed document is not an assignment: {error}") from error
    _check_rules(assignment, device=device, tenant=tenant, sequence_floor=sequence_floor, now=now)
    return assignment


def agree(assigned: AssignedModel, *, sha256: str | None, length: int) -> None:
    """The assignment's word on a manifest must be the repository's.

    Args:
        sha256: the TUF target's digest, None when TUF does not know the target.
        length: the TUF target's length in bytes.

    Raises:
        UntrustedAssignment: if they differ.
    """
    if sha256 is None:
        raise UntrustedAssignment(f"TUF does not know the assigned target {assigned.target}")
    if (assigned.sha256, assigned.length) != (sha256, length):
        raise UntrustedAssignment(f"assignment and TUF disagree about {assigned.target}")


def _check_rules(
    assignment: Assignment, *, device: str, tenant: str, sequence_floor: int, now: float
) -> None:
    if assignment.device != device:
        raise UntrustedAssignment("the assignment is another device's")
    if assignment.tenant != tenant:
        raise UntrustedAssignment("the assignment is another tenant's")
    if assignment.sequence < sequence_floor:
        raise UntrustedAssignment(
            f"assignment {assignment.sequence} is older than {sequence_floor}, which was accepted before"
        )
    if assignment.expires <= now:
        raise UntrustedAssignment("the assignment has expired")
    names = [assigned.model for assigned in assignment.models]
    if len(set(names)) != len(names):
        raise UntrustedAssignment("the assignment names a model twice")


def _any_valid(signed: bytes, signatures: list[Signature], keys: dict[str, str]) -> bool:
    return any(
        signature.keyid in keys and _valid(signed, signature.sig, keys[signature.keyid])
        for signature in signatures
    )


def _valid(signed: bytes, signature: str, public: str) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(unb64(public)).verify(bytes.fromhex(signature), signed)
    except (InvalidSignature, ValueError):
        return False
    return True
