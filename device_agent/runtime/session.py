"""A session on one execution provider, with its inputs checked before they reach it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime

from device_agent.errors import InferenceError, InstallError

Tensor = npt.NDArray[Any]

_DTYPES: dict[str, str] = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}


@dataclass(frozen=True)
class TensorInfo:
    """An input or output. Dimensions of any size are None; ``dtype`` is numpy's name."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Session:
    """A loaded model. :meth:`run` may be called from any thread.

    Args:
        inner: ONNX Runtime's session.
        provider: the execution provider that was asked for, and really is in use.
    """

    def __init__(self, inner: Any, provider: str) -> None:
        self._inner = inner
        self.provider = provider
        self.inputs = tuple(_info(node) for node in inner.get_inputs())
        self.outputs = tuple(_info(node) for node in inner.get_outputs())

    def check(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> None:
        """Hold tensors to what the model declares.

        Raises:
            InferenceError: naming the input or output and what was expected.
        """
        expected = {info.name: info for info in self.inputs}
        if unknown := sorted(set(inputs) - set(expected)):
            raise InferenceError(f"unknown input {unknown[0]!r}; the model takes {sorted(expected)}")
        if missing := sorted(set(expected) - set(inputs)):
            raise InferenceError(f"input {missing[0]!r} is missing; the model takes {sorted(expected)}")
        for name, tensor in inputs.items():
            _check_tensor(expected[name], tensor)
        known = [info.name for info in self.outputs]
        for name in outputs:
            if name not in known:
                raise InferenceError(f"unknown output {name!r}; the model gives {known}")

    def run(
        self, inputs: Mapping[str, Tensor], outputs: Sequence[str] = (), *, options: Any = None
    ) -> dict[str, Tensor]:
        """Run the model.

        Args:
            inputs: every input by name.
            outputs: names wanted; all when empty.
            options: onnxruntime.RunOptions, to terminate from another thread.

        Raises:
            InferenceError: if ONNX Runtime refuses the input or fails.
        """
        names = list(outputs) or [info.name for info in self.outputs]
        try:
            values = self._inner.run(names, dict(inputs), options)
        except Exception as error:  # ORT's own classes derive from Exception alone
            status = 503 if options is not None and options.terminate else 400
            reason = str(error).split(" : ")[-1].splitlines()[0] if str(error) else type(error).__name__
            raise InferenceError(
                f"the model refused this input: {reason}", status=status, code="run_failed"
            ) from error
        return dict(zip(names, values, strict=True))


def open_session(path: Path, *, provider: str, threads: int) -> Session:
    """Load a model on exactly the given execution provider.

    ONNX Runtime falls back to the CPU silently; here that is an error.

    Args:
        path: the ONNX graph; external data lies beside it.
        provider: an execution provider's name.
        threads: intra-op threads; spinning is off (it wastes the other lanes' time).

    Raises:
        InstallError: ``provider_fallback``, or ``session_failed`` when it does not load.
    """
    if provider not in onnxruntime.get_available_providers():
        raise InstallError("provider_fallback", f"this runtime has no {provider}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        inner = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InstallError("session_failed", f"the build does not load: {reason}") from error
    used = inner.get_providers()
    if not used or used[0] != provider:
        raise InstallError("provider_fallback", f"asked for {provider}, ONNX Runtime uses {used}")
    return Session(inner, provider)


def _check_tensor(info: TensorInfo, tensor: Tensor) -> None:
    if tensor.dtype.name != info.dtype:
        raise InferenceError(f"input {info.name!r} is {tensor.dtype.name}, expected {info.dtype}")
    shape = tensor.shape
    fits = len(shape) == len(info.shape) and all(
        want is None or have == want for have, want in zip(shape, info.shape, strict=True)
    )
    if not fits:
        wanted = [-1 if size is None else size for size in info.shape]
        raise InferenceError(f"input {info.name!r} has shape {list(shape)}, expected {wanted} (-1: any size)")


def _info(node: Any) -> TensorInfo:
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorInfo(name=node.name, dtype=_DTYPES.get(node.type, node.type), shape=shape)
