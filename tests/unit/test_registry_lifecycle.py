"""Every (state, event) pair of the registry's life cycles, the impossible ones too."""

from __future__ import annotations

import itertools

import pytest

from models_registry import lifecycle, models
from models_registry.acceptance import judge
from models_registry.errors import IllegalTransition
from quantize_worker.contract import QualityReport, Target

# Written out a second time, so that a change of a table has to be meant.
EXPECTED = {
    "version": {
        "uploading": {"complete": "checking"},
        "checking": {"retry": "checking", "pass": "ready", "refuse": "refused"},
        "ready": {},
        "refused": {"recheck": "checking"},
    },
    "build": {
        "planned": {"start": "building", "cancel": "cancelled"},
        "building": {
            "retry": "building",
            "accept": "ready",
            "reject": "rejected",
            "fail": "failed",
            "cancel": "cancelled",
        },
        "ready": {},
        "rejected": {"accept": "ready"},
        "failed": {"start": "building"},
        "cancelled": {"start": "building"},
    },
    "tailoring": {
        "building": {"accept": "ready", "next": "building", "exhaust": "impossible", "replan": "building"},
        "ready": {"replan": "building"},
        "impossible": {"replan": "building", "resume": "building"},
    },
    "release": {
        "signing": {"publish": "published", "fail": "failed"},
        "published": {},
        "failed": {"retry": "signing"},
    },
}
EVENTS = {
    kind: sorted({event for events in states.values() for event in events})
    for kind, states in EXPECTED.items()
}
PAIRS = [
    (kind, state, event)
    for kind, states in EXPECTED.items()
    for state, event in itertools.product(states, [*EVENTS[kind], "nonsense"])
]


@pytest.mark.parametrize(("kind", "state", "event"), PAIRS)
def test_every_pair(kind: str, state: str, event: str) -> None:
    expected = EXPECTED[kind][state].get(event)
    if expected is not None:
        assert lifecycle.next_state(kind, state, event) == expected
        assert state in lifecycle.sources(kind, event)
        return
    assert state not in lifecycle.sources(kind, event)
    with pytest.raises(IllegalTransition) as caught:
        lifecycle.next_state(kind, state, event)
    assert caught.value.extensions["state"] == state
    assert repr(state) in caught.value.detail


@pytest.mark.parametrize(
    ("kind", "event"), [(kind, event) for kind, events in EVENTS.items() for event in events]
)
def test_each_event_leads_to_one_state(kind: str, event: str) -> None:
    ends = {states[event] for states in EXPECTED[kind].values() if event in states}
    assert {lifecycle.result(kind, event)} == ends


def test_an_unknown_event_leads_nowhere() -> None:
    with pytest.raises(IllegalTransition):
        lifecycle.result("build", "nonsense")
    assert lifecycle.sources("build", "nonsense") == []


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("version", models.ModelVersion),
        ("build", models.Build),
        ("tailoring", models.Tailoring),
        ("release", models.Release),
    ],
)
def test_tables_and_columns_know_the_same_states(kind: str, model: type) -> None:
    assert set(lifecycle.STATES[kind]) == set(model.State.values) == set(EXPECTED[kind])  # type: ignore[attr-defined]
    named = {state for (state, _), end in lifecycle.TABLES[kind].items() for state in (state, end)}
    assert named <= set(lifecycle.STATES[kind])


def test_starts_are_limited() -> None:
    assert [lifecycle.may_start_again(starts) for starts in (0, 4, 5, 6)] == [True, True, False, False]


def target(floor: float) -> Target:
    return Target(
        name="entry",
        version=1,
        accelerator="cpu",
        execution_provider="CPUExecutionProvider",
        emulated=False,
        precisions=["int4"],
        memory_bytes=1000,
        storage_bytes=1000,
        quality_floor=floor,
    )


@pytest.mark.parametrize(
    ("value", "size_bytes", "accepted", "words"),
    [
        (0.95, 1000, True, "holds the floor"),
        (0.9, 1000, True, "holds the floor"),
        (0.8999, 1000, False, "below the floor"),
        (float("nan"), 1000, False, "below the floor"),
        (1.0, 1001, False, "storage budget"),
    ],
)
def test_a_build_is_held_against_floor_and_storage(
    value: float, size_bytes: int, accepted: bool, words: str
) -> None:
    quality = QualityReport(metric="accuracy", value=value, cosine=1.0, top1_agreement=1.0, samples=10)
    verdict = judge(quality=quality, size_bytes=size_bytes, target=target(0.9))
    assert verdict.accepted is accepted
    assert words in verdict.reason
