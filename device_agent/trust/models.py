"""From an assigned model to a manifest that may be installed."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from device_agent.errors import UntrustedAssignment, UntrustedMetadata
from device_agent.protocol.manifest import Manifest, decode_manifest
from device_agent.protocol.messages import (
    ASSIGNMENT_KEYS_TARGET,
    AssignedModel,
    AssignmentKey,
    AssignmentKeys,
)
from device_agent.trust.assignment import agree
from device_agent.trust.metadata import Repository


class TrustedModel(NamedTuple):
    """An assigned model whose manifest assignment and TUF agree on."""

    assigned: AssignedModel
    manifest: Manifest


def assignment_keys(repository: Repository) -> list[AssignmentKey]:
    """Keys that may sign assignments, from their TUF target.

    Raises:
        UntrustedMetadata: if the target is missing or malformed.
        TransportError: if it could not be fetched.
    """
    target = repository.fetch(ASSIGNMENT_KEYS_TARGET)
    try:
        return msgspec.json.decode(target.content, type=AssignmentKeys).keys
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise UntrustedMetadata(f"{ASSIGNMENT_KEYS_TARGET} is malformed: {error}") from error


def trusted_model(assigned: AssignedModel, repository: Repository) -> TrustedModel:
    """Fetch and decode the manifest of an assigned model.

    Raises:
        UntrustedAssignment: if assignment, TUF and manifest do not agree.
        UntrustedMetadata: if the manifest is malformed or leaves its slot.
        TransportError: if it could not be fetched.
    """
    found = repository.find(assigned.target)
    agree(assigned, sha256=found[0] if found else None, length=found[1] if found else 0)
    content = repository.fetch(assigned.target).content  # verified against what has just agreed
    try:
        manifest = decode_manifest(content)
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        raise UntrustedMetadata(f"the manifest {assigned.target} is refused: {error}") from error
    named = (manifest.build, manifest.model, manifest.version)
    if named != (assigned.build, assigned.model, assigned.version):
        raise UntrustedAssignment(f"{assigned.target} describes another build than the one assigned")
    return TrustedModel(assigned, manifest)
