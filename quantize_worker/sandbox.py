"""The child process in which everything uploaded is parsed, confined.

Three layers: bubblewrap (no network, no other processes, a read-only root without home folders
and our own state, one writable folder), resource limits that the child puts on itself before it
reads a byte, and a kill by wall clock. Where bubblewrap is missing or not permitted, the other
two remain and the log says so once.
"""

from __future__ import annotations

import functools
import logging
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

import quantize_worker
from quantize_worker.errors import (
    Cancelled,
    SandboxCrashed,
    SandboxFailed,
    SandboxOutOfMemory,
    SandboxTimeout,
)
from quantize_worker.steps.confinement import Limits, anonymous_bytes
from quantize_worker.steps.exchange import REQUEST_FILE, RESULT_FILE, Job, Outcome, Step

logger = logging.getLogger(__name__)

POLL_S = 0.1
MAXIMUM_LINE_BYTES = 8 << 20
MAXIMUM_RESULT_BYTES = 64 << 20
LOG_FILE = "child.log"
_HIDDEN = ("/home", "/root", "/tmp", "/var/tmp", "/run", "/mnt", "/media", "/srv")  # noqa: S108
_NAMESPACES = ("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL")
_MEMORY_SIGNALS = (signal.SIGKILL,)
_LIMIT_SIGNALS = (signal.SIGXCPU, signal.SIGXFSZ)


class Sandbox:
    """Runs jobs.

    Args:
        hidden: folders the child must not see, e.g. the one with keys and databases.
        bubblewrap: the program; None to do without.
    """

    def __init__(self, *, hidden: Sequence[Path] = (), bubblewrap: str | None = None) -> None:
        self._hidden = [path for path in hidden if path.is_dir()]
        self._bubblewrap = bubblewrap

    def run(self, folder: Path, job: Job, on_step: Callable[[Step], None], stop: threading.Event) -> Outcome:
        """Run one job in ``folder`` and return the child's outcome.

        Args:
            folder: the job's work folder, absolute; the only place the child can write to.
            job: what to do; written to the folder.
            on_step: called with each line of progress.
            stop: set by another thread to end the child.

        Raises:
            Cancelled: if ``stop`` was set.
            SandboxTimeout, SandboxOutOfMemory, SandboxCrashed, SandboxFailed: if the child ended
                without an answer.
        """
        (folder / REQUEST_FILE).write_bytes(msgspec.json.encode(job))
        with (folder / LOG_FILE).open("wb") as log:
            child = subprocess.Popen(
                self._command(folder),
                cwd=folder,
                env=_environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
            try:
                _follow(child, job.limits, on_step, stop)
            finally:
                _end(child)
        return _outcome(folder, child.returncode)

    def _command(self, folder: Path) -> list[str]:
        parent = "0" if self._bubblewrap else str(os.getpid())  # bubblewrap has its own --die-with-parent
        command = [sys.executable, "-m", "quantize_worker", "child", str(folder), parent]
        return [*self.confinement(folder), *command] if self._bubblewrap else command

    def confinement(self, folder: Path) -> list[str]:
        """The bubblewrap command to put before another one; later mounts lie over earlier ones."""
        assert self._bubblewrap is not None
        arguments = [
            self._bubblewrap,
            *_NAMESPACES,
            "--ro-bind",
            "/",
            "/",
            "--dev",
            "/dev",
            "--proc",
            "/proc",
        ]
        hidden = [*(Path(name) for name in _HIDDEN if Path(name).is_dir()), *self._hidden]
        for path in sorted(hidden):
            arguments += ["--tmpfs", str(path)]
        for path in _code():
            if any(path.is_relative_to(other) for other in hidden):
                arguments += ["--ro-bind", str(path), str(path)]
        return [*arguments, "--bind", str(folder), str(folder), "--chdir", str(folder), "--"]


@functools.cache
def find_bubblewrap() -> str | None:
    """The bubblewrap program, if it is there and may make its namespaces; else a warning, once."""
    program = shutil.which("bwrap")
    if program is None:
        logger.warning(
            "bubblewrap is not installed: uploads are parsed under resource limits and a time limit only, "
            "with network and files in reach. Install bubblewrap."
        )
        return None
    trial = [program, *_NAMESPACES, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "true"]
    answer = subprocess.run(trial, capture_output=True, text=True, check=False, timeout=30)
    if answer.returncode:
        logger.warning(
            "bubblewrap may not make namespaces here (%s): uploads are parsed under resource limits and a "
            "time limit only. Allow unprivileged user namespaces.",
            answer.stderr.strip(),
        )
        return None
    return program


def _code() -> Iterator[Path]:
    """Folders that the child imports from."""
    package = Path(quantize_worker.__file__).resolve().parent
    yield from dict.fromkeys(
        path.absolute()
        for path in (Path(sys.prefix), Path(sys.base_prefix), package, package.parent / "blobstore")
        if path.is_dir()
    )


def _environment(folder: Path) -> dict[str, str]:
    """Nothing of ours, so no credentials; telemetry of ONNX Runtime off before it starts."""
    return {
        "ORT_DISABLE_TELEMETRY": "1",
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(quantize_worker.__file__).resolve().parent.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONSAFEPATH": "1",  # the work folder is no place to import from
    }


def _follow(
    child: subprocess.Popen[bytes], limits: Limits, on_step: Callable[[Step], None], stop: threading.Event
) -> None:
    """Read progress until the child closes its output, a limit is reached or ``stop`` is set."""
    assert child.stdout is not None
    started = heard = time.monotonic()
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if stop.is_set():
                raise Cancelled("The job was cancelled.")
            now = time.monotonic()
            silent = limits.silence_s is not None and now - heard > limits.silence_s
            if now - started > limits.wall_s or silent:
                raise SandboxTimeout(f"The job was stopped after {now - started:.0f} s.")
            if anonymous_bytes(child.pid) > limits.memory_bytes:
                raise SandboxOutOfMemory("The job was stopped; it needs more memory than it may use.")
            if not selector.select(POLL_S):
                continue
            data = os.read(child.stdout.fileno(), 1 << 16)
            if not data:
                return
            heard = time.monotonic()
            *lines, pending = (pending + data).split(b"\n")
            if len(pending) > MAXIMUM_LINE_BYTES:
                raise SandboxFailed("The child wrote something else than progress.")
            for line in lines:
                on_step(_step(line))


def _step(line: bytes) -> Step:
    try:
        return msgspec.json.decode(line, type=Step)
    except msgspec.MsgspecError as error:
        raise SandboxFailed("The child wrote something else than progress.") from error


def _end(child: subprocess.Popen[bytes]) -> None:
    """Wait for a child that has closed its output; kill its whole group if it does not end."""
    assert child.stdout is not None
    child.stdout.close()
    try:
        child.wait(timeout=5 if sys.exc_info()[0] is None else 0)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _outcome(folder: Path, code: int) -> Outcome:
    status = -code if code < 0 else code - 128 if code > 128 else 0  # bubblewrap answers 128 + signal
    if status in _MEMORY_SIGNALS:
        raise SandboxOutOfMemory("The job was killed; it needs more memory than it may use.")
    if status in _LIMIT_SIGNALS:
        raise SandboxTimeout("The job used up its processor time or wrote too large a file.")
    if status:
        raise SandboxCrashed(f"The job crashed ({signal.Signals(status).name}) in a native library.")
    result = folder / RESULT_FILE
    if code or not result.is_file() or result.is_symlink() or result.stat().st_size > MAXIMUM_RESULT_BYTES:
        raise SandboxFailed(f"The job ended with status {code} and no answer: {_last_words(folder)}")
    try:
        return msgspec.json.decode(result.read_bytes(), type=Outcome)
    except msgspec.MsgspecError as error:
        raise SandboxFailed("The job's answer cannot be read.") from error


def _last_words(folder: Path) -> str:
    log = folder / LOG_FILE
    if not log.is_file() or log.is_symlink():
        return ""
    lines = log.read_bytes()[-4096:].decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""
