"""Typed environment readers: a value that does not parse stops the start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from tenancy.env import env_bool, env_float, env_int, env_list, env_path, env_str

NAME = "POCKETFLEET_TEST_VALUE"
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "read", "value"),
    [
        ("x", lambda: env_str(NAME), "x"),
        ("12", lambda: env_int(NAME, 1), 12),
        ("-3", lambda: env_int(NAME, 1), -3),
        ("0.5", lambda: env_float(NAME, 1.0), 0.5),
        ("Yes", lambda: env_bool(NAME, False), True),
        ("1", lambda: env_bool(NAME, False), True),
        ("off", lambda: env_bool(NAME, True), False),
        ("a, b,,c ", lambda: env_list(NAME, ""), ["a", "b", "c"]),
        ("/tmp/x", lambda: env_path(NAME, Path("/y")), Path("/tmp/x")),
    ],
)
def test_values(monkeypatch: pytest.MonkeyPatch, text: str, read: Callable[[], Any], value: Any) -> None:
    monkeypatch.setenv(NAME, text)
    assert read() == value


@pytest.mark.parametrize("unset", [True, False])
def test_unset_and_empty_give_the_default(monkeypatch: pytest.MonkeyPatch, unset: bool) -> None:
    monkeypatch.setenv(NAME, "")
    if unset:
        monkeypatch.delenv(NAME)
    assert env_str(NAME, "d") == "d"
    assert env_int(NAME, 7) == 7
    assert env_float(NAME, 0.5) == 0.5
    assert env_bool(NAME, True) is True
    assert env_list(NAME, "a,b") == ["a", "b"]
    assert env_path(NAME, Path("rel")).is_absolute()
    with pytest.raises(ImproperlyConfigured, match="must be set"):
        env_str(NAME)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("twelve", lambda: env_int(NAME, 1)),
        ("1.5", lambda: env_int(NAME, 1)),
        ("0", lambda: env_int(NAME, 1, minimum=1)),
        ("fast", lambda: env_float(NAME, 1.0)),
        ("maybe", lambda: env_bool(NAME, False)),
    ],
)
def test_what_does_not_parse_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, text: str, read: Callable[[], Any]
) -> None:
    monkeypatch.setenv(NAME, text)
    with pytest.raises(ImproperlyConfigured, match=NAME):
        read()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POCKETFLEET_DATABASE_URL", "mysql://db/x"),
        ("POCKETFLEET_PUBLIC_URL", "pocketfleet.example"),
        ("POCKETFLEET_SWEEP_INTERVAL_S", "soon"),
        ("POCKETFLEET_DEBUG", "perhaps"),
    ],
)
def test_settings_refuse_to_load(tmp_path: Path, name: str, value: str) -> None:
    clean = {key: text for key, text in os.environ.items() if not key.startswith("POCKETFLEET_")}
    done = subprocess.run(
        [sys.executable, "-c", "import fleet.settings"],
        cwd=ROOT,
        env={**clean, "POCKETFLEET_VAR": str(tmp_path), name: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "ImproperlyConfigured" in done.stderr
    assert name in done.stderr


def test_no_secret_is_ever_the_default(tmp_path: Path) -> None:
    clean = {key: text for key, text in os.environ.items() if not key.startswith("POCKETFLEET_")}
    code = "import fleet.settings as s; print(s.SECRET_KEY, s.DEBUG)"
    secrets = set()
    for folder in ("a", "b", "b"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**clean, "POCKETFLEET_VAR": str(tmp_path / folder)},
            capture_output=True,
            text=True,
            check=True,
        )
        secret, debug = done.stdout.split()
        assert debug == "False"
        assert len(secret) >= 50
        secrets.add(secret)
    assert len(secrets) == 2
    assert (tmp_path / "a" / "secret_key").stat().st_mode & 0o777 == 0o600
    refused = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**clean, "POCKETFLEET_VAR": str(tmp_path), "POCKETFLEET_DATABASE_URL": "postgres://db/x"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "POCKETFLEET_SECRET_KEY must be set" in refused.stderr
