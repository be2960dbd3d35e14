"""Every (state, event) pair of the registry's life cycles, the impossible ones too."""

from __future__ import annotations

import itertools
from typing import Literal

import msgspec
import pytest

from models_registry import lifecycle, models
from models_registry.acceptance import judge
from models_registry.errors import IllegalTransition
from quantize_worker.contract import QualityReport, Target

# Written out a second time, so that a change of a table has to be meant.
EXPECTED = {
    "version": {
        "uploading": {"complete": "checking"},
        "checking": {"retry": "checking", "pass": "ready", "refuse": "refused", "cancel": "refused"},
        "ready": {},
        "refused": {"recheck": "checking"},
    },
    "batch": {
        "planned": {"start": "building", "cancel": "cancelled"},
        "building": {"retry": "building", "pass": "ready", "fail": "failed", "cancel": "cancelled"},
        "ready": {},
        "failed": {"start": "building"},
        "cancelled": {"start": "building"},
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
        "building": {
            "accept": "ready",
            "next": "building",
            "correct": "building",
            "exhaust": "impossible",
            "replan": "building",
        },
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
        ("batch", models.CandidateBatch),
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


def report(value: float, samples: int, source: float | None = None) -> QualityReport:
    own = None if source is None else value * source
    metric: Literal["accuracy", "cosine"] = "cosine" if source is None else "accuracy"
    return QualityReport(
        metric=metric,
        value=value,
        cosine=value,
        top1_agreement=1.0,
        samples=samples,
        accuracy=own,
        source_accuracy=source,
    )


@pytest.mark.parametrize(
    ("quality", "available", "generated", "reason"),
    [
        (
            report(1.0, 128, 0.1333),
            300,
            False,
            "accuracy 0.133, 100.0 % of FP32's 0.133, on 128 of 300 samples, holds the floor 97 %",
        ),
        (
            report(0.96999, 128, 0.8),
            128,
            False,
            "accuracy 0.776, 96.9 % of FP32's 0.800, on 128 samples, is below the floor 97 %",
        ),
        (report(0.9934, 128), 256, False, "cosine 0.9934 on 128 of 256 samples holds the floor 0.97"),
        (report(0.96999, 128), 256, False, "cosine 0.9699 on 128 of 256 samples is below the floor 0.97"),
        (
            report(0.57, 16),
            16,
            True,
            "cosine 0.5700 on 16 samples (unverified: generated inputs) is below the floor 0.97",
        ),
        (report(0.98, 15), 15, False, "cosine 0.9800 on 15 samples (few samples) holds the floor 0.97"),
        (
            msgspec.structs.replace(report(0.9, 48), confidence=0.999),
            256,
            False,
            "cosine 0.9000 on 48 of 256 samples (enough for 99.9 % confidence) is below the floor 0.97",
        ),
    ],
)
def test_the_reason_says_what_was_measured_on_what(
    quality: QualityReport, available: int, generated: bool, reason: str
) -> None:
    verdict = judge(
        quality=quality, size_bytes=1, target=target(0.97), available=available, generated=generated
    )
    assert verdict.reason == reason
