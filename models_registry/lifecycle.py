"""Life cycles of versions, batches, builds, tailorings and releases: one table each, plain data.

Each table maps (state, event) to the next state. A pair that is absent is not possible;
:func:`next_state` refuses it, and a service that carries a transition out does so by a
conditional UPDATE on :func:`sources`, checking the row count.
"""

from __future__ import annotations

from models_registry.errors import IllegalTransition

Table = dict[tuple[str, str], str]

MAX_STARTS = 5  # attempts that a worker really began, before we say that our side failed

# Nothing leads back to uploading: a version's files are immutable once they are complete.
VERSION: Table = {
    ("uploading", "complete"): "checking",
    ("checking", "retry"): "checking",  # the worker was lost: a new attempt
    ("checking", "pass"): "ready",
    ("checking", "refuse"): "refused",
    ("checking", "cancel"): "refused",
    ("refused", "recheck"): "checking",  # only where the check failed or was cancelled, not for the model
}

# Batches of candidates, a part of checking a large model. A version that is checked again keeps
# the batches that are ready.
BATCH: Table = {
    ("planned", "start"): "building",
    ("planned", "cancel"): "cancelled",
    ("building", "retry"): "building",  # lease expired or our side failed: a new attempt
    ("building", "pass"): "ready",
    ("building", "fail"): "failed",
    ("building", "cancel"): "cancelled",
    ("failed", "start"): "building",
    ("cancelled", "start"): "building",
}

# Ready is final: a release may rest on it. Rejected may still become ready, for a class with a
# lower floor, without being built again; its artifact is kept.
BUILD: Table = {
    ("planned", "start"): "building",
    ("planned", "cancel"): "cancelled",
    ("building", "retry"): "building",  # lease expired or our side failed: a new attempt
    ("building", "accept"): "ready",
    ("building", "reject"): "rejected",
    ("building", "fail"): "failed",
    ("building", "cancel"): "cancelled",
    ("rejected", "accept"): "ready",
    ("failed", "start"): "building",
    ("cancelled", "start"): "building",
}

# Ready and impossible are left only when the class changes (replan) or its build is tried anew.
TAILORING: Table = {
    ("building", "accept"): "ready",
    ("building", "next"): "building",  # this candidate failed, the next one follows
    ("building", "correct"): "building",  # planned anew with what was measured
    ("building", "exhaust"): "impossible",
    ("building", "replan"): "building",
    ("ready", "replan"): "building",
    ("impossible", "replan"): "building",
    ("impossible", "resume"): "building",
}

# A published release never changes: what it may install is known by its targets.
RELEASE: Table = {
    ("signing", "publish"): "published",
    ("signing", "fail"): "failed",
    ("failed", "retry"): "signing",
}

TABLES: dict[str, Table] = {
    "version": VERSION,
    "batch": BATCH,
    "build": BUILD,
    "tailoring": TAILORING,
    "release": RELEASE,
}
STATES: dict[str, tuple[str, ...]] = {
    "version": ("uploading", "checking", "ready", "refused"),
    "batch": ("planned", "building", "ready", "failed", "cancelled"),
    "build": ("planned", "building", "ready", "rejected", "failed", "cancelled"),
    "tailoring": ("building", "ready", "impossible"),
    "release": ("signing", "published", "failed"),
}


def next_state(kind: str, state: str, event: str) -> str:
    """The state that ``event`` leads to.

    Args:
        kind: ``version``, ``batch``, ``build``, ``tailoring`` or ``release``.

    Raises:
        IllegalTransition: if the state does not know the event.
    """
    target = TABLES[kind].get((state, event))
    if target is None:
        raise IllegalTransition(
            f"A {kind} that is {state!r} cannot {event!r}; this is possible when it is "
            f"{' or '.join(map(repr, sources(kind, event))) or 'never'}.",
            state=state,
        )
    return target


def sources(kind: str, event: str) -> list[str]:
    """The states that know ``event``: what a conditional UPDATE filters by."""
    return [state for (state, known) in TABLES[kind] if known == event]


def result(kind: str, event: str) -> str:
    """The one state that ``event`` leads to, wherever it comes from.

    Raises:
        IllegalTransition: if no state knows the event.
    """
    found = {target for (_, known), target in TABLES[kind].items() if known == event}
    if len(found) != 1:
        raise IllegalTransition(f"A {kind} knows no event {event!r}.")
    return found.pop()


def may_start_again(starts: int) -> bool:
    """Whether work that a worker has begun ``starts`` times may be given to one again."""
    return starts < MAX_STARTS
