"""One check-in: enrol, say what we are, ask what to run, and install it."""

from __future__ import annotations

import logging
import platform
from pathlib import Path
from typing import Literal

import msgspec

from device_agent import capabilities
from device_agent.agent.device import Device
from device_agent.config import ROOT_NAME
from device_agent.errors import ConfigError, Refused, TrustError
from device_agent.lifecycle import ENDED_BADLY, PENDING, State
from device_agent.protocol.messages import AssignedModel, Assignment
from device_agent.store import Identity, write_durably
from device_agent.trust import Repository, assignment_keys, trusted_model, verify_assignment, verify_root

log = logging.getLogger(__name__)

DEFAULT_POLL_S = 30.0
RENEW_BEFORE_S = 60.0  # fetch an assignment again this long before it expires, if it is needed
_UNKNOWN = frozenset({"unknown_device", "device_unknown", "not_enrolled"})

Outcome = Literal["active", "waiting", "failed", "refused"]


class CheckIn:
    """Synchronous; one at a time. Whatever fails, the state stays whole and the next one goes on.

    Args:
        device: the agent's parts.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._values = device.identity
        self._identify()

    @property
    def poll_interval_s(self) -> float:
        """What the server last asked for, in seconds, without jitter."""
        return float(self._values.value("poll_interval_s", str(DEFAULT_POLL_S)))

    def run(self) -> None:
        """Check in once.

        Raises:
            TransportError, TrustError, ConfigError: what stopped it.
        """
        self._ensure_enrolled()
        try:
            self._send_capabilities()
            self._update_assignment()
        except Refused as error:
            if error.status in (401, 403) or error.code in _UNKNOWN:
                self._doubt_identity()
            raise
        self._believe_identity()
        for model in self._device.installer.due():
            self._device.installer.install(model)

    def send_reports(self, *, flush: bool = False) -> None:
        """Collect and send telemetry, if the device is accepted.

        Raises:
            TransportError: if the server cannot take it now.
        """
        self._device.telemetry.collect(flush=flush)
        identity = self._values.load()
        if identity is not None and identity.state == "accepted":
            self._device.telemetry.send(self._device.api.report)

    def outcome(self) -> Outcome:
        """The state of everything assigned, the worst first."""
        states = {install.state for install in self._device.installs.all()}
        if self._refused():
            return "refused"
        if states & ENDED_BADLY:
            return "failed"
        return "active" if states <= {State.ACTIVE} else "waiting"

    # -- identity ---------------------------------------------------------------------------

    def _identify(self) -> None:
        identity = self._values.load()
        if identity is not None:
            self._device.api.identify(identity.device)

    def _ensure_enrolled(self) -> None:
        """Enrol, or ask again while the server may not have accepted this device."""
        known = self._values.load()
        if known is not None and known.state == "accepted":
            return
        if not self._device.config.provisioning_key:
            if known is None:
                raise ConfigError("not enrolled: give a provisioning key (`init --provisioning-key`)")
            return
        try:
            self._enroll(known)
        except Refused as error:
            if known is None or error.code.startswith("device_"):
                raise
            log.warning("enrolling again is refused (%s); trying with the identity at hand", error.code)

    def _enroll(self, known: Identity | None) -> None:
        config = self._device.config
        name = config.name or platform.node()[:100]
        answer = self._device.api.enroll(provisioning_key=config.provisioning_key, name=name)
        self._values.save(
            Identity(server=config.server, device=answer.device, tenant=answer.tenant, state=answer.state)
        )
        if known is None or known.device != answer.device:
            self._values.set_value("capabilities_digest", "")
            self._values.set_value("desired_etag", "")
        self._device.api.identify(answer.device)
        if answer.state != "accepted":
            raise Refused(
                code=f"device_{answer.state}",
                status=403,
                detail=f"this device is {answer.state}; an operator accepts it in the console",
            )
        log.info("enrolled as %s", answer.device)

    def _doubt_identity(self) -> None:
        """The server does not take this device any more: ask for its state at the next check-in."""
        identity = self._values.load()
        if identity is not None:
            self._values.save(msgspec.structs.replace(identity, state="pending"))

    def _believe_identity(self) -> None:
        """The server has just answered this device: it is accepted."""
        identity = self._values.load()
        if identity is not None and identity.state != "accepted":
            self._values.save(msgspec.structs.replace(identity, state="accepted"))

    def _send_capabilities(self) -> None:
        report = self._device.capability_report()
        digest = capabilities.digest(report)
        if digest != self._values.value("capabilities_digest"):
            self._device.api.put_capabilities(report)
            self._values.set_value("capabilities_digest", digest)

    # -- what to run ------------------------------------------------------------------------

    def _update_assignment(self) -> None:
        try:
            etag = "" if self._needs_renewal() else self._values.value("desired_etag")
            answer = self._device.api.desired(etag)
            if answer is None:
                return
            desired, new_etag = answer
            self._values.set_value("poll_interval_s", str(desired.poll_interval_s))
            nothing = not desired.models and not self._device.installs.models()
            if nothing or self._take_assignment():
                self._values.set_value("desired_etag", new_etag)
        finally:
            if self._device.clock() >= self._expires():
                self._device.installer.expire()

    def _take_assignment(self) -> bool:
        """Fetch and verify the assignment; True when all of it could be believed."""
        identity = self._values.load()
        assert identity is not None
        try:
            heard_until = self._device.telemetry.drained_at
            envelope = self._device.api.assignment()
        except Refused as error:
            if error.status == 404:  # nothing was ever assigned
                return True
            raise
        repository = self._repository()
        repository.refresh()  # after the envelope, so that every target it names is published
        assignment = verify_assignment(
            envelope,
            keys=assignment_keys(repository),
            device=identity.device,
            tenant=identity.tenant,
            sequence_floor=self._device.floors.sequence(identity.device),
            now=repository.now,
        )
        believed = self._offer(assignment, repository, heard_until)
        self._device.floors.raise_sequence(identity.device, assignment.sequence)
        self._values.set_value("assignment_expires", str(assignment.expires))
        return believed

    def _offer(self, assignment: Assignment, repository: Repository, heard_until: float) -> bool:
        refused: dict[str, dict[str, str]] = {}
        for assigned in assignment.models:
            try:
                trusted = trusted_model(assigned, repository)
                self._device.installer.offer(assigned, trusted.manifest, heard_until=heard_until)
            except TrustError as error:
                refused[assigned.model] = self._refuse(assigned, error)
        self._values.set_value("refused", msgspec.json.encode(refused).decode())
        self._device.installer.remove_others(assigned.model for assigned in assignment.models)
        return not refused

    def _refuse(self, assigned: AssignedModel, error: TrustError) -> dict[str, str]:
        log.warning("%s is refused: %s", assigned.model, error)
        entry = {
            "build": assigned.build,
            "rollout": assigned.rollout,
            "failure": error.failure,
            "detail": str(error),
        }
        if self._refused().get(assigned.model) != entry:
            self._device.installer.refuse(assigned, error.failure)
        return entry

    def _refused(self) -> dict[str, dict[str, str]]:
        return msgspec.json.decode(self._values.value("refused", "{}"), type=dict[str, dict[str, str]])

    def _expires(self) -> float:
        return float(self._values.value("assignment_expires", "inf"))

    def _needs_renewal(self) -> bool:
        unfinished = any(
            one.state in PENDING or one.state == "expired" for one in self._device.installs.all()
        )
        return unfinished and self._device.clock() >= self._expires() - RENEW_BEFORE_S

    # -- trust ------------------------------------------------------------------------------

    def _repository(self) -> Repository:
        return Repository(
            self._device.state_dir / "tuf",
            root=self._root(),
            metadata=self._device.api.metadata,
            target=self._device.api.target,
            floors=self._device.floors,
            clock=self._device.clock,
        )

    def _root(self) -> bytes:
        """The embedded root; the server's first one only where that was asked for."""
        path = self._device.state_dir / ROOT_NAME
        if path.exists():
            return path.read_bytes()
        config = self._device.config
        if config.root:
            try:
                root = Path(config.root).read_bytes()
            except OSError as error:
                raise ConfigError(f"the TUF root cannot be read: {error}") from error
        elif config.trust_on_first_use:
            log.warning("trusting the server's TUF root on first use")
            root = b"".join(self._device.api.metadata("1.root.json"))
        else:
            raise ConfigError("no TUF root: give `init --root FILE` or, knowingly, --trust-on-first-use")
        verify_root(root)  # before it is kept: what is kept is not asked for again
        write_durably(path, root, mode=0o644)
        return root
