"""What the command refuses before anything runs."""

from __future__ import annotations


class BadInput(Exception):
    """Wrong usage or a wrong file. ``code`` is stable, ``message`` says what to do next.

    Codes: usage, bad_target, missing_file, out_not_empty, out_not_ours,
    out_not_writable.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
