"""Requests of the Open Inference Protocol v2 and how they are read off a body."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from device_agent.errors import InferenceError

Size = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


class RequestedTensor(msgspec.Struct, kw_only=True):
    """An input: its data stands in ``data``, or behind the JSON (``binary_data_size``)."""

    name: str
    shape: list[Size]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class RequestedOutput(msgspec.Struct, kw_only=True):
    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct, kw_only=True):
    inputs: list[RequestedTensor]
    outputs: list[RequestedOutput] = []
    id: str = ""
    parameters: dict[str, Any] = {}


def split_body(body: bytes, header_length: str | None) -> tuple[InferRequest, memoryview]:
    """The request's JSON, and the binary data behind it.

    Args:
        header_length: of the header ``Inference-Header-Content-Length``, if given.

    Raises:
        InferenceError: if the length or the JSON is wrong.
    """
    if header_length is None:
        length = len(body)
    elif header_length.isdigit() and len(header_length) < 16 and int(header_length) <= len(body):
        length = int(header_length)
    else:
        raise InferenceError("Inference-Header-Content-Length is not a length within the body")
    try:
        request = msgspec.json.decode(memoryview(body)[:length], type=InferRequest)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
        raise InferenceError(f"the request is not valid: {error}") from error
    return request, memoryview(body)[length:]
