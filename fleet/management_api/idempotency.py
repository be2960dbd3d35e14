"""``Idempotency-Key``: a creating POST that is sent twice happens once.

The record, the creation and its answer are one transaction, so a crash in between leaves
nothing behind and the repeat simply runs. A concurrent repeat waits for the first one's
commit on the unique key and then gets its answer. Secrets are shown once and not stored, so
they are null in a replayed answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from django.db import IntegrityError, transaction
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.encoders import JSONEncoder

from fleet.management_api.authentication import Principal
from tenancy.errors import Invalid
from tenancy.models import IdempotencyRecord

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
MAX_KEY_LENGTH = 128
View = TypeVar("View", bound=Callable[..., Response])


def idempotent(*, secret: str | None = None) -> Callable[[View], View]:
    """Make a view's ``post`` honour the header; ``secret`` names a field never to store."""

    def decorate(method: View) -> View:
        @wraps(method)
        def wrapper(view: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
            key = request.headers.get(HEADER)
            if key is None:
                return method(view, request, *args, **kwargs)
            return _once(request, _checked(key), lambda: method(view, request, *args, **kwargs), secret)

        wrapper.idempotent = True  # type: ignore[attr-defined]
        return cast(View, wrapper)

    return decorate


def _checked(key: str) -> str:
    if not 1 <= len(key) <= MAX_KEY_LENGTH or not key.isascii() or not key.isprintable():
        raise Invalid(
            f"{HEADER} takes 1 to {MAX_KEY_LENGTH} printable characters, e.g. a UUID.",
            code="invalid_idempotency_key",
        )
    return key


def _digest(request: Request) -> str:
    body = json.dumps(request.data, sort_keys=True, cls=JSONEncoder)
    return hashlib.sha256(f"{request.path}\n{body}".encode()).hexdigest()


def _once(request: Request, key: str, create: Callable[[], Response], secret: str | None) -> Response:
    caller = cast(Principal, request.user)
    identity = {"tenant": caller.tenant, "actor": str(caller.actor)[:100], "key": key}
    digest = _digest(request)
    try:
        with transaction.atomic():
            stored = IdempotencyRecord.objects.filter(**identity).first()
            if stored is not None:
                return _replay(stored, digest)
            record = IdempotencyRecord.objects.create(**identity, request_digest=digest)
            response = create()
            _store(record, response, secret)
            return response
    except IntegrityError:
        stored = IdempotencyRecord.objects.filter(**identity).first()
        if stored is None:  # another constraint than ours
            raise
        return _replay(stored, digest)


def _store(record: IdempotencyRecord, response: Response, secret: str | None) -> None:
    body = json.loads(json.dumps(response.data, cls=JSONEncoder))
    if secret is not None:
        body[secret] = None
    IdempotencyRecord.objects.filter(pk=record.pk).update(status=response.status_code, body=body)


def _replay(stored: IdempotencyRecord, digest: str) -> Response:
    if stored.request_digest != digest:
        raise Invalid(
            f"This {HEADER} was used for another request; take a new key.", code="idempotency_key_reused"
        )
    return Response(stored.body, status=stored.status, headers={REPLAYED: "true"})
