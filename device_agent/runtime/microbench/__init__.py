"""Micro-benchmarks of an execution provider: what the device really does, in a second.

The two graphs beside this file have inputs only (no weights); ``demo/make_microbench.py`` makes
them. Figures are the best of a few runs, because everything else on the device only slows them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from device_agent.runtime.session import Session, open_session

SIDE = 384  # of the square matrices
COPY_BYTES = 32 * 2**20
RUNS = 5


class Figures(msgspec.Struct, kw_only=True, frozen=True):
    """Measured on one execution provider; names as in ``protocol.messages.Accelerator``."""

    fp32_gflops: float
    int8_gops: float
    bandwidth_gb_per_s: float
    session_start_ms: float


def measure(provider: str, *, threads: int) -> Figures:
    """Measure a provider.

    Args:
        provider: execution provider to run on.
        threads: intra-op threads, as inference uses them.

    Raises:
        InstallError: if a graph does not load on the provider.
    """
    folder = resources.files(__package__)
    with resources.as_file(folder / "gemm_fp32.onnx") as path:
        starts = [_timed_s(lambda: open_session(path, provider=provider, threads=threads)) for _ in range(3)]
        fp32 = open_session(path, provider=provider, threads=threads)
    draw = np.random.default_rng(0)
    floats = draw.standard_normal((2, SIDE, SIDE), dtype=np.float32)
    bytes_ = draw.integers(0, 100, (2, SIDE, SIDE), dtype=np.uint8)
    int8 = _open_int8(folder, provider, threads)
    return Figures(
        fp32_gflops=_gemm_giga_per_s(fp32, {"a": floats[0], "b": floats[1]}),
        int8_gops=_gemm_giga_per_s(int8, {"a": bytes_[0], "b": bytes_[1].astype(np.int8)}),
        bandwidth_gb_per_s=_copy_gb_per_s(),
        session_start_ms=statistics.median(starts) * 1000.0,
    )


def _open_int8(folder: Any, provider: str, threads: int) -> Session:
    with resources.as_file(folder / "gemm_int8.onnx") as path:
        return open_session(Path(path), provider=provider, threads=threads)


def _gemm_giga_per_s(session: Session, inputs: dict[str, Any]) -> float:
    session.run(inputs)
    best_s = min(_timed_s(lambda: session.run(inputs)) for _ in range(RUNS))
    return 2.0 * SIDE**3 / best_s / 1e9


def _copy_gb_per_s() -> float:
    source = np.ones(COPY_BYTES, dtype=np.uint8)
    target = np.empty_like(source)
    best_s = min(_timed_s(lambda: np.copyto(target, source)) for _ in range(RUNS))
    return 2.0 * COPY_BYTES / best_s / 1e9  # read and written


def _timed_s(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return max(time.perf_counter() - started, 1e-9)
