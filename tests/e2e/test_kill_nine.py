"""``kill -9`` of each process in the middle of its work: its successor finishes, nothing is lost or doubled.

And, on the system that has been through all of it, a third-party client gets the model's own answers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tritonclient.http

from demo import minilm, sentences
from demo.phones import Phone
from tests.e2e.stacks import embedded, production, production_available
from tests.e2e.system import System, running

pytestmark = pytest.mark.e2e
MODEL = "all-minilm-l6-v2"
NAMES = {"flagship-1", "midrange-cpu-1", "entry-1"}
CLASS_NAMES = ["flagship", "midrange-cpu", "entry"]


@pytest.fixture(scope="module", params=["embedded", "production"])
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    if request.param == "production" and not production_available():
        pytest.skip("POCKETFLEET_TEST_POSTGRES and POCKETFLEET_TEST_RABBITMQ are not set")
    start = embedded if request.param == "embedded" else production
    with start(tmp_path_factory.mktemp(request.param) / "var") as stack, running(stack) as system:
        yield system


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("source")
    files = {name: folder / name for name in ("model.onnx", "evaluation.npz", "calibration.npz")}
    minilm.export(minilm.model_folder(), files["model.onnx"])
    tokenizer = minilm.load_tokenizer(minilm.model_folder(), length=sentences.SEQUENCE_LENGTH)
    sentences.write_sets(tokenizer, evaluation=files["evaluation.npz"], calibration=files["calibration.npz"])
    return files


@pytest.fixture(scope="module")
def version(system: System, source: dict[str, Path]) -> str:
    """A checked version; the tailor worker was killed while it checked it."""
    system.client.post("/models", {"name": MODEL})
    roles = {"model.onnx": "model", "evaluation.npz": "evaluation", "calibration.npz": "calibration"}
    version = system.client.upload_version(
        MODEL, [(roles[name], path, name) for name, path in source.items()]
    )
    address = f"/versions/{version['id']}"
    system.until(lambda: system.client.get(address)["step"], timeout_s=60, what="the check is under way")
    killed = system.kill_nine("tailor")
    ready = system.until(
        lambda: settled(system.client.get(address)), timeout_s=180, what="the version is checked"
    )
    assert ready["state"] == "ready", ready
    assert system.pid("tailor") != killed
    return str(version["id"])


def settled(version: dict[str, Any]) -> dict[str, Any] | None:
    return version if version["state"] in ("ready", "refused") else None


@pytest.fixture(scope="module")
def release(system: System, version: str) -> str:
    """A release whose builds went through kills of the tailor and of the control worker."""
    system.client.post(f"/versions/{version}/builds", {"classes": CLASS_NAMES})

    def builds() -> list[dict[str, Any]]:
        return list(system.client.all(f"/versions/{version}/builds"))

    under_way = system.until(
        lambda: next((b for b in builds() if b["state"] == "building" and 0 < b["share"] < 0.9), None),
        timeout_s=60,
        what="a build is under way",
    )
    system.kill_nine("tailor")
    interrupted = system.client.get(f"/builds/{under_way['id']}")
    assert interrupted["state"] == "building", "the build was over before the kill: the test showed nothing"
    system.until(
        lambda: [b for b in builds() if b["state"] == "ready"], timeout_s=180, what="the first build"
    )
    system.kill_nine("control")
    assert [b for b in builds() if b["state"] != "ready"], "no work was left: the test showed nothing"
    system.until(
        lambda: all(
            row["state"] == "ready" for row in system.client.get(f"/versions/{version}/tailorings")["results"]
        ),
        timeout_s=300,
        what="every class has its build",
    )
    rows = builds()
    assert len(rows) == len({row["recipe_digest"] for row in rows}), "a build was doubled"
    assert {row["state"] for row in rows} <= {"ready", "rejected"}, "a build was lost"
    served = {name for row in rows if row["state"] == "ready" for name in row["classes"]}
    assert served == set(CLASS_NAMES)
    return release_through_a_kill(system, version)


def release_through_a_kill(system: System, version: str) -> str:
    """A published release; the control worker was killed while it, or one before it, was being signed."""
    for _ in range(5):
        release = system.client.post(f"/versions/{version}/releases")
        address = f"/releases/{release['id']}"
        system.kill_nine("control")
        interrupted = system.client.get(address)["state"] == "signing"
        published = partial(is_published, system, address)
        system.until(published, timeout_s=120, what="the release is published")
        if interrupted:
            return str(release["id"])
    raise AssertionError("no release was still being signed at the kill: the test showed nothing")


@pytest.fixture(scope="module")
def rollout(system: System, release: str) -> dict[str, Any]:
    """A finished rollout; the web process was killed again and again while phones downloaded."""
    phones = system.add_phones(NAMES)
    system.until(
        lambda: [d for d in system.client.all("/devices") if d["class_name"]].__len__() == len(phones),
        timeout_s=120,
        what="the phones have enrolled",
    )
    rollout = system.client.post(
        "/rollouts", {"name": "through kills", "release": release, "policy": {"groups": [1.0]}}
    )
    address = f"/rollouts/{rollout['id']}"
    system.client.post(f"{address}/start")

    def assignments() -> list[dict[str, Any]]:
        return list(system.client.all(f"{address}/assignments"))

    interrupted = [kill_the_web_in_a_download(system) for _ in range(3)]
    assert any(interrupted), "no download was under way at a kill: the test showed nothing"
    finished = system.until(
        lambda: answer if (answer := system.client.get(address))["state"] == "finished" else None,
        timeout_s=240,
        what="the rollout is finished",
    )
    rows = assignments()
    assert sorted(row["device_name"] for row in rows) == sorted(NAMES)
    assert {row["state"] for row in rows} == {"active"}
    return dict(finished)


def is_published(system: System, address: str) -> bool:
    return bool(system.client.get(address)["state"] == "published")


def kill_the_web_in_a_download(system: System) -> bool:
    """Kill the web process once a phone has received a chunk; whether its download was still unfinished."""

    def downloading() -> list[Phone]:
        return [phone for phone in system.phones if chunks(phone) and not slot_files(phone)]

    deadline = time.monotonic() + 60
    while not downloading() and time.monotonic() < deadline and not all(map(slot_files, system.phones)):
        time.sleep(0.005)
    system.kill_nine("web")
    return bool(downloading())


def chunks(phone: Phone) -> list[Path]:
    return [path for path in (phone.state / "chunks").rglob("*") if path.is_file()]


def slot_files(phone: Phone) -> list[Path]:
    """Files of an installation; they are written when every chunk is there."""
    return [path for path in (phone.state / "models").rglob("*") if path.is_file()]


def test_check_and_builds_survive_their_workers(release: str) -> None:
    """All assertions are in the fixtures: each kill is a step on the way here."""
    assert release


def test_downloads_survive_the_web_process(rollout: dict[str, Any]) -> None:
    tracks = {track["class_name"]: track for track in rollout["tracks"]}
    assert {name: tracks[name]["active"] for name in CLASS_NAMES} == dict.fromkeys(CLASS_NAMES, 1)
    assert tracks["midrange-gpu"]["state"] == "excluded"  # it was not asked for
    assert tracks["midrange-gpu"]["reason"]


def test_third_party_client_gets_the_models_own_embeddings(
    system: System, rollout: dict[str, Any], source: dict[str, Path], tmp_path: Path
) -> None:
    """tritonclient[http], as it comes (binary tensors), against the model run directly."""
    with np.load(source["evaluation.npz"]) as samples:
        inputs = {name: samples[name][:8] for name in ("input_ids", "attention_mask")}
    fp32 = onnxruntime.InferenceSession(source["model.onnx"]).run(None, inputs)[0]  # (8, 384)
    for phone in system.phones:
        address = phone.status()["inference"].removeprefix("http://")
        client = tritonclient.http.InferenceServerClient(address)
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        tensors = []
        for name, value in inputs.items():
            tensor = tritonclient.http.InferInput(name, list(value.shape), "INT64")
            tensor.set_data_from_numpy(value)
            tensors.append(tensor)
        answer = client.infer(MODEL, tensors).as_numpy("sentence_embedding")
        assert answer.shape == (8, 384)
        np.testing.assert_allclose(answer, installed(phone, inputs), atol=1e-5)
        cosine = (answer * fp32).sum(axis=1) / np.linalg.norm(answer, axis=1) / np.linalg.norm(fp32, axis=1)
        assert cosine.min() > 0.9
        client.close()


def installed(phone: Phone, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Output of the build that the phone has installed, run directly by ONNX Runtime."""
    active = next(model["active"] for model in phone.status()["models"] if model["model"] == MODEL)
    graph = phone.state / "models" / MODEL / active["slot"] / "model.onnx"
    return np.asarray(onnxruntime.InferenceSession(graph).run(None, inputs)[0])
