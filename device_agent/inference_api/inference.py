"""One inference request: from its body to its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from device_agent.errors import InferenceError
from device_agent.inference_api.messages import InferRequest, split_body
from device_agent.inference_api.tensors import Tensor, datatype_of, decode_binary, decode_json, encode_binary
from device_agent.runtime import Runtime, Served
from device_agent.scheduler import Priority

BINARY_HEADER = "Inference-Header-Content-Length"
# Triton's request parameter "priority": 0 is the default, 1 the most urgent.
_PRIORITIES = {
    0: Priority.INTERACTIVE,
    1: Priority.INTERACTIVE,
    2: Priority.NORMAL,
    3: Priority.BACKGROUND,
}


class Meter(Protocol):
    """:class:`device_agent.telemetry.Telemetry`, as far as it is needed here."""

    def count_inference(
        self, *, build: str, provider: str, emulated: bool, latency_ms: float, failed: bool
    ) -> None: ...


class Answer(msgspec.Struct, frozen=True):
    """Body and, with binary data, the length of its JSON."""

    body: bytes
    json_length: int | None


async def infer(
    runtime: Runtime,
    served: Served,
    body: bytes,
    header_length: str | None,
    *,
    meter: Meter,
    clock_s: Callable[[], float] = time.perf_counter,
) -> Answer:
    """Answer a request on the device's lanes.

    Raises:
        InferenceError: if the request is wrong, or the model or the device cannot take it.
    """
    request, binary = split_body(body, header_length)
    inputs = read_inputs(request, binary)
    priority = _priority(request)
    wanted = [output.name for output in request.outputs]
    started = clock_s()
    future = runtime.infer(served, inputs, wanted, priority=priority)  # a wrong request ends here, uncounted
    try:
        outputs = await asyncio.wrap_future(future)
    except InferenceError:
        _count(meter, served, clock_s() - started, failed=True)
        raise
    _count(meter, served, clock_s() - started, failed=False)
    return render(request, served, outputs)


def read_inputs(request: InferRequest, binary: memoryview) -> dict[str, Tensor]:
    """The request's tensors by name.

    Raises:
        InferenceError: if one is given twice, or its data does not fit.
    """
    inputs: dict[str, Tensor] = {}
    for tensor in request.inputs:
        if tensor.name in inputs:
            raise InferenceError(f"input {tensor.name!r} is given twice")
        size = tensor.parameters.get("binary_data_size")
        if size is not None:
            if not isinstance(size, int) or not 0 <= size <= len(binary):
                raise InferenceError(f"input {tensor.name!r}: binary_data_size is longer than the body")
            inputs[tensor.name] = decode_binary(tensor, binary[:size])
            binary = binary[size:]
        elif tensor.data is not None:
            inputs[tensor.name] = decode_json(tensor)
        else:
            raise InferenceError(f"input {tensor.name!r} has neither data nor binary_data_size")
    if len(binary):
        raise InferenceError(f"{len(binary)} bytes of binary data belong to no input")
    return inputs


def render(request: InferRequest, served: Served, outputs: dict[str, Tensor]) -> Answer:
    """The answer, with binary data where the request asks for it."""
    everything = request.parameters.get("binary_data_output") is True
    binary = {one.name: one.parameters.get("binary_data", everything) is True for one in request.outputs}
    tensors: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, tensor in outputs.items():
        datatype = datatype_of(tensor.dtype.name)
        if datatype == "BYTES":
            raise InferenceError(
                f"output {name!r} holds strings, which this API does not carry",
                status=501,
                code="unsupported_datatype",
            )
        entry: dict[str, Any] = {"name": name, "shape": list(tensor.shape), "datatype": datatype}
        if binary.get(name, everything):
            tail.append(encode_binary(tensor))
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            entry["data"] = tensor.reshape(-1).tolist()
        tensors.append(entry)
    answer: dict[str, Any] = {
        "model_name": served.manifest.model,
        "model_version": str(served.manifest.version),
        "outputs": tensors,
    }
    if request.id:
        answer["id"] = request.id
    head = msgspec.json.encode(answer)
    return Answer(b"".join([head, *tail]), len(head) if tail else None)


def _count(meter: Meter, served: Served, elapsed_s: float, *, failed: bool) -> None:
    meter.count_inference(
        build=served.manifest.build,
        provider=served.session.provider,
        emulated=served.emulated,
        latency_ms=elapsed_s * 1000.0,
        failed=failed,
    )


def _priority(request: InferRequest) -> Priority:
    value = request.parameters.get("priority", 0)
    if not isinstance(value, int) or value not in _PRIORITIES:
        raise InferenceError("parameter priority is 1 (interactive), 2 (normal) or 3 (background)")
    return _PRIORITIES[value]


def describe(served: Served) -> dict[str, Any]:
    """Model metadata, as the protocol has it; free dimensions are -1."""

    def tensors(infos: Sequence[Any]) -> list[dict[str, Any]]:
        return [
            {
                "name": info.name,
                "datatype": datatype_of(info.dtype),
                "shape": [-1 if size is None else size for size in info.shape],
            }
            for info in infos
        ]

    return {
        "name": served.manifest.model,
        "versions": [str(served.manifest.version)],
        "platform": "onnxruntime_onnx",
        "inputs": tensors(served.session.inputs),
        "outputs": tensors(served.session.outputs),
        "properties": {
            "build": served.manifest.build,
            "precision": served.manifest.precision,
            "provider": served.session.provider,
            "emulated": str(served.emulated).lower(),
        },
    }
