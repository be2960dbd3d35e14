"""The benchmark harness: listing, figures, the closing line of JSON, exit codes, watched processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from benchmarks import __main__ as command
from benchmarks import catalogue, demo
from benchmarks.catalogue import Benchmark, Context
from benchmarks.environments import peer_environment
from benchmarks.errors import BenchmarkFailed, UnknownBenchmark
from benchmarks.figures import Figure, json_line, table
from benchmarks.process_tree import MIB, ProcessTree, role_of

ROOT = Path(__file__).resolve().parents[2]
FAST = Figure(name="seconds", value=2.5, goal=3, better="lower", against="the requirement")
SLOW = Figure(name="rate", value=0.5, goal=1, better="higher", against="a peer")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_without_a_name_every_benchmark_is_listed_with_one_line() -> None:
    done = run()
    assert done.returncode == 0
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == [benchmark.name for benchmark in catalogue.all_benchmarks()]
    assert "demo" in names
    assert all(len(line.split(maxsplit=1)[1]) > 10 for line in done.stdout.splitlines())


def test_an_unknown_name_is_an_error_that_names_the_known_ones() -> None:
    done = run("nothing-like-this")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "demo" in done.stderr
    with pytest.raises(UnknownBenchmark):
        catalogue.benchmark("nothing-like-this")


@pytest.mark.parametrize("benchmark", catalogue.all_benchmarks(), ids=lambda benchmark: benchmark.name)
def test_every_benchmark_states_what_it_predicts_and_pins_its_peers(benchmark: Benchmark) -> None:
    assert "\n" not in benchmark.description
    assert len(benchmark.prediction.split()) > 5
    assert all("==" in pin for pin in benchmark.peers)


@pytest.mark.parametrize(
    ("better", "value", "holds"),
    [("lower", 3.0, True), ("lower", 3.01, False), ("higher", 3.0, True), ("higher", 2.99, False)],
)
def test_a_figure_holds_up_to_its_goal(better: str, value: float, holds: bool) -> None:
    figure = Figure(name="x", value=value, goal=3.0, better=better, against="y")  # type: ignore[arg-type]
    assert figure.holds is holds


def test_json_line_has_exactly_the_promised_shape() -> None:
    line = json_line("x", [FAST, SLOW])
    assert "\n" not in line
    assert json.loads(line) == {
        "benchmark": "x",
        "figures": [
            {"name": "seconds", "value": 2.5, "goal": 3, "better": "lower", "against": "the requirement", "holds": True},
            {"name": "rate", "value": 0.5, "goal": 1, "better": "higher", "against": "a peer", "holds": False},
        ],
    }  # fmt: skip
    assert list(json.loads(line)["figures"][0]) == ["name", "value", "goal", "better", "against", "holds"]


def test_table_marks_what_does_not_hold() -> None:
    rows = table([FAST, SLOW]).splitlines()
    assert len(rows) == 4
    assert "yes" in rows[2]
    assert "NO" in rows[3]


@pytest.mark.parametrize(("figures", "code"), [([FAST], 0), ([FAST, SLOW], 1)])
def test_exit_code_tells_whether_every_figure_holds(
    figures: list[Figure], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Context] = []

    def measure(context: Context) -> list[Figure]:
        seen.append(context)
        return figures

    known = Benchmark(name="x", description="d", prediction="p", peers=(), run=measure)
    monkeypatch.setattr(catalogue, "all_benchmarks", lambda: [known])
    assert command.main(["x"]) == code
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == json_line("x", figures)
    assert seen[0].peer_python is None
    assert not seen[0].scratch.exists()


def test_a_benchmark_that_does_not_end_has_no_json_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(context: Context) -> list[Figure]:
        raise BenchmarkFailed("the other side is gone")

    known = Benchmark(name="x", description="d", prediction="p", peers=(), run=fail)
    monkeypatch.setattr(catalogue, "all_benchmarks", lambda: [known])
    assert command.main(["x"]) == 3
    output = capsys.readouterr()
    assert '"figures"' not in output.out
    assert "the other side is gone" in output.err


def test_peers_must_be_pinned(tmp_path: Path) -> None:
    assert peer_environment(tmp_path, "x", ()) is None
    with pytest.raises(BenchmarkFailed, match="not pinned"):
        peer_environment(tmp_path, "x", ("boto3",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command_line", "role"),
    [
        ("python manage.py up --port 8440", "supervisor"),
        ("python -m fleet.management.supervision.guard {}", "supervisor"),
        ("python manage.py migrate", "setup"),
        ("granian --interface wsgi fleet.wsgi:application", "web"),
        ("python -m celery -A fleet.celery worker -Q control", "control-worker"),
        ("python -m celery -A fleet.celery beat", "beat"),
        ("python -m celery -A quantize_worker.app worker -Q tailor", "tailor-worker"),
        ("/usr/bin/bwrap --unshare-all -- python -m quantize_worker /work 1", "sandbox"),
        ("python -m device_agent --state-dir x run", "agent"),
        ("python -m demo --once", "demo"),
        ("python -c from multiprocessing.spawn import spawn_main", "inherited"),
    ],
)
def test_roles_come_from_command_lines(command_line: str, role: str) -> None:
    assert role_of(command_line.split(), "inherited") == role


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "x = bytearray(80 * 2**20); print('up', flush=True); import time; time.sleep(60)"])
print("up", flush=True)
time.sleep(60)
"""


def test_tree_measures_children_and_tells_who_is_left() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        assert [parent.stdout.readline(), parent.stdout.readline()] == ["up\n", "up\n"]
        tree = ProcessTree(parent.pid, role="parent")
        tree.sample()
        children = psutil.Process(parent.pid).children()
        assert tree.peak_bytes["parent"] > 80 * MIB  # the child says nothing of itself: its parent's role
        assert tree.total_peak_bytes > tree.peak_bytes["parent"]
        assert len(tree.alive()) == 2
        for child in children:
            child.kill()
        deadline = time.monotonic() + 20  # the dead child stays a zombie, for its parent sleeps
        while len(tree.alive()) > 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [process.pid for process in tree.alive()] == [parent.pid]
    finally:
        for process in [*psutil.Process(parent.pid).children(), psutil.Process(parent.pid)]:
            process.kill()
        parent.wait()
    assert tree.alive() == []


def test_tree_samples_until_it_is_left() -> None:
    rounds: list[float] = []

    def sleep(seconds: float) -> bool:
        rounds.append(seconds)
        time.sleep(0.01)
        return len(rounds) == 3

    with ProcessTree(os.getpid(), sleep=sleep):
        pass
    assert len(rounds) == 3


def test_figures_of_a_demo_run() -> None:
    peaks = {"web": 100 * MIB, "sandbox": 5000 * MIB, "unheard-of": 10 * MIB}
    found = demo.figures(90.04, {"active": 5}, peaks, 700 * MIB, left_behind=0)
    by_name = {figure.name: figure for figure in found}
    assert by_name["seconds"].value == 90.0
    assert by_name["seconds"].holds
    assert not by_name["devices_active"].holds
    assert by_name["processes_left"].holds
    assert by_name["peak_rss_mib/web"].value == 100.0
    assert not by_name["peak_rss_mib/sandbox"].holds
    assert by_name["peak_rss_mib/unheard-of"].holds
    assert by_name["peak_rss_mib/all"].value == 700.0
