"""The worker's contract: what travels, and what the parent process may load."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import msgspec
import pytest

from quantize_worker import contract
from quantize_worker.contract import (
    ArtifactChunk,
    ArtifactDescription,
    ArtifactFile,
    Blob,
    BuildRequest,
    BuildResult,
    InspectRequest,
    InspectResult,
    Progress,
    QualityReport,
    Recipe,
    Source,
    SourceFile,
)
from tests.simulators.model_facts import encoder

DIGEST = "ab" * 32
SOURCE = Source(
    files=[SourceFile(path="model.onnx", sha256=DIGEST, size_bytes=3)],
    evaluation=Blob(sha256=DIGEST, size_bytes=4),
)
RECIPE = Recipe(
    precision="int4",
    accelerator="cpu",
    execution_provider="CPUExecutionProvider",
    emulated=False,
    block_size=32,
    layers={"dense": "fp32"},
)
CHUNK = ArtifactChunk(sha256=DIGEST, size_bytes=5, stored_sha256=DIGEST, stored_size_bytes=4)
ARTIFACT = ArtifactDescription(
    entry="model.onnx",
    files=[ArtifactFile(path="model.onnx", sha256=DIGEST, size_bytes=5, chunks=[CHUNK])],
    golden_path="golden.npz",
    golden_samples=8,
    golden_min_cosine=0.97,
    size_bytes=5,
    download_bytes=4,
    memory_bytes=6,
    latency_p50_ms=1.5,
    provider="CPUExecutionProvider",
    minimum_runtime="1.32.0",
    tool_versions={"onnx": "1"},
)
QUALITY = QualityReport(metric="cosine", value=0.98, cosine=0.98, top1_agreement=0.9, samples=7)

MESSAGES = [
    InspectRequest(version="v", attempt=2, source=SOURCE),
    BuildRequest(build="b", attempt=1, source=SOURCE, recipe=RECIPE, facts=encoder()),
    Progress(subject="b", subject_kind="build", attempt=1, step="evaluate", share=0.5, worker="w"),
    InspectResult(version="v", attempt=2, status="ready", facts=encoder()),
    InspectResult(version="v", attempt=2, status="refused", code="not_onnx", message="Export it."),
    BuildResult(build="b", attempt=1, status="built", artifact=ARTIFACT, quality=QUALITY, seconds=2.5),
    BuildResult(build="b", attempt=1, status="failed", code="x", message="y", fault="system"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_survive_the_wire(message: msgspec.Struct) -> None:
    wire = json.loads(json.dumps(contract.to_wire(message)))
    assert contract.from_wire(wire, type(message)) == message


def test_a_field_of_the_wrong_type_is_refused() -> None:
    wire = contract.to_wire(MESSAGES[0]) | {"attempt": "second"}
    with pytest.raises(msgspec.ValidationError):
        contract.from_wire(wire, InspectRequest)


def test_unknown_fields_are_ignored_for_newer_senders() -> None:
    wire = contract.to_wire(MESSAGES[0]) | {"colour": "blue"}
    assert contract.from_wire(wire, InspectRequest) == MESSAGES[0]


def test_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert contract.digest({"a": 1, "b": 2}) == contract.digest({"b": 2, "a": 1})
    assert contract.digest(RECIPE) != contract.digest(msgspec.structs.replace(RECIPE, precision="fp16"))


def test_keys() -> None:
    assert contract.blob_key(DIGEST) == f"blobs/ab/{DIGEST}"
    assert contract.cancel_key("b", 3) == "cancel/b/3"


def test_rabbitmq_is_set_safely() -> None:
    settings = contract.celery_settings("amqp://host", "")
    assert settings["task_acks_late"]
    assert settings["task_reject_on_worker_lost"]
    assert settings["worker_prefetch_multiplier"] == 1
    assert settings["accept_content"] == ["json"]
    assert settings["broker_transport_options"]["confirm_publish"]
    for queue in settings["task_queues"]:
        assert queue.queue_arguments == {"x-queue-type": "quorum", "x-delivery-limit": 5}


def test_the_filesystem_broker_uses_one_folder() -> None:
    settings = contract.celery_settings("filesystem://", "/b")
    options = settings["broker_transport_options"]
    assert options["data_folder_in"] == options["data_folder_out"] == "/b"
    assert {queue.name for queue in settings["task_queues"]} == {*contract.TAILOR_QUEUES, "control"}


def test_a_job_ends_before_the_broker_takes_its_message_away() -> None:
    assert contract.TIME_LIMIT_S < 1800
    assert contract.HEARTBEAT_S * 4 <= contract.LEASE_S


def loaded_by(module: str, tmp_path: str) -> set[str]:
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "POCKETFLEET_VAR": tmp_path}
    environment.pop("DJANGO_SETTINGS_MODULE", None)  # set by pytest-django; Celery would follow it
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return set(json.loads(answer.stdout))


def test_the_parent_process_never_loads_the_runtime(tmp_path: object) -> None:
    modules = loaded_by("quantize_worker.tasks", str(tmp_path))
    # kombu looks for one of Django's string types where Django is installed; nothing of it starts
    assert not modules & {"onnx", "onnxruntime", "django.conf", "django.db"}


def test_servers_can_plan_without_the_worker_s_dependencies(tmp_path: object) -> None:
    modules = loaded_by("quantize_worker.plan", str(tmp_path))
    # scipy loads slowly: only plans with several tight budgets need it, and load it then
    assert not modules & {"onnx", "onnxruntime", "django", "scipy", "celery", "obstore", "zstandard"}
