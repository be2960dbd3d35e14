"""States of an installation and the only ways between them. Pure.

::

    offered ─START→ downloading ─DOWNLOADED→ verifying ─VERIFIED→ staged ─TEST→ testing ─PASSED→ active

Every state before ``active`` can FAIL (final until the assignment changes), be POSTPONEd back to
``offered`` (network gone, storage full, a transient failure) or EXPIRE with its assignment.

* ROLL_BACK ends a failed self-test while an earlier build stays active; FAIL one without.
  From ``active`` they mean that the slot no longer loads (a damaged file).
* RECOVER is what a restart does with a half-done step: chunks already here are kept, so
  downloading and verifying begin again from ``offered``. ``testing`` has no RECOVER: the test may
  have ended the process, so a restart counts it as a failed attempt. ``staged`` needs none.
* OFFER is a changed assignment: it starts over from any state.
* ``active`` has no EXPIRE: what runs keeps running when the assignment's time is over.
"""

from __future__ import annotations

from enum import StrEnum

from device_agent.protocol.messages import FailureCode


class State(StrEnum):
    """As :data:`device_agent.protocol.messages.InstallState`."""

    OFFERED = "offered"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    STAGED = "staged"
    TESTING = "testing"
    ACTIVE = "active"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    EXPIRED = "expired"


class Event(StrEnum):
    OFFER = "offer"
    START = "start"
    DOWNLOADED = "downloaded"
    VERIFIED = "verified"
    TEST = "test"
    PASSED = "passed"
    POSTPONE = "postpone"
    FAIL = "fail"
    ROLL_BACK = "roll_back"
    EXPIRE = "expire"
    RECOVER = "recover"


class IllegalTransition(Exception):
    """There is no edge for this event in this state."""


_EDGES: tuple[tuple[State, Event, State], ...] = (
    (State.OFFERED, Event.START, State.DOWNLOADING),
    (State.OFFERED, Event.POSTPONE, State.OFFERED),
    (State.OFFERED, Event.FAIL, State.FAILED),
    (State.OFFERED, Event.EXPIRE, State.EXPIRED),
    (State.DOWNLOADING, Event.DOWNLOADED, State.VERIFYING),
    (State.DOWNLOADING, Event.POSTPONE, State.OFFERED),
    (State.DOWNLOADING, Event.FAIL, State.FAILED),
    (State.DOWNLOADING, Event.EXPIRE, State.EXPIRED),
    (State.DOWNLOADING, Event.RECOVER, State.OFFERED),
    (State.VERIFYING, Event.VERIFIED, State.STAGED),
    (State.VERIFYING, Event.POSTPONE, State.OFFERED),
    (State.VERIFYING, Event.FAIL, State.FAILED),
    (State.VERIFYING, Event.EXPIRE, State.EXPIRED),
    (State.VERIFYING, Event.RECOVER, State.OFFERED),
    (State.STAGED, Event.TEST, State.TESTING),
    (State.STAGED, Event.POSTPONE, State.OFFERED),
    (State.STAGED, Event.FAIL, State.FAILED),
    (State.STAGED, Event.EXPIRE, State.EXPIRED),
    (State.TESTING, Event.PASSED, State.ACTIVE),
    (State.TESTING, Event.POSTPONE, State.OFFERED),
    (State.TESTING, Event.FAIL, State.FAILED),
    (State.TESTING, Event.ROLL_BACK, State.ROLLED_BACK),
    (State.TESTING, Event.EXPIRE, State.EXPIRED),
    (State.ACTIVE, Event.FAIL, State.FAILED),
    (State.ACTIVE, Event.ROLL_BACK, State.ROLLED_BACK),
    *((state, Event.OFFER, State.OFFERED) for state in State),
)

TRANSITIONS: dict[tuple[State, Event], State] = {(old, event): new for old, event, new in _EDGES}

PENDING: frozenset[State] = frozenset(
    {State.OFFERED, State.DOWNLOADING, State.VERIFYING, State.STAGED, State.TESTING}
)

ENDED_BADLY: frozenset[State] = frozenset({State.FAILED, State.ROLLED_BACK})

MAX_ATTEMPTS = 3
RETRY_BASE_S = 10.0
RETRY_CEILING_S = 3600.0

# Failures that the same bytes may not have next time. The others are the build's or the device's
# own and come back every time, so trying again would only cost battery.
_TRANSIENT: frozenset[FailureCode] = frozenset(
    {"download_failed", "digest_mismatch", "insufficient_storage", "session_failed", "internal"}
)


def next_state(state: State, event: Event) -> State:
    """The state after ``event``.

    Raises:
        IllegalTransition: if the table has no such edge.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"no transition from {state} on {event}") from None


def after_failure(failure: FailureCode, *, attempts: int) -> Event:
    """POSTPONE while a transient failure may be tried again, else FAIL.

    Args:
        failure: what happened.
        attempts: failed attempts of this build so far, this one included.
    """
    return Event.POSTPONE if failure in _TRANSIENT and attempts < MAX_ATTEMPTS else Event.FAIL


def final_event(state: State, *, has_previous: bool) -> Event:
    """FAIL, or ROLL_BACK where an earlier build takes over from a test or an active slot."""
    return Event.ROLL_BACK if has_previous and (state, Event.ROLL_BACK) in TRANSITIONS else Event.FAIL


def retry_delay_s(attempts: int, *, base_s: float = RETRY_BASE_S) -> float:
    """Seconds to wait after the given number of failed attempts: exponential, with a ceiling."""
    return min(base_s * 2.0 ** max(attempts - 1, 0), RETRY_CEILING_S)
