"""Errors of the worker.

WorkerError
├── ModelRefused     the uploaded model or its sets are at fault: a refusal code and what to do
├── BuildFailed      a build could not be made: a stable code and whose fault it is
├── SandboxFailed    the child ended without an answer
│   ├── SandboxTimeout      it took longer than allowed
│   ├── SandboxOutOfMemory  it needed more memory than allowed, or was killed for memory
│   └── SandboxCrashed      it crashed, e.g. a segmentation fault in a native library
└── Cancelled        a cancel marker was found
"""

from __future__ import annotations

from typing import Literal


class WorkerError(Exception):
    """Base of this package's errors. ``code`` is stable, ``message`` says what to do next."""

    code = "worker_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ModelRefused(WorkerError):
    """The model is at fault. ``code`` is one of the contract's refusal codes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class BuildFailed(WorkerError):
    def __init__(self, code: str, message: str, *, fault: Literal["model", "system"]) -> None:
        super().__init__(message)
        self.code = code
        self.fault = fault


class SandboxFailed(WorkerError):
    code = "worker_failed"


class SandboxTimeout(SandboxFailed):
    code = "time_limit"


class SandboxOutOfMemory(SandboxFailed):
    code = "memory_limit"


class SandboxCrashed(SandboxFailed):
    code = "crashed"


class Cancelled(WorkerError):
    code = "cancelled"
