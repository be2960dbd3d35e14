"""Errors of the server side: the root that every server package's tree grows from.

::

    ProblemError                  500  internal
    ├── NotFound                  404  not_found
    ├── Conflict                  409  conflict
    ├── Invalid                   422  invalid
    ├── Forbidden                 403  forbidden
    │   └── ScopeMissing          403  scope_missing
    ├── Unauthenticated           401  unauthenticated
    ├── AlreadyExists             409  already_exists
    └── BrokerUnavailable         503  broker_unavailable

Each carries a stable ``code``, an HTTP ``status``, a short ``title`` and a ``detail`` that says
what to do next; surfaces render them as RFC 9457 problem+json.
"""

from __future__ import annotations

from typing import Any


class ProblemError(Exception):
    """Base of all errors that a caller gets to see.

    Args:
        detail: a sentence that says what is wrong and what to do next.
        code: a more precise stable code than the class's own.
        **extensions: further members of the problem document (RFC 9457, section 3.2).
    """

    code = "internal"
    title = "Something went wrong on our side"
    status = 500

    def __init__(self, detail: str = "", *, code: str | None = None, **extensions: Any) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.extensions = extensions
        if code is not None:
            self.code = code

    def as_problem(self) -> dict[str, Any]:
        """The problem document as plain JSON types."""
        return {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            **self.extensions,
        }


class NotFound(ProblemError):
    code = "not_found"
    title = "Not found"
    status = 404


class Conflict(ProblemError):
    code = "conflict"
    title = "Not possible in the current state"
    status = 409


class AlreadyExists(ProblemError):
    code = "already_exists"
    title = "Exists already"
    status = 409


class Invalid(ProblemError):
    code = "invalid"
    title = "The request is not valid"
    status = 422


class Forbidden(ProblemError):
    code = "forbidden"
    title = "Not allowed"
    status = 403


class ScopeMissing(Forbidden):
    code = "scope_missing"
    title = "The token or role lacks a scope"


class Unauthenticated(ProblemError):
    code = "unauthenticated"
    title = "Sign in or send a valid token"
    status = 401


class BrokerUnavailable(ProblemError):
    """The broker did not take a message; the outbox keeps it and a sweep sends it later."""

    code = "broker_unavailable"
    title = "The message broker cannot be reached"
    status = 503
