"""After a restart: every model back in a whole state, and what is active served again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from device_agent.errors import InstallError
from device_agent.install.installer import Installer
from device_agent.install.journal import Journal
from device_agent.install.ports import InstallRuntime
from device_agent.install.slots import Slots, other_slot
from device_agent.lifecycle import Event, State, final_event
from device_agent.protocol.messages import InstallEvent
from device_agent.store import Install, InstallStore, Slot

log = logging.getLogger(__name__)


class Recovery:
    """Runs once, before anything else touches the installations. Arguments as Installer's."""

    def __init__(
        self,
        folder: Path,
        *,
        installer: Installer,
        store: InstallStore,
        runtime: InstallRuntime,
        report: Callable[[InstallEvent], None],
        clock: Callable[[], float],
    ) -> None:
        self._installer = installer
        self._store = store
        self._runtime = runtime
        self._slots = Slots(folder / "models")
        self._journal = Journal(store, report=report, clock=clock)

    def run(self) -> None:
        """Resume half-done steps and serve active slots."""
        for install in self._store.all():
            if install.state == "testing":
                self._after_crash_in_test(install)
            elif install.state in ("downloading", "verifying"):
                self._journal.move(install, Event.RECOVER)
        for model in self._store.models():
            if (active := self._store.active(model)) and (slot := self._store.slot(model, active)):
                self._serve(slot)

    def _after_crash_in_test(self, install: Install) -> None:
        """The test may have taken the process down with it, so the cap on attempts counts it."""
        error = InstallError("session_failed", "the agent ended during the self-test")
        self._installer.fail(install, error)

    def _serve(self, slot: Slot) -> None:
        try:
            self._runtime.serve(self._load(slot))
        except InstallError as error:
            log.warning("the active slot of %s does not load: %s", slot.model, error)
            self._leave(slot, error)

    def _leave(self, slot: Slot, error: InstallError) -> None:
        """The active slot is damaged: fall back to the other one, where it holds a proven build."""
        other = self._store.slot(slot.model, other_slot(slot.slot))
        served = None
        if other is not None and other.proven:
            try:
                served = self._load(other)
            except InstallError:
                log.warning("the other slot of %s does not load either", slot.model)
        install = self._store.get(slot.model)
        with self._store.transaction():
            self._store.activate(slot.model, other_slot(slot.slot) if served else None)
            self._store.drop_slot(slot.model, slot.slot)
            if install is not None and install.state == "active":
                event = final_event(State.ACTIVE, has_previous=served is not None)
                self._journal.move(install, event, failure=error.failure, detail=str(error))
        if served is not None:
            self._runtime.serve(served)

    def _load(self, slot: Slot) -> Any:
        return self._runtime.load(self._slots.path(slot.model, slot.slot), slot.manifest)
