"""JSON as strictly as RFC 8259 reads, and raw bodies that are streamed.

The framework's own parser lets NaN, repeated keys and integers beyond the database's bigint
through and answers deep nesting with 500.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import IO, Any, NoReturn

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from rest_framework.parsers import BaseParser
from rest_framework.request import Request

from tenancy.errors import Invalid

MAX_DEPTH = 32
MAX_BIGINT = 2**63 - 1
PART_READ_BYTES = 256 * 1024


class MalformedJSON(Invalid):
    code = "malformed_json"
    title = "The body is not valid JSON"
    status = 400


class StrictJSONParser(BaseParser):
    """``application/json`` in UTF-8."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        body = stream.read(limit + 1)
        if len(body) > limit:
            raise RequestDataTooBig
        return parse_json(body)


class RawParser(BaseParser):
    """Any body, left unread: the view streams it with :func:`raw_chunks`."""

    media_type = "*/*"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        return stream


def parse_json(body: bytes) -> Any:
    """Decode ``body``.

    Raises:
        MalformedJSON: syntax, encoding, NaN or Infinity, a repeated key, an integer beyond
            bigint, or nesting deeper than :data:`MAX_DEPTH`.
    """
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_bigint,
        )
    except RecursionError:
        raise MalformedJSON(f"The body nests deeper than {MAX_DEPTH} levels.") from None
    except MalformedJSON:
        raise
    except ValueError as error:  # syntax and encoding
        raise MalformedJSON(f"The body is not valid JSON: {error}.") from None
    _check_depth(value, MAX_DEPTH)
    return value


def raw_chunks(request: Request) -> Iterator[bytes]:
    """The request's body in pieces, never held whole."""
    source = request._request
    while chunk := source.read(PART_READ_BYTES):
        yield chunk


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        raise MalformedJSON(f"The body repeats the key {', '.join(repeated)}.")
    return result


def _refuse_constant(text: str) -> NoReturn:
    raise MalformedJSON(f"{text} is not a JSON number.")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise MalformedJSON(f"The number {text[:40]} is too large.")
    return value


def _bigint(text: str) -> int:
    if len(text) > 20 or not -MAX_BIGINT - 1 <= (value := int(text)) <= MAX_BIGINT:
        raise MalformedJSON(f"The integer {text[:40]} does not fit into 64 bits.")
    return value


def _check_depth(value: Any, left: int) -> None:
    if not isinstance(value, dict | list):
        return
    if left == 0:
        raise MalformedJSON(f"The body nests deeper than {MAX_DEPTH} levels.")
    for item in value.values() if isinstance(value, dict) else value:
        _check_depth(item, left - 1)
