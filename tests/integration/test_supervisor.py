"""The supervisor over real processes: restarts what dies, leaves nothing behind, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from fleet.management.lock import Locked, acquire
from fleet.management.supervision.plan import ChildPlan, RunPlan
from tests.processes import DEADLINE_S, ROOT, free_port, manage, until, up_environment

MARK = "POCKETFLEET_TEST_MARK"

# A server with a subprocess in the same session, and one in a session of its own.
FAMILY = """
import http.server, subprocess, sys
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
subprocess.Popen(sleep)
subprocess.Popen(sleep, start_new_session=True)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
http.server.HTTPServer.allow_reuse_address = True
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True: time.sleep(600)
"""
FAILING = "raise SystemExit(3)"


class Running:
    """A guard with all its processes, which carry a mark in their environment."""

    def __init__(self, process: subprocess.Popen[str], mark: str, run_folder: Path) -> None:
        self.process, self.mark, self.run_folder = process, mark, run_folder

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "is ready" in line:
                return
        pytest.fail("it ended before it was ready")

    def pids(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.run_folder / "pids.json").read_text())
        return state

    def child(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self.pids()["children"][name]
        except FileNotFoundError:
            return {"pid": None, "restarts": -1}
        return found

    def family(self) -> list[psutil.Process]:
        """All living processes of this run, found by their environment: wherever they hang."""
        return [process for process in psutil.process_iter() if self._ours(process)]

    def _ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def wait_gone(self) -> None:
        until(lambda: not self.family(), f"no process left of {self.family()}")


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a guard over the given children; whatever is left at the end is killed."""
    started: list[Running] = []

    def run(children: list[ChildPlan], port: int, grace_s: float = 2.0) -> Running:
        (tmp_path / "log").mkdir(exist_ok=True)
        lock = acquire(tmp_path / "run")
        plan = RunPlan(
            children=children,
            run_folder=str(tmp_path / "run"),
            log_folder=str(tmp_path / "log"),
            ready_url=f"http://127.0.0.1:{port}/",
            ready_line="it is ready",
            lock_descriptor=lock,
            grace_s=grace_s,
        )
        command = [
            sys.executable,
            "-m",
            "fleet.management.supervision.guard",
            msgspec.json.encode(plan).decode(),
        ]
        mark = f"{tmp_path}-{len(started)}"
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, MARK: mark},
            pass_fds=(lock,),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        os.close(lock)
        started.append(Running(process, mark, tmp_path / "run"))
        return started[-1]

    yield run
    for each in started:
        for process in each.family():
            process.kill()
        each.process.wait()
        assert each.process.stdout is not None
        each.process.stdout.close()


def family_of(port: int) -> list[ChildPlan]:
    return [
        ChildPlan(name="web", command=[sys.executable, "-c", FAMILY, str(port)]),
        ChildPlan(name="stubborn", command=[sys.executable, "-c", STUBBORN]),
    ]


def test_a_killed_child_is_restarted_and_what_it_left_is_ended(start: Start) -> None:
    port = free_port()
    running = start(family_of(port), port)
    running.wait_ready()
    web = running.child("web")["pid"]
    before = {process.pid for process in psutil.Process(web).children()} | {web}
    assert len(before) == 3
    os.kill(web, signal.SIGKILL)
    until(lambda: running.child("web")["pid"] not in (None, web), "web runs again")
    until(lambda: not any(psutil.pid_exists(pid) for pid in before), "its old family is gone")
    assert running.child("web")["restarts"] == 1
    assert running.child("stubborn")["restarts"] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_ends_everything(start: Start, number: signal.Signals) -> None:
    port = free_port()
    running = start(family_of(port), port, grace_s=0.5)
    running.wait_ready()
    assert len(running.family()) == 6
    running.process.send_signal(number)
    assert running.process.wait(timeout=DEADLINE_S) == 0
    assert running.family() == []
    assert not (running.run_folder / "pids.json").exists()


@pytest.mark.parametrize("victim", ["guard", "supervisor"])
def test_nothing_is_left_when_one_of_the_two_is_killed(start: Start, victim: str) -> None:
    port = free_port()
    running = start(family_of(port), port, grace_s=0.5)
    running.wait_ready()
    pids = running.pids()
    before = {process.pid for process in running.family()}
    os.kill(pids[victim], signal.SIGKILL)
    if victim == "guard":
        running.process.wait()
        running.wait_gone()
        return
    until(lambda: not any(psutil.pid_exists(pid) for pid in before - {pids["guard"]}), "all of it is gone")
    running.wait_ready()  # a new supervisor took over
    assert running.pids()["supervisor"] != pids["supervisor"]


def test_killing_both_at_once_leaves_no_child(start: Start) -> None:
    port = free_port()
    plan = [ChildPlan(name="web", command=[sys.executable, "-m", "http.server", str(port)])]
    running = start(plan, port)
    running.wait_ready()
    pids = running.pids()
    os.kill(pids["guard"], signal.SIGSTOP)
    os.kill(pids["supervisor"], signal.SIGKILL)
    os.kill(pids["guard"], signal.SIGKILL)
    running.wait_gone()


def test_a_failing_child_is_started_ever_more_slowly_and_loudly(start: Start) -> None:
    port = free_port()
    failing = ChildPlan(name="tailor", command=[sys.executable, "-c", FAILING])
    running = start([failing], port)
    assert running.process.stdout is not None
    lines = [running.process.stdout.readline() for _ in range(2)]
    assert "tailor" in lines[0]
    assert "exit code 3; restarting in 0.5 s" in lines[0]
    assert "restarting in 1 s" in lines[1]


def test_the_lock_is_held_until_all_have_ended(start: Start) -> None:
    port = free_port()
    running = start(family_of(port), port, grace_s=0.5)
    running.wait_ready()
    with pytest.raises(Locked):
        acquire(running.run_folder)
    os.kill(running.pids()["guard"], signal.SIGKILL)
    running.process.wait()

    def free() -> bool:
        try:
            os.close(acquire(running.run_folder))
        except Locked:
            return False
        return True

    until(free, "the lock is free")
    assert running.family() == []


# The real thing: manage.py up


class Up(Running):
    """``manage.py up`` in a folder of its own."""

    def __init__(self, var: Path, port: int) -> None:
        self.var, self.port = var, port
        mark = f"{var}-{time.monotonic_ns()}"
        process = subprocess.Popen(
            [sys.executable, "manage.py", "up", "--port", str(port)],
            cwd=ROOT,
            env=up_environment(var) | {MARK: mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        super().__init__(process, mark, var / "run")

    def get(self, path: str) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return int(answer.status)

    def serves(self) -> bool:
        try:
            return self.get("/readyz") == 200
        except OSError:
            return False


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    running = Up(tmp_path / "var", free_port())
    running.wait_ready()
    yield running
    for process in running.family():
        process.kill()
    running.process.wait()
    assert running.process.stdout is not None
    running.process.stdout.close()


def kill_and_wait(up: Up, name: str) -> None:
    pid = up.child(name)["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: up.child(name)["pid"] not in (None, pid), f"{name} runs again")


@pytest.mark.e2e
def test_up_serves_survives_kills_and_stops_clean(up: Up) -> None:
    assert up.get("/healthz") == 200
    assert up.get("/readyz") == 200
    assert set(up.pids()["children"]) == {"web", "control", "tailor", "beat"}
    assert json.loads(manage(up.var, "up", "--status").stdout) == up.pids()

    # A second one, with the same state or on the same port, is told why not.
    refused = manage(up.var, "up", "--port", str(free_port()))
    assert refused.returncode == 1
    assert f"process {up.pids()['guard']}" in refused.stderr
    taken = manage(up.var.parent / "other", "up", "--port", str(up.port))
    assert taken.returncode == 1
    assert "Choose another port" in taken.stderr
    assert "up' runs" in manage(up.var, "restore", "none.tar.gz").stderr

    # Every child, and granian's own worker, may be killed.
    (worker,) = psutil.Process(up.child("web")["pid"]).children()
    worker.kill()
    for name in ("web", "control", "tailor", "beat"):
        kill_and_wait(up, name)
    until(up.serves, "it serves again")

    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(timeout=DEADLINE_S) == 0
    assert up.family() == []


@pytest.mark.e2e
@pytest.mark.parametrize("victims", [["guard"], ["supervisor", "guard"]])
def test_up_killed_leaves_nothing(up: Up, victims: list[str]) -> None:
    pids = up.pids()
    if len(victims) == 2:
        os.kill(pids["guard"], signal.SIGSTOP)  # it cannot come to the rescue
    for victim in victims:
        os.kill(pids[victim], signal.SIGKILL)
    up.process.wait()
    up.wait_gone()


@pytest.mark.e2e
def test_the_first_start_sets_up_and_the_second_keeps(up: Up) -> None:
    path = up.var / "credentials.json"
    assert path.stat().st_mode & 0o777 == 0o600
    credentials = json.loads(path.read_text())
    assert set(credentials) == {
        "url",
        "username",
        "password",
        "api_token",
        "provisioning_key",
        "root_json_path",
        "tenant",
        "app",
    }
    assert credentials["url"] == f"http://127.0.0.1:{up.port}"
    assert json.loads(Path(credentials["root_json_path"]).read_text())["signed"]["_type"] == "root"
    assert manage(up.var, "setup_embedded", "--url", credentials["url"]).returncode == 0
    assert json.loads(path.read_text()) == credentials
