"""The worker's Celery application and its settings, from the environment alone.

Start it with ``python -m celery -A quantize_worker.app worker -Q tailor,tailor.small,tailor.large --pool threads
--concurrency 1``: the main thread keeps the broker's heartbeat while a job runs.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from celery import Celery

from blobstore import BlobStore, open_store
from quantize_worker.contract import celery_settings
from quantize_worker.sandbox import Sandbox, find_bubblewrap

# Inherited by every child: ONNX Runtime reads it when its process starts. This process itself
# never imports ONNX Runtime.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def state_folder() -> Path:
    """``POCKETFLEET_VAR``, the folder of all embedded state; ``./var`` by default."""
    return Path(_read("POCKETFLEET_VAR", "var")).absolute()


def broker_url() -> str:
    return _read("POCKETFLEET_BROKER_URL", "filesystem://")


def broker_folder() -> str:
    return _read("POCKETFLEET_BROKER_FOLDER", str(state_folder() / "broker"))


@functools.cache
def blob_store() -> BlobStore:
    """The store at ``POCKETFLEET_BLOBS_URL``; a folder under the state folder by default."""
    return open_store(_read("POCKETFLEET_BLOBS_URL", f"file://{state_folder() / 'blobs'}"))


@functools.cache
def sandbox() -> Sandbox:
    """Jobs see neither our state nor what other jobs and tenants have stored, wherever that lies."""
    hidden = [state_folder(), Path(broker_folder()).absolute()]
    blobs = blob_store().local_path("any")
    return Sandbox(hidden=[*hidden, *([blobs.parent] if blobs else [])], bubblewrap=find_bubblewrap())


def work_folder() -> Path:
    """Where jobs have their folders (:func:`quantize_worker.storage.job_folder`)."""
    folder = state_folder() / "work"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _read(name: str, default: str) -> str:
    return os.environ.get(name, "") or default


def _application() -> Celery:
    url, folder = broker_url(), broker_folder()
    if url.startswith("filesystem://"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    application = Celery("quantize_worker", include=["quantize_worker.tasks"])
    application.conf.update(celery_settings(url, folder))
    return application


app = _application()
