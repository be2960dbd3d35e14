"""The process's blob store, and the keys that only the registry uses in it."""

from __future__ import annotations

from functools import lru_cache
from uuid import UUID

from django.conf import settings

from blobstore import BlobStore, open_store

STAGING = "staging"  # folder of received parts


def blobs() -> BlobStore:
    """The store that ``POCKETFLEET_BLOBS_URL`` names."""
    return _opened(settings.BLOBS_URL)


@lru_cache(maxsize=4)
def _opened(url: str) -> BlobStore:
    return open_store(url)


def staging_key(file: UUID, part: str) -> str:
    """Where a received part of an upload waits until its file is complete."""
    return f"{STAGING}/{file}/{part}"
