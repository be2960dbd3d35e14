"""Errors of the model registry.

::

    ProblemError (tenancy)
    ├── AlreadyExists ── ModelExists            409  model_exists
    ├── Invalid
    │   ├── InvalidUpload                       422  invalid_upload, invalid_path, duplicate_path, …
    │   └── DigestMismatch                      422  digest_mismatch
    ├── UploadTooLarge                          413  upload_too_large
    ├── NotFound ── FileNotAnnounced            404  file_not_announced
    ├── Conflict
    │   ├── OffsetMismatch                      409  offset_mismatch (``expected_offset``)
    │   ├── UploadIncomplete                    409  upload_incomplete (``missing``)
    │   ├── WrongState                          409  wrong_state (``state``)
    │   ├── BuildsUnsettled                     409  builds_unsettled (``classes``)
    │   └── NothingToRelease                    409  nothing_to_release (``classes``)
    ├── IllegalTransition                       409  illegal_transition
    └── SigningFailed                           500  signing_failed
        ├── KeyMissing                          500  signing_key_missing
        └── RepositoryMissing                   500  tuf_repository_missing

``DigestMismatch``, ``InvalidUpload`` and a version's refusal code mean that the upload is wrong;
``SigningFailed`` and a build's fault ``system`` that our side is.
"""

from __future__ import annotations

from tenancy.errors import AlreadyExists, Conflict, Invalid, NotFound, ProblemError


class ModelExists(AlreadyExists):
    code = "model_exists"


class InvalidUpload(Invalid):
    code = "invalid_upload"
    title = "The upload is not well-formed"


class DigestMismatch(Invalid):
    code = "digest_mismatch"
    title = "The content has another SHA-256 than announced"


class UploadTooLarge(ProblemError):
    code = "upload_too_large"
    title = "The upload is too large"
    status = 413


class FileNotAnnounced(NotFound):
    code = "file_not_announced"
    title = "The upload has no such file"


class OffsetMismatch(Conflict):
    code = "offset_mismatch"
    title = "The part does not follow what has been received"


class UploadIncomplete(Conflict):
    code = "upload_incomplete"
    title = "Parts of the upload are missing"


class WrongState(Conflict):
    code = "wrong_state"


class BuildsUnsettled(Conflict):
    code = "builds_unsettled"
    title = "Builds are still running"


class NothingToRelease(Conflict):
    code = "nothing_to_release"
    title = "No class has a build that is ready"


class IllegalTransition(ProblemError):
    """An event that a state does not know; see :mod:`models_registry.lifecycle`."""

    code = "illegal_transition"
    title = "Not possible in the current state"
    status = 409


class SigningFailed(ProblemError):
    code = "signing_failed"
    title = "The release could not be signed"


class KeyMissing(SigningFailed):
    code = "signing_key_missing"


class RepositoryMissing(SigningFailed):
    code = "tuf_repository_missing"
