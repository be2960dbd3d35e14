"""Several processes at once (here: threads with connections of their own): one wins, none is lost."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections

from models_registry import selectors
from models_registry.errors import OffsetMismatch
from models_registry.models import Build, Model, ModelVersion, Tailoring
from models_registry.services.builds import apply_build_result, cancel_build, request_builds
from models_registry.services.models import create_model
from models_registry.services.signing import add_targets, initialise_repository
from models_registry.services.versions import (
    FileSpec,
    apply_inspect_result,
    create_version,
    put_single,
    receive_part,
)
from quantize_worker.contract import InspectResult
from tenancy.actor import Actor
from tenancy.errors import ProblemError
from tenancy.models import App, Tenant
from tests.integration.test_builds import FACTS, built, target

pytestmark = pytest.mark.django_db(transaction=True, databases="__all__")
THREADS = 4


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Results of all calls, made at the same moment; a ProblemError is a result, others fail."""
    gate = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)
    failures: list[BaseException] = []

    def run(index: int) -> None:
        try:
            gate.wait()
            results[index] = calls[index]()
        except ProblemError as error:
            results[index] = error
        except BaseException as error:
            failures.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    return results


@pytest.fixture
def model(app: App, actor: Actor) -> Model:
    return create_model(app=app, name="minilm", actor=actor)


@pytest.fixture
def version(model: Model, actor: Actor) -> ModelVersion:
    version = put_single(model=model, data=[b"graph"], size=5, actor=actor)
    result = InspectResult(version=str(version.pk), attempt=1, status="ready", facts=FACTS)
    assert apply_inspect_result(result=result)
    version.refresh_from_db()
    return version


def test_numbers_are_given_out_once(model: Model, actor: Actor) -> None:
    def upload() -> int:
        return put_single(model=model, data=[b"graph"], size=5, actor=actor).number

    assert sorted(at_once(*[upload] * THREADS)) == [1, 2, 3, 4]


def test_one_of_equal_parts_is_taken(model: Model, actor: Actor) -> None:
    content = b"x" * 100_000
    spec = FileSpec(
        role="model", path="m.onnx", size_bytes=200_000, sha256=hashlib.sha256(content * 2).hexdigest()
    )
    version = create_version(model=model, files=[spec], actor=actor)

    def send() -> Any:
        return receive_part(version=version, path="m.onnx", offset=0, stream=[content], actor=actor)

    results = at_once(*[send] * THREADS)
    assert sum(isinstance(result, OffsetMismatch) for result in results) == THREADS - 1
    assert version.files.get().received_bytes == 100_000
    file = receive_part(version=version, path="m.onnx", offset=100_000, stream=[content], actor=actor)
    assert file.complete


def test_a_result_delivered_four_times_counts_once(version: ModelVersion, actor: Actor) -> None:
    request_builds(version=version, targets=[target()], actor=actor)
    result = built(Build.objects.get())
    assert sorted(at_once(*[lambda: apply_build_result(result=result)] * THREADS)) == [
        False,
        False,
        False,
        True,
    ]
    outcomes = [entry["outcome"] for entry in Tailoring.objects.get().history]
    assert outcomes.count("accepted") == 1


def test_result_request_and_cancel_do_not_wait_for_each_other(version: ModelVersion, actor: Actor) -> None:
    request_builds(version=version, targets=[target("strict", 0.95), target("lax", 0.5)], actor=actor)
    build = Build.objects.get()
    at_once(
        lambda: apply_build_result(result=built(build, quality=0.8)),
        lambda: request_builds(version=version, targets=[target("third", 0.7)], actor=actor),
        lambda: request_builds(version=version, targets=[target("lax", 0.5)], actor=actor),
        lambda: cancel_build(build=build, actor=actor),
    )
    build.refresh_from_db()
    third = Tailoring.objects.get(class_name="third")
    if build.state == "ready":  # the result came first; the third class found it, before or after
        assert third.state == "ready"
    else:  # the cancellation came first; asking for a third class may have started it anew
        assert build.state in ("cancelled", "building")
        assert third.state in ("impossible", "building")


def test_targets_are_added_one_after_the_other(tenant: Tenant) -> None:
    initialise_repository(tenant=tenant)

    def add(index: int) -> Callable[[], None]:
        return lambda: add_targets(tenant=tenant, targets={f"builds/{index}/manifest.json": b"{}"})

    at_once(*[add(index) for index in range(THREADS)])
    body = b"{}"
    name = hashlib.sha256(body).hexdigest()
    for index in range(THREADS):
        assert selectors.tuf_target(tenant, f"builds/{index}/{name}.manifest.json") == body
    assert selectors.tuf_metadata(tenant, f"{2 + THREADS}.snapshot.json") is not None
