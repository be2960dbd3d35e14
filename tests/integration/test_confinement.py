"""Limits of a job: what is mapped is not memory, what is allocated is, over all its processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from quantize_worker.errors import SandboxOutOfMemory
from quantize_worker.sandbox import Sandbox, find_bubblewrap
from quantize_worker.steps.confinement import Limits, anonymous_bytes
from quantize_worker.steps.exchange import SOURCE_FOLDER, Job
from tests.exports import listed
from tests.integration import onnx_models

MB = 1 << 20
ALLOCATE = "import numpy; numpy.ones(%d, numpy.uint8); print('allocated')"
MAP = "import numpy; print(int(numpy.memmap(%r, numpy.uint8, %r)[::65536].sum()))"


def confined(code: str, *, source_bytes: int = 0) -> str:
    """What ``code`` prints, or its last words, where it may have 512 MB."""
    start = (
        "import sys; from quantize_worker.steps.confinement import Limits, apply; "
        f"apply(Limits(wall_s=60, memory_bytes={512 * MB}), source_bytes={source_bytes})"
    )
    answer = subprocess.run(
        [sys.executable, "-c", f"{start}\n{code}"], capture_output=True, text=True, check=False, timeout=60
    )
    return answer.stdout.strip() or answer.stderr.strip().splitlines()[-1]


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A file of 1 GiB that takes no room."""
    path = tmp_path / "weights.bin"
    with path.open("wb") as made:
        made.truncate(1 << 30)
    return str(path)


def test_a_process_gets_what_it_may_have_and_no_more() -> None:
    assert confined(ALLOCATE % (256 * MB)) == "allocated"
    assert "MemoryError" in confined(ALLOCATE % (600 * MB))


@pytest.mark.parametrize("mode", ["r", "c"])
def test_mapped_weights_are_no_memory(mode: str, file: str) -> None:
    assert confined(MAP % (file, mode), source_bytes=1 << 30) == "0"


def test_private_maps_need_their_allowance(file: str) -> None:
    assert "Cannot allocate memory" in confined(MAP % (file, "c"))


def test_memory_of_a_process_and_those_below_it_is_counted() -> None:
    inner = f"import numpy, sys; a = numpy.ones({200 * MB}, numpy.uint8); print('ready', flush=True); sys.stdin.read()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    command = [sys.executable, "-c", outer]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        assert 200 * MB < anonymous_bytes(process.pid) < 400 * MB
        process.stdin.close()
    assert anonymous_bytes(process.pid) == 0


@pytest.mark.parametrize("confinement", ["bubblewrap", "limits alone"])
def test_a_job_that_allocates_in_the_room_for_maps_is_stopped(confinement: str, tmp_path: Path) -> None:
    program = find_bubblewrap() if confinement == "bubblewrap" else None
    if confinement == "bubblewrap" and program is None:
        pytest.skip("bubblewrap is not available")
    model = onnx_models.huge_constant()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([1 << 30]), "shape"))  # 4 GiB
    (tmp_path / SOURCE_FOLDER).mkdir()
    (tmp_path / SOURCE_FOLDER / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / SOURCE_FOLDER / "weights.bin").touch()
    os.truncate(tmp_path / SOURCE_FOLDER / "weights.bin", 1 << 30)
    files = listed(tmp_path / SOURCE_FOLDER)
    job = Job(kind="inspect", files=files, limits=Limits(wall_s=60, memory_bytes=1 << 30))
    with pytest.raises(SandboxOutOfMemory):
        Sandbox(bubblewrap=program).run(tmp_path, job, lambda step: None, threading.Event())
