"""The filter language: what it means, and where it says no."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.devices.errors import FilterError
from fleet.devices.filters import MAX_LENGTH, parse, version_key

PHONE: dict[str, Any] = {
    "soc": "sm8650",
    "name": "phone 7",
    "ram_mb": 8192,
    "storage_free_mb": 20000,
    "os": "android",
    "os_version": "14",
    "runtime_version": "1.10.0",
    "agent_version": "0.1.0",
    "emulated": False,
    "accelerator": frozenset({"cpu", "npu"}),
    "tag": frozenset({"beta", "qa.lab-1"}),
    "class": "flagship",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("   \n", True),
        ("ram_mb >= 8192", True),
        ("ram_mb > 8192", False),
        ("ram_mb < 8192.5", True),
        ("ram_mb <= 8191", False),
        ("ram_mb == 8192", True),
        ("ram_mb != 8192", False),
        ("ram_mb in (4096, 8192)", True),
        ("storage_free_mb > -1", True),
        ('soc == "sm8650"', True),
        ('soc != "sm8650"', False),
        ('soc in ("a", "sm8650")', True),
        ('soc in ("a")', False),
        ('name == "phone 7"', True),
        ('accelerator == "npu"', True),
        ('accelerator == "gpu"', False),
        ('accelerator != "gpu"', True),
        ('accelerator != "cpu"', False),
        ('accelerator in ("gpu", "npu")', True),
        ("emulated == true", False),
        ("emulated == false", True),
        ("emulated != true", True),
        ("os_version >= 14", True),
        ('os_version < "14"', False),
        ("runtime_version >= 1.9", True),  # by numbers: 1.10 is after 1.9
        ('runtime_version > "1.9.9"', True),
        ("runtime_version == 1.10", True),  # trailing zeros do not count
        ('runtime_version in ("1.9", "1.10.0")', True),
        ('runtime_version != "1.10"', False),
        ("tag:beta", True),
        ("tag:qa.lab-1", True),
        ("tag:alpha", False),
        ("class:flagship", True),
        ("class:entry", False),
        ("not tag:alpha", True),
        ("not not tag:beta", True),
        ("tag:alpha or tag:beta and ram_mb > 9000", False),  # and binds before or
        ("(tag:alpha or tag:beta) and ram_mb > 8000", True),
        ("not tag:alpha and tag:beta", True),  # not binds before and
        ("not (tag:alpha and tag:beta)", True),
        ('os == "android"\n  and os_version >= 13', True),
    ],
)
def test_meaning(text: str, expected: bool) -> None:
    assert parse(text).matches(PHONE) is expected


@pytest.mark.parametrize(
    ("text", "column", "hint"),
    [
        ("color == 3", 1, "Known: accelerator"),
        ("ram_mb > 1 and password == 3", 16, "password"),
        ('ram_mb > "x"', 10, "a number"),
        ("ram_mb == 1.2.3", 11, "a number"),
        ("ram_mb == true", 11, "a number"),
        ("soc == 3", 8, "quotes"),
        ('soc > "a"', 5, "==, != and in only"),
        ('accelerator < "npu"', 13, "==, != and in only"),
        ("emulated == 1", 13, "true or false"),
        ('accelerator == "tpu"', 16, "cpu, gpu, npu"),
        ('os_version >= "beta"', 15, "not a version"),
        ("os_version >= -3", 15, "does not fit"),
        ("os_version == true", 15, "does not fit"),
        ("ram_mb >", 9, "too early"),
        ("(ram_mb > 1", 12, "too early"),
        ("ram_mb > 1)", 11, "not expected"),
        ("ram_mb = 1", 8, "not expected"),
        ("ram_mb > 1 ram_mb < 2", 12, "not expected"),
        ("ram_mb__gt == 1", 1, "no field"),
        ("'; drop table", 1, "not expected"),
        ("tag: beta", 4, "not expected"),
        ("not", 4, "too early"),
        ("soc in ()", 9, "not expected"),
        ('soc == "a\x00"', 8, "not expected"),
        ('soc == "a\nb"', 8, "not expected"),
        ("tag:x\x00", 6, "not expected"),
        ("(" * 51 + "tag:x" + ")" * 51, 51, "parentheses"),
        ("not " * 60 + "tag:x", 201, "parentheses"),
        ("x" * (MAX_LENGTH + 1), MAX_LENGTH + 1, "characters"),
    ],
)
def test_refusal_names_the_column(text: str, column: int, hint: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse(text)
    assert caught.value.code == "invalid_filter"
    assert caught.value.status == 400
    assert caught.value.column == column
    assert hint in caught.value.detail
    assert caught.value.as_problem()["column"] == column


def test_unknown_attributes_match_no_comparison() -> None:
    for text in ("ram_mb > 0", 'soc == "x"', "os_version >= 1", 'accelerator == "npu"', "tag:x", "class:x"):
        assert not parse(text).matches({}), text
    assert not parse("os_version >= 1").matches({"os_version": "unknown"})


def test_named_classes_are_known() -> None:
    assert parse("class:entry or (class:flagship and not class:old)").classes == {"entry", "flagship", "old"}
    assert parse("ram_mb > 1").classes == frozenset()


@pytest.mark.parametrize(
    ("text", "key"),
    [("1.10.2", (1, 10, 2)), ("1.20.0", (1, 20)), ("0", (0,)), ("", ()), ("v2-rc1", (2, 1)), ("none", ())],
)
def test_version_key(text: str, key: tuple[int, ...]) -> None:
    assert version_key(text) == key


@settings(deadline=None)
@given(st.text(alphabet='ram_mb tagclso:()"<>=!,.0189 notandori\n', max_size=80))
def test_any_text_parses_or_is_refused(text: str) -> None:
    column = 1
    try:
        parse(text).matches(PHONE)
    except FilterError as error:
        column = error.column
    assert 1 <= column <= len(text) + 1


@settings(deadline=None)
@given(st.integers(0, 20000), st.integers(0, 20000))
def test_numbers_compare_as_numbers(have: int, wanted: int) -> None:
    assert parse(f"ram_mb >= {wanted}").matches(PHONE | {"ram_mb": have}) is (have >= wanted)
