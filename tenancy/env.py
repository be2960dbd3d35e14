"""Typed readers of environment variables. A value that does not parse stops the start.

An empty variable counts as unset.
"""

from __future__ import annotations

import os
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured


def env_str(name: str, default: str | None = None) -> str:
    """The variable's text, or ``default``; without a default it is required."""
    value = os.environ.get(name, "")
    if value:
        return value
    if default is None:
        raise ImproperlyConfigured(f"{name} must be set")
    return default


def env_int(name: str, default: int, *, minimum: int | None = None) -> int:
    text = env_str(name, str(default))
    try:
        value = int(text)
    except ValueError:
        raise ImproperlyConfigured(f"{name}={text!r} is not a whole number") from None
    if minimum is not None and value < minimum:
        raise ImproperlyConfigured(f"{name}={value} is below {minimum}")
    return value


def env_float(name: str, default: float) -> float:
    text = env_str(name, str(default))
    try:
        return float(text)
    except ValueError:
        raise ImproperlyConfigured(f"{name}={text!r} is not a number") from None


def env_bool(name: str, default: bool) -> bool:
    text = env_str(name, "true" if default else "false").lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off"):
        return False
    raise ImproperlyConfigured(f"{name}={text!r} is neither true nor false")


def env_list(name: str, default: str) -> list[str]:
    """A comma-separated list, blanks stripped."""
    return [part.strip() for part in env_str(name, default).split(",") if part.strip()]


def env_path(name: str, default: Path) -> Path:
    return Path(env_str(name, str(default))).absolute()
