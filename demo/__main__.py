"""``python -m demo``: upload to verified inference on six emulated phones, with one command.

Exit codes: 0 every promise of the last line holds; 1 one does not, or a step failed; 130 stopped
by Ctrl-C (SIGINT or SIGTERM) before the closing table. State lives under ``var/demo`` (``POCKETFLEET_VAR`` names another folder) and is made
anew by every run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from demo.classes import CLASSES
from demo.client import ApiError, Client
from demo.control_plane import (
    ROOT,
    ControlPlane,
    StartFailed,
    embedded_environment,
    free_port,
    hold,
    wipe,
)
from demo.phones import PHONES, Phone, PhoneFailed
from demo.report import Log, Row, table
from demo.search import LocalModel, SearchIndex

MODEL = "all-minilm-l6-v2"
QUERIES = [
    "is this network address private",
    "wait until a thread has ended",
    "compress data into an archive",
]
POLICY = {"groups": [0.5, 1.0], "minimum_per_group": 1, "soak_s": 0}
ENVIRONMENT = {"POCKETFLEET_POLL_INTERVAL_S": "1", "POCKETFLEET_SWEEP_INTERVAL_S": "1"}


class DemoFailed(Exception):
    """A step did not end as promised; the message says which and where to look."""


class Demo:
    """The steps of the demo, in order, on one control plane and six phones."""

    def __init__(self, var: Path, port: int, log: Log, environment: Mapping[str, str]) -> None:
        self._var, self._log = var, log
        self.control_plane = ControlPlane(var, port, {**environment, **ENVIRONMENT})
        self.phones = [Phone(name, hardware, var / "phones") for name, hardware in PHONES]
        self._source_bytes = 0

    def run(self) -> dict[str, Any]:
        """All steps; returns what the last line says.

        Raises:
            DemoFailed, StartFailed, PhoneFailed, ApiError, TimeoutError: a step failed.
        """
        self.control_plane.start()
        files = self._export()
        credentials = self.control_plane.wait()
        self._log(f"control plane is up at {self.control_plane.url}")
        client = Client(self.control_plane.url, credentials["api_token"])
        for device_class in CLASSES:
            client.post("/device-classes", device_class)
        self._log(f"{len(CLASSES)} device classes: {', '.join(c['name'] for c in CLASSES)}")
        self._start_phones(credentials)
        version = self._register(client, files)
        self._build(client, version)
        release = self._release(client, version)
        rollout = self._roll_out(client, release)
        self._search()
        rows = self._rows(client, version, rollout)
        print("\n" + table(rows, self._source_bytes) + "\n", flush=True)
        active = sum(track["active"] for track in rollout["tracks"])
        return {
            "devices": len(self.phones),
            "active": active,
            "rollout": rollout["state"],
            "classes": [row.as_json() for row in rows],
            "seconds": round(self._log.seconds, 1),
        }

    def stop(self) -> None:
        """End every process; harmless at any time."""
        for phone in self.phones:
            phone.signal_stop()
        for phone in self.phones:
            phone.stop()
        self.control_plane.stop()

    def _export(self) -> list[tuple[str, Path, str]]:
        from demo import minilm, sentences

        folder = self._var / "source"
        folder.mkdir()
        source = minilm.model_folder()
        model, evaluation, calibration = (
            folder / n for n in ("model.onnx", "evaluation.npz", "calibration.npz")
        )
        minilm.export(source, model)
        tokenizer = minilm.load_tokenizer(source, length=sentences.SEQUENCE_LENGTH)
        sentences.write_sets(tokenizer, evaluation=evaluation, calibration=calibration)
        self._source_bytes = model.stat().st_size
        self._log(
            f"exported {MODEL} to ONNX: {self._source_bytes / 1e6:.1f} MB, sets from the library's docstrings"
        )
        return [
            ("model", model, "model.onnx"),
            ("evaluation", evaluation, "evaluation.npz"),
            ("calibration", calibration, "calibration.npz"),
        ]

    def _start_phones(self, credentials: dict[str, Any]) -> None:
        for phone in self.phones:
            phone.initialise(
                server=self.control_plane.url,
                provisioning_key=credentials["provisioning_key"],
                root=Path(credentials["root_json_path"]),
            )
            phone.start()
        self._log(f"started {len(self.phones)} phones (emulated hardware, real agent processes)")

    def _register(self, client: Client, files: list[tuple[str, Path, str]]) -> str:
        client.post("/models", {"name": MODEL, "description": "Sentence embeddings, 384 dimensions"})
        version = client.upload_version(MODEL, files)
        self._log("uploaded; a worker checks and measures it")
        version = client.wait(
            f"/versions/{version['id']}",
            lambda answer: answer["state"] in ("ready", "refused"),
            timeout_s=180,
            on_change=lambda _: None,
        )
        if version["state"] != "ready":
            raise DemoFailed(
                f"the upload was refused: {version['refusal_code']}: {version['refusal_message']}"
            )
        facts = version["facts"]
        self._log(
            f"model is ready: {facts['parameters'] / 1e6:.1f} M parameters, {len(facts['layers'])} layers"
        )
        return str(version["id"])

    def _build(self, client: Client, version: str) -> None:
        client.post(f"/versions/{version}/builds", {})
        told: set[tuple[str, str, str]] = set()

        def tell(page: dict[str, Any]) -> None:
            for row in page["results"]:
                for entry in row["history"]:
                    what = str(entry.get("description") or entry["precision"])
                    told_now = (row["class_name"], what, str(entry["outcome"]))
                    if entry["build"] and told_now not in told:
                        told.add(told_now)
                        self._log(f"  {row['class_name']:<14} {entry['outcome']:<9} {what}")

        page = client.wait(
            f"/versions/{version}/tailorings",
            lambda answer: all(row["state"] != "building" for row in answer["results"]),
            timeout_s=600,
            on_change=tell,
        )
        failed = [row for row in page["results"] if row["state"] != "ready"]
        if failed:
            raise DemoFailed(f"no build for {failed[0]['class_name']}: {failed[0]['reason']}")
        self._log(f"{len(page['results'])} classes have their build")

    def _release(self, client: Client, version: str) -> dict[str, Any]:
        release = client.post(f"/versions/{version}/releases")
        release = client.wait(
            f"/releases/{release['id']}",
            lambda answer: answer["state"] != "signing",
            timeout_s=60,
            on_change=lambda _: None,
        )
        if release["state"] != "published":
            raise DemoFailed(f"the release was not published: {release['error']}")
        self._log("release is signed and published")
        return dict(release)

    def _roll_out(self, client: Client, release: dict[str, Any]) -> dict[str, Any]:
        rollout = client.post(
            "/rollouts", {"name": f"{MODEL} to everyone", "release": release["id"], "policy": POLICY}
        )
        client.post(f"/rollouts/{rollout['id']}/start")
        seen: dict[str, str] = {}

        def tell(answer: dict[str, Any]) -> None:
            for track in answer["tracks"]:
                counts = ", ".join(
                    f"{count} {state}" for state, count in sorted(track["counts"].items()) if count
                )
                line = f"  {track['class_name']:<14} {track['state']:<9} group {track['group_index'] + 1}/{track['groups']}  {counts}"
                if seen.get(track["class_name"]) != line:
                    seen[track["class_name"]] = line
                    self._log(line)

        def done(answer: dict[str, Any]) -> bool:
            if answer["state"] in ("paused", "cancelled", "rolled_back"):
                raise DemoFailed(f"the rollout is {answer['state']}: {answer['reason']}")
            return bool(answer["state"] == "finished")

        answer = client.wait(f"/rollouts/{rollout['id']}", done, timeout_s=240, on_change=tell)
        self._log("rollout finished: every phone proved its build on itself")
        return dict(answer)

    def _search(self) -> None:
        """Index docstrings on the first phone; then every phone answers the same queries."""
        first, *others = self.phones
        index = SearchIndex(self._local_model(first))
        self._log(f"semantic search over {len(index)} docstrings on {first.name}, through its local API:")
        best = [index.best(query) for query in QUERIES]
        for query, hit in zip(QUERIES, best, strict=True):
            self._log(f"  {query!r:<36} → {hit.score:.2f}  {hit.sentence}")
        same = sum(
            index.best(query, ask=model).sentence == hit.sentence
            for model in map(self._local_model, others)
            for query, hit in zip(QUERIES, best, strict=True)
        )
        self._log(
            f"the {len(others)} other phones give the same answer to {same} of {len(others) * len(QUERIES)} queries"
        )

    def _local_model(self, phone: Phone) -> LocalModel:
        return LocalModel(phone.status()["inference"], MODEL)

    def _rows(self, client: Client, version: str, rollout: dict[str, Any]) -> list[Row]:
        tailorings = {row["class_name"]: row for row in client.all(f"/versions/{version}/tailorings")}
        assignments = client.all(f"/rollouts/{rollout['id']}/assignments")
        rows = []
        for track in rollout["tracks"]:
            build = tailorings[track["class_name"]]["build"]
            mine = [a for a in assignments if a["class_name"] == track["class_name"]]
            latencies = [a["self_test"]["latency_p50_ms"] for a in mine if a["self_test"]]
            rows.append(
                Row(
                    class_name=track["class_name"],
                    precision=build["precision"],
                    description=build["description"],
                    size_bytes=build["size_bytes"],
                    quality=build["quality"]["value"],
                    latency_p50_ms=statistics.median(latencies),
                    devices=len(mine),
                    state=track["state"],
                )
            )
        order = [device_class["name"] for device_class in CLASSES]
        return sorted(rows, key=lambda row: order.index(row.class_name))


def holds(result: dict[str, Any]) -> bool:
    """Whether the demo kept its promise: every phone runs its build and the rollout finished."""
    return bool(
        result["devices"] == result["active"]
        and result["rollout"] == "finished"
        and len(result["classes"]) == len(CLASSES)
    )


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="stop after the closing table")
    parser.add_argument("--port", type=int, default=8440, help="of the console; a free one if it is taken")
    parser.add_argument(
        "--use-environment",
        action="store_true",
        help="on the database, broker and blob store that POCKETFLEET_* variables name; default: embedded",
    )
    arguments = parser.parse_args()
    for stop in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell's background jobs ignore it
        signal.signal(stop, _stop)
    log = Log()
    demo: Demo | None = None
    result: dict[str, Any] | None = None
    try:
        var = Path(os.environ.get("POCKETFLEET_VAR") or ROOT / "var" / "demo").absolute()
        lock = hold(var)
        wipe(var)
        environment = dict(os.environ) if arguments.use_environment else embedded_environment(os.environ)
        demo = Demo(var, free_port(arguments.port), log, environment)
        result = demo.run()
        if not arguments.once:
            _keep_running(demo, var)
    except KeyboardInterrupt:
        log("stopping ...")
        if result is None:
            return 130
    except (DemoFailed, StartFailed, PhoneFailed, ApiError, TimeoutError) as error:
        log(f"failed: {error}")
        log(f"logs: {demo.control_plane.var if demo else ROOT / 'var'}")
        return 1
    finally:
        for stop in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not leave a process behind
            signal.signal(stop, signal.SIG_IGN)
        if demo is not None:
            demo.stop()
            log("stopped; nothing is left running")
    lock.close()
    print(json.dumps(result), flush=True)
    return 0 if holds(result) else 1


def _keep_running(demo: Demo, var: Path) -> None:
    """Say how to go on, and wait for Ctrl-C."""
    credentials = json.loads((var / "credentials.json").read_text())
    shown = os.path.relpath(var)
    lines = [
        f"The console is at {demo.control_plane.url}",
        f"  login {credentials['username']}   password {credentials['password']}",
        f"  REST API: {demo.control_plane.url}/api/docs   token {credentials['api_token']}",
        "Local APIs (Open Inference Protocol v2) of the phones, all emulated:",
        *(f"  {phone.name:<15} {phone.status()['inference']}/v2" for phone in demo.phones),
        f"Ctrl-C stops everything. The next demo starts over; to reopen this one: "
        f"POCKETFLEET_VAR={shown} .venv/bin/python manage.py up",
    ]
    print("\n".join(lines), flush=True)
    while demo.control_plane.alive():
        time.sleep(1)
    raise DemoFailed("the control plane ended")


if __name__ == "__main__":
    sys.exit(main())
