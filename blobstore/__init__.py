"""Content-addressed blobs in a folder or an S3-compatible store, for registry and worker alike.

A thin layer over obstore (one Rust library for both kinds). It knows neither Django nor Celery.
"""

from blobstore.errors import BlobError, BlobMissing, BlobStoreFailed, DigestMismatch
from blobstore.store import BlobStore, open_store

__all__ = ["BlobError", "BlobMissing", "BlobStore", "BlobStoreFailed", "DigestMismatch", "open_store"]
