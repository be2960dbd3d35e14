"""What a job needs from outside, and the pulse that it gives while it runs."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from blobstore import BlobStore
from quantize_worker import storage
from quantize_worker.contract import HEARTBEAT_S, TASK_PROGRESS, TIME_LIMIT_S, Progress
from quantize_worker.errors import Cancelled
from quantize_worker.sandbox import Sandbox
from quantize_worker.steps.exchange import Step

logger = logging.getLogger(__name__)

INSPECT_LIMIT_S = TIME_LIMIT_S
SILENCE_BASE_S = 60.0  # a parse that says nothing for longer is stuck
BATCH_PARAMETERS = 200_000_000  # a model of more is analysed in batches, on as many workers as there are

Send = Callable[[str, msgspec.Struct], None]


@dataclass(frozen=True)
class Desk:
    """All that a job needs from outside.

    ``send`` takes a task name and the message for it.
    """

    store: BlobStore
    sandbox: Sandbox
    work: Path
    memory_bytes: int
    send: Send
    worker: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    heartbeat_s: float = HEARTBEAT_S
    inspect_limit_s: float = INSPECT_LIMIT_S
    build_limit_s: float = TIME_LIMIT_S
    silence_base_s: float = SILENCE_BASE_S
    batch_parameters: int = BATCH_PARAMETERS


class Pulse:
    """Sends progress at every step and every heartbeat, and looks for the cancel marker as often."""

    def __init__(
        self, desk: Desk, kind: Literal["build", "version", "batch"], subject: str, attempt: int
    ) -> None:
        self._desk, self._kind, self._subject, self._attempt = desk, kind, subject, attempt
        self._step, self._share = "fetch", 0.0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.stop = threading.Event()

    def __enter__(self) -> Pulse:
        self.at(Step(step="fetch", share=0.0))
        if self.stop.is_set():
            raise Cancelled("The job was cancelled before it began.")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def at(self, step: Step) -> None:
        """Note a step and tell the registry, if it is news; look for the cancel marker."""
        with self._lock:
            news = step.step != self._step or step.share >= self._share + 0.05 or step.share == 0.0
            self._step, self._share = step.step, min(max(step.share, 0.0), 1.0)
            if news:
                self._tell()

    def _beat(self) -> None:
        while not self._over.wait(self._desk.heartbeat_s):
            with self._lock:
                self._tell()

    def _tell(self) -> None:
        if storage.is_cancelled(self._desk.store, self._subject, self._attempt):
            self.stop.set()
        progress = Progress(
            subject=self._subject,
            subject_kind=self._kind,
            attempt=self._attempt,
            step=self._step[:40],
            share=self._share,
            worker=self._desk.worker,
        )
        try:
            self._desk.send(TASK_PROGRESS, progress)
        except Exception as error:  # a lost progress message must not end the job
            logger.warning("progress of %s was not sent: %s", self._subject, error)
