"""State changes of installations: one transaction changes the state and queues its report.

So what the server is told and what the device remembers cannot part ways, and after a crash the
state says exactly which step was under way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from device_agent.errors import InstallError
from device_agent.lifecycle import Event, State, next_state
from device_agent.protocol.messages import InstallEvent
from device_agent.store import Install, InstallStore


class Journal:
    """The only writer of installation states.

    Args:
        store: installations.
        report: queues an install event; called inside the transaction that makes it true.
        clock: Unix seconds.
    """

    def __init__(
        self, store: InstallStore, *, report: Callable[[InstallEvent], None], clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._report = report
        self.clock = clock

    def begin(self, install: Install) -> None:
        """Put a new installation in the place of the model's last one."""
        known = self._store.get(install.model)
        if known is not None:
            next_state(State(known.state), Event.OFFER)
        with self._store.transaction():
            self._store.put(install)
            self._report(event_of(install, at=install.updated_at))

    def move(self, install: Install, event: Event, **changes: Any) -> Install:
        """Follow an edge of the lifecycle.

        Args:
            install: as it was read; it must not have changed since.
            changes: further fields to set.

        Returns:
            The installation as it is now.

        Raises:
            IllegalTransition: if there is no such edge.
            InstallError: ``internal`` if it was changed since it was read.
        """
        state = next_state(State(install.state), event)
        changes |= {"state": state.value, "updated_at": self.clock()}
        moved = msgspec.structs.replace(install, **changes)
        with self._store.transaction():
            if not self._store.move(install.model, build=install.build, old=install.state, changes=changes):
                raise InstallError("internal", f"the installation of {install.model} was changed meanwhile")
            self._report(event_of(moved, at=moved.updated_at))
        return moved

    def progress(self, install: Install, *, downloaded_bytes: int, reused_bytes: int) -> Install:
        """Remember how much has come, without a report."""
        changes = {"downloaded_bytes": downloaded_bytes, "reused_bytes": reused_bytes}
        self._store.move(install.model, build=install.build, old=install.state, changes=changes)
        return msgspec.structs.replace(install, **changes)

    def refuse(self, event: InstallEvent) -> None:
        """Report an assigned build that was never taken in."""
        self._report(event)


def event_of(install: Install, *, at: float) -> InstallEvent:
    """The report of an installation's state. ``at`` is Unix seconds."""
    return InstallEvent(
        at=at,
        rollout=install.rollout,
        model=install.model,
        version=install.version,
        build=install.build,
        state=install.state,
        waiting=install.waiting,
        failure=install.failure,
        self_test=install.self_test,
        downloaded_bytes=install.downloaded_bytes,
        reused_bytes=install.reused_bytes,
    )
