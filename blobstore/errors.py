"""Errors of the blob store.

BlobError
├── BlobMissing       no blob under the key
├── DigestMismatch    the content is not what its digest says
└── BlobStoreFailed   the store cannot be reached, refuses, or is full
"""

from __future__ import annotations


class BlobError(Exception):
    """Base of this package's errors. ``code`` is stable."""

    code = "blob_error"


class BlobMissing(BlobError):
    code = "blob_missing"

    def __init__(self, key: str) -> None:
        super().__init__(f"There is no blob {key!r}; upload it again.")
        self.key = key


class DigestMismatch(BlobError):
    code = "blob_digest_mismatch"

    def __init__(self, key: str, *, expected: str, found: str) -> None:
        super().__init__(f"Blob {key!r} has SHA-256 {found}, expected {expected}; upload it again.")
        self.key, self.expected, self.found = key, expected, found


class BlobStoreFailed(BlobError):
    code = "blob_store_failed"
