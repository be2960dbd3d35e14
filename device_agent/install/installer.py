"""One model's way from the assignment to the active slot, and back where it fails."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from device_agent.errors import DownloadTooSlow, InstallError, Refused, ResponseTooLarge, TransportError
from device_agent.install.chunks import ChunkCache, Place, fetch_chunk, places, read_verified
from device_agent.install.journal import Journal
from device_agent.install.ports import BlobSource, InstallRuntime
from device_agent.install.slots import Slots, matches, other_slot, write_files
from device_agent.lifecycle import (
    ENDED_BADLY,
    PENDING,
    RETRY_BASE_S,
    Event,
    State,
    after_failure,
    final_event,
    retry_delay_s,
)
from device_agent.protocol.manifest import Chunk, Manifest
from device_agent.protocol.messages import AssignedModel, FailureCode, InstallEvent, WaitingReason
from device_agent.store import Install, InstallStore, Slot
from device_agent.store.installs import SlotName

log = logging.getLogger(__name__)

STORAGE_MARGIN_BYTES = 16 * 2**20
_WAITING: dict[FailureCode, WaitingReason] = {
    "insufficient_storage": "storage",
    "download_failed": "server",
    "digest_mismatch": "server",
}


class Installer:
    """Carries out what :mod:`device_agent.lifecycle` decides.

    Args:
        folder: the state folder.
        store: installations and slots.
        source: where chunks come from.
        runtime: proves and serves builds.
        report: queues an install event, within the store's transaction.
        clock: Unix seconds.
        free_bytes: free storage at a path.
        retry_base_s: wait after the first failed attempt.
    """

    def __init__(
        self,
        folder: Path,
        *,
        store: InstallStore,
        source: BlobSource,
        runtime: InstallRuntime,
        report: Callable[[InstallEvent], None],
        clock: Callable[[], float],
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
        retry_base_s: float = RETRY_BASE_S,
    ) -> None:
        self._folder = folder
        self._store = store
        self._source = source
        self._runtime = runtime
        self._free_bytes = free_bytes
        self._retry_base_s = retry_base_s
        self._journal = Journal(store, report=report, clock=clock)
        self._slots = Slots(folder / "models")
        self._chunks = ChunkCache(folder / "chunks")

    def offer(self, assigned: AssignedModel, manifest: Manifest, *, heard_until: float = 0.0) -> None:
        """Take an assigned build in; the one that is active already is only reported again.

        Args:
            heard_until: Unix seconds; the server has all reports from before. What failed before
                that and is assigned nevertheless is meant to be tried again.
        """
        known = self._store.get(assigned.model)
        if known is not None and (known.build, known.rollout) == (assigned.build, assigned.rollout):
            again = known.state in ENDED_BADLY and known.updated_at < heard_until
            if known.state != "expired" and not again:
                return
        active = self._active(assigned.model)
        runs = active is not None and active.build == assigned.build
        evidence = known.self_test if known is not None and known.build == assigned.build else None
        self._journal.begin(
            Install(
                model=assigned.model,
                build=assigned.build,
                version=assigned.version,
                rollout=assigned.rollout,
                manifest=manifest,
                state=State.ACTIVE.value if runs else State.OFFERED.value,
                self_test=evidence if runs else None,
                updated_at=self._journal.clock(),
            )
        )

    def refuse(self, assigned: AssignedModel, failure: FailureCode) -> None:
        """Report an assigned build that may not be installed; what is active stays."""
        self._journal.refuse(
            InstallEvent(
                at=self._journal.clock(),
                rollout=assigned.rollout,
                model=assigned.model,
                version=assigned.version,
                build=assigned.build,
                state="failed",
                failure=failure,
            )
        )

    def remove_others(self, assigned: Iterable[str]) -> None:
        """Delete every model that is not assigned any more, and chunks that nothing waits for."""
        for model in {*self._store.models(), *self._slots.folders()} - set(assigned):
            log.info("removing %s, which is not assigned any more", model)
            self._runtime.withdraw(model)
            self._store.forget(model)
            self._slots.remove(model)
        self._chunks.keep_only(chunk for one in self._pending() for chunk in _chunks(one.manifest))

    def expire(self) -> None:
        """The assignment's time is over: what is not active by now is not installed."""
        for install in self._pending():
            self._journal.move(install, Event.EXPIRE)

    def due(self) -> list[str]:
        """Models with something left to do now."""
        now = self._journal.clock()
        return [install.model for install in self._pending() if install.not_before <= now]

    def next_due_s(self) -> float | None:
        """Seconds until a postponed installation may be tried again; None without one."""
        waits = [install.not_before - self._journal.clock() for install in self._pending()]
        return min((wait for wait in waits if wait > 0.0), default=None)

    def install(self, model: str) -> None:
        """Take a model as far as it goes; every outcome is in the store and reported.

        Raises:
            TransportError: if the server cannot be reached; the model waits in ``offered``.
        """
        try:
            install = self._current(model)
            if install.state == "staged" or self._stage(install):
                self._test_and_activate(self._current(model))
        except TransportError as error:
            self._transport_failed(self._current(model), error)
        except InstallError as error:
            self._failed(self._current(model), error)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            code: FailureCode = "insufficient_storage" if full else "internal"
            self._failed(self._current(model), InstallError(code, f"writing failed: {error}"))
        except Exception as error:
            log.exception("installing %s failed unexpectedly", model)
            self._failed(self._current(model), InstallError("internal", type(error).__name__))

    def fail(self, install: Install, error: InstallError) -> None:
        """Record a failure: tried again later while that may help, else final."""
        attempts = install.attempts + 1
        log.warning("%s: %s (%s)", install.model, error, error.failure)
        detail = {"failure": error.failure, "detail": str(error), "attempts": attempts}
        if after_failure(error.failure, attempts=attempts) is Event.POSTPONE:
            self._journal.move(
                install,
                Event.POSTPONE,
                waiting=_WAITING.get(error.failure),
                not_before=self._journal.clock() + retry_delay_s(attempts, base_s=self._retry_base_s),
                **detail,
            )
            return
        event = final_event(State(install.state), has_previous=self._active(install.model) is not None)
        self._journal.move(install, event, waiting=None, self_test=error.self_test, **detail)
        self._discard(install)

    # -- the steps --------------------------------------------------------------------------

    def _stage(self, install: Install) -> bool:
        """Fetch, verify and write the build into the inactive slot; False while there is no room."""
        self._runtime.check_requirements(install.manifest)
        slot = self._inactive(install.model)
        if not self._has_room(install, slot):
            self._journal.move(install, Event.POSTPONE, waiting="storage", detail="not enough free storage")
            return False
        install = self._journal.move(install, Event.START, waiting=None, failure=None, detail="")
        install = self._journal.move(self._download(install, slot), Event.DOWNLOADED)
        self._write_slot(install, slot)
        return True

    def _download(self, install: Install, slot: SlotName) -> Install:
        """Bring every missing chunk into the cache: from installed files, else from the server."""
        known = self._known_places()
        folder = self._slots.path(install.model, slot)
        fresh = install.downloaded_bytes + install.reused_bytes == 0
        for file in install.manifest.files:
            if matches(folder / file.path, file):
                if fresh:
                    install = self._count(install, reused=file.size_bytes)
                continue
            for chunk in file.chunks:
                if not self._chunks.has(chunk):
                    install = self._obtain(install, chunk, known.get(chunk.sha256, []))
        return install

    def _obtain(self, install: Install, chunk: Chunk, held: list[Place]) -> Install:
        for place in held:
            if (content := read_verified(place, chunk)) is not None:
                self._chunks.put(chunk, content)
                return self._count(install, reused=chunk.size_bytes)
        self._chunks.put(chunk, fetch_chunk(self._source, chunk))
        return self._count(install, downloaded=chunk.stored_size_bytes)

    def _count(self, install: Install, *, downloaded: int = 0, reused: int = 0) -> Install:
        return self._journal.progress(
            install,
            downloaded_bytes=install.downloaded_bytes + downloaded,
            reused_bytes=install.reused_bytes + reused,
        )

    def _write_slot(self, install: Install, slot: SlotName) -> None:
        self._store.put_slot(
            Slot(
                model=install.model,
                slot=slot,
                build=install.build,
                version=install.version,
                manifest=install.manifest,
                proven=False,
            )
        )
        write_files(self._slots.path(install.model, slot), install.manifest, self._chunk_content)
        self._journal.move(install, Event.VERIFIED)
        self._chunks.drop(_chunks(install.manifest))

    def _test_and_activate(self, install: Install) -> None:
        slot = self._inactive(install.model)
        install = self._journal.move(install, Event.TEST)
        proof = self._runtime.prove(self._slots.path(install.model, slot), install.manifest)
        content = self._store.slot(install.model, slot)
        assert content is not None
        with self._store.transaction():  # the one step that switches the device over
            self._store.put_slot(msgspec.structs.replace(content, proven=True))
            self._store.activate(install.model, slot)
            self._journal.move(install, Event.PASSED, self_test=proof.self_test, failure=None, detail="")
        self._runtime.serve(proof.served)
        log.info("%s version %d is active in slot %s", install.model, install.version, slot)

    # -- what goes wrong --------------------------------------------------------------------

    def _failed(self, install: Install, error: InstallError) -> None:
        if install.state in PENDING:
            self.fail(install, error)

    def _transport_failed(self, install: Install, error: TransportError) -> None:
        """A server that is away costs no attempt; one that refuses, or is too slow, does."""
        if isinstance(error, Refused | ResponseTooLarge | DownloadTooSlow):
            self._failed(install, InstallError("download_failed", str(error)))
            return
        self._journal.move(install, Event.POSTPONE, waiting="network", detail=str(error))
        raise error

    def _discard(self, install: Install) -> None:
        """Free the inactive slot of a build that is given up; an older proven one there stays."""
        name = self._inactive(install.model)
        slot = self._store.slot(install.model, name)
        if slot is not None and slot.build == install.build:
            self._wipe(install.model, name)

    def _wipe(self, model: str, slot: SlotName) -> None:
        self._store.drop_slot(model, slot)
        self._slots.wipe(model, slot)

    # -- looking things up ------------------------------------------------------------------

    def _pending(self) -> list[Install]:
        return [install for install in self._store.all() if install.state in PENDING]

    def _current(self, model: str) -> Install:
        install = self._store.get(model)
        if install is None:
            raise InstallError("internal", f"{model} is not assigned")
        return install

    def _active(self, model: str) -> Slot | None:
        name = self._store.active(model)
        return self._store.slot(model, name) if name else None

    def _inactive(self, model: str) -> SlotName:
        active = self._store.active(model)
        return other_slot(active) if active else "a"

    def _has_room(self, install: Install, slot: SlotName) -> bool:
        """Whether chunks and slot fit; an old inactive build is given up when they do not."""
        missing = sum(c.size_bytes for c in _chunks(install.manifest) if not self._chunks.has(c))
        needed = missing + sum(file.size_bytes for file in install.manifest.files) + STORAGE_MARGIN_BYTES
        if self._free_bytes(self._folder) >= needed:
            return True
        self._wipe(install.model, slot)
        return self._free_bytes(self._folder) >= needed

    def _known_places(self) -> dict[str, list[Place]]:
        known: dict[str, list[Place]] = {}
        for slot in self._store.slots():
            for sha256, place in places(self._slots.path(slot.model, slot.slot), slot.manifest):
                known.setdefault(sha256, []).append(place)
        return known

    def _chunk_content(self, chunk: Chunk) -> bytes:
        content = self._chunks.read(chunk)
        if content is None:
            self._chunks.drop([chunk])
            raise InstallError("digest_mismatch", f"chunk {chunk.sha256} was damaged on this device")
        return content


def _chunks(manifest: Manifest) -> list[Chunk]:
    return [chunk for file in manifest.files for chunk in file.chunks]
