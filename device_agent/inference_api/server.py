"""Serving the application inside the agent's own event loop."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from device_agent.errors import ConfigError


def bind(host: str, port: int) -> socket.socket:
    """Listen on a loopback address.

    Args:
        port: 0 takes a free one.

    Raises:
        ConfigError: if the address is not loopback, or taken.
    """
    if host not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigError(f"inference_host must be a loopback address, not {host}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port"
        ) from error
    listener.listen(64)
    return listener


class InferenceServer(uvicorn.Server):
    """uvicorn without its signal handling; the agent stops it."""

    def __init__(self, application: Any, *, stop_after_s: int = 2) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=stop_after_s,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the agent's business."""
        yield

    def stop(self) -> None:
        """Finish running requests and leave :meth:`serve`."""
        self.should_exit = True
