"""Fixtures of the end-to-end tests: each runs on both stacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stacks import Stack, embedded, production, production_available


@pytest.fixture(params=["embedded", "production"])
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    if request.param == "production" and not production_available():
        pytest.skip("POCKETFLEET_TEST_POSTGRES and POCKETFLEET_TEST_RABBITMQ are not set")
    start = embedded if request.param == "embedded" else production
    with start(tmp_path / "var") as running:
        yield running
