"""The worker's jobs with a real blob folder and the real sandbox; only the sender is a recorder."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import zstandard

from blobstore import BlobStore, open_store
from quantize_worker import app as settings
from quantize_worker.contract import (
    TASK_BUILD_RESULT,
    TASK_INSPECT_RESULT,
    TASK_PROGRESS,
    ArtifactChunk,
    ArtifactFile,
    Blob,
    BuildRequest,
    BuildResult,
    InspectRequest,
    InspectResult,
    ModelFacts,
    Progress,
    Recipe,
    Source,
    SourceFile,
    blob_key,
    cancel_key,
)
from quantize_worker.desk import Desk
from quantize_worker.errors import Cancelled, SandboxFailed
from quantize_worker.jobs import run_build, run_inspect
from quantize_worker.sandbox import Sandbox, find_bubblewrap
from quantize_worker.steps.confinement import Limits
from quantize_worker.steps.exchange import Job, Step
from quantize_worker.storage import job_folder, resume, store_chunks
from tests.integration import onnx_models

RECIPE = Recipe(
    precision="int4",
    accelerator="cpu",
    execution_provider="CPUExecutionProvider",
    emulated=False,
    block_size=32,
)


class Recorder:
    """Takes messages as the broker would; ``on_send`` may react to them."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, msgspec.Struct]] = []
        self.on_send: Callable[[msgspec.Struct], None] = lambda message: None

    def __call__(self, task: str, message: msgspec.Struct) -> None:
        self.sent.append((task, message))
        self.on_send(message)

    def progress(self) -> list[Progress]:
        return [message for _, message in self.sent if isinstance(message, Progress)]

    def inspected(self) -> InspectResult:
        (result,) = [message for task, message in self.sent if task == TASK_INSPECT_RESULT]
        assert isinstance(result, InspectResult)
        return result

    def built(self) -> BuildResult:
        (result,) = [message for task, message in self.sent if task == TASK_BUILD_RESULT]
        assert isinstance(result, BuildResult)
        return result


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return open_store(f"file://{tmp_path}/blobs")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def desk(store: BlobStore, recorder: Recorder, tmp_path: Path) -> Desk:
    work = tmp_path / "work"
    work.mkdir()
    confined = Sandbox(hidden=[tmp_path], bubblewrap=find_bubblewrap())
    return Desk(store=store, sandbox=confined, work=work, memory_bytes=16 << 30, send=recorder)


def put(store: BlobStore, data: bytes) -> Blob:
    digest = hashlib.sha256(data).hexdigest()
    store.put_bytes(data, key=blob_key(digest))
    return Blob(sha256=digest, size_bytes=len(data))


def source_of(store: BlobStore, model: onnx.ModelProto | bytes, **sets: Blob) -> Source:
    blob = put(store, model if isinstance(model, bytes) else model.SerializeToString())
    file = SourceFile(path="model.onnx", sha256=blob.sha256, size_bytes=blob.size_bytes)
    return Source(files=[file], **sets)


def inspected(desk: Desk, recorder: Recorder, source: Source) -> ModelFacts:
    run_inspect(InspectRequest(version="v", attempt=1, source=source), desk)
    result = recorder.inspected()
    assert result.facts is not None, result.message
    recorder.sent.clear()
    return result.facts


def restored(store: BlobStore, file: ArtifactFile) -> bytes:
    """A file as a device puts it together, every digest checked."""
    parts = []
    for chunk in file.chunks:
        frame = store.get_bytes(blob_key(chunk.stored_sha256))
        assert len(frame) == chunk.stored_size_bytes
        assert hashlib.sha256(frame).hexdigest() == chunk.stored_sha256
        content = zstandard.ZstdDecompressor().decompress(frame)
        assert hashlib.sha256(content).hexdigest() == chunk.sha256
        parts.append(content)
    whole = b"".join(parts)
    assert hashlib.sha256(whole).hexdigest() == file.sha256
    assert len(whole) == file.size_bytes
    return whole


def test_inspect_then_build(desk: Desk, recorder: Recorder, store: BlobStore) -> None:
    facts = inspected(desk, recorder, source := source_of(store, onnx_models.embedder()))
    run_build(BuildRequest(build="b", attempt=3, source=source, recipe=RECIPE, facts=facts), desk)
    result = recorder.built()
    assert (result.status, result.attempt, result.build) == ("built", 3, "b"), result.message
    assert result.artifact is not None
    assert result.seconds > 0
    files = {file.path: restored(store, file) for file in result.artifact.files}
    assert set(files) == {"model.onnx", "model.data", "golden.npz"}
    assert result.artifact.size_bytes == sum(len(content) for content in files.values())
    shares = [progress.share for progress in recorder.progress()]
    assert shares == sorted(shares)
    assert {progress.attempt for progress in recorder.progress()} == {3}
    assert list(desk.work.iterdir()) == []
    assert list(store.list("checkpoints")) == []


def test_the_evaluation_set_is_used(desk: Desk, recorder: Recorder, store: BlobStore, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", ids=np.arange(60, dtype=np.int64).reshape(12, 5))
    blob = put(store, (tmp_path / "set.npz").read_bytes())
    facts = inspected(
        desk, recorder, source_of(store, onnx_models.embedder(), evaluation=blob, calibration=blob)
    )
    assert (facts.samples, facts.synthetic_samples) == (12, False)


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"nothing of the kind", "not_onnx"), (onnx_models.classifier().SerializeToString()[:-9], "truncated")],
)
def test_refusals_name_code_and_remedy(
    content: bytes, code: str, desk: Desk, recorder: Recorder, store: BlobStore
) -> None:
    run_inspect(InspectRequest(version="v", attempt=2, source=source_of(store, content)), desk)
    result = recorder.inspected()
    assert (result.status, result.code, result.attempt) == ("refused", code, 2)
    assert "upload" in result.message


def test_a_model_that_never_ends_is_refused(desk: Desk, recorder: Recorder, store: BlobStore) -> None:
    impatient = with_limits(desk, silence_base_s=4.0, heartbeat_s=0.5)
    source = source_of(store, onnx_models.endless_loop())
    run_inspect(InspectRequest(version="v", attempt=1, source=source), impatient)
    result = recorder.inspected()
    assert (result.status, result.code) == ("refused", "resource_limit")
    assert len([p for p in recorder.progress() if p.step == "prepare"]) > 3  # heartbeats within the step


def test_an_upload_whose_path_leaves_the_folder(desk: Desk, recorder: Recorder, store: BlobStore) -> None:
    blob = put(store, b"x")
    file = SourceFile(path="../../model.onnx", sha256=blob.sha256, size_bytes=1)
    run_inspect(InspectRequest(version="v", attempt=1, source=Source(files=[file])), desk)
    assert recorder.inspected().status == "refused"


def test_a_missing_blob_is_our_failure(desk: Desk, recorder: Recorder) -> None:
    file = SourceFile(path="model.onnx", sha256="0" * 64, size_bytes=1)
    run_inspect(InspectRequest(version="v", attempt=1, source=Source(files=[file])), desk)
    result = recorder.inspected()
    assert (result.status, result.code) == ("failed", "blob_missing")


def test_another_contract_is_our_failure(desk: Desk, recorder: Recorder, store: BlobStore) -> None:
    source = source_of(store, onnx_models.classifier())
    run_inspect(InspectRequest(version="v", attempt=1, source=source, contract=99), desk)
    assert recorder.inspected().status == "failed"


def test_a_precision_that_does_not_apply(desk: Desk, recorder: Recorder, store: BlobStore) -> None:
    source = source_of(store, onnx_models.weightless())
    facts = inspected(desk, recorder, source)
    run_build(BuildRequest(build="b", attempt=1, source=source, recipe=RECIPE, facts=facts), desk)
    result = recorder.built()
    assert (result.status, result.code, result.fault) == ("failed", "nothing_to_quantize", "model")


def test_cancelled_before_it_begins(desk: Desk, recorder: Recorder, store: BlobStore) -> None:
    source = source_of(store, onnx_models.classifier())
    facts = inspected(desk, recorder, source)
    store.put_bytes(b"", key=cancel_key("b", 1))
    run_build(BuildRequest(build="b", attempt=1, source=source, recipe=RECIPE, facts=facts), desk)
    assert recorder.built().status == "cancelled"


def test_cancelled_while_it_runs(desk: Desk, recorder: Recorder, store: BlobStore) -> None:
    source = source_of(store, onnx_models.endless_loop())
    recorder.on_send = lambda message: (
        store.put_bytes(b"", key=cancel_key("b", 7))
        if isinstance(message, Progress) and message.step == "evaluate"
        else None
    )
    facts = some_facts(desk, recorder, store)
    prompt = with_limits(desk, heartbeat_s=0.3)
    fp32 = msgspec.structs.replace(RECIPE, precision="fp32", block_size=None)
    run_build(BuildRequest(build="b", attempt=7, source=source, recipe=fp32, facts=facts), prompt)
    assert recorder.built().status == "cancelled"
    assert list(desk.work.iterdir()) == []


def some_facts(desk: Desk, recorder: Recorder, store: BlobStore) -> ModelFacts:
    """Facts for the endless loop, which cannot be inspected: those of a model with its input."""
    model = onnx_models.weightless()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    return inspected(desk, recorder, source_of(store, model))


def test_a_successor_goes_on_after_the_quantize_step(
    desk: Desk, recorder: Recorder, store: BlobStore
) -> None:
    source = source_of(store, onnx_models.embedder())
    facts = inspected(desk, recorder, source)
    request = BuildRequest(build="b", attempt=1, source=source, recipe=RECIPE, facts=facts)
    recorder.on_send = lambda message: (
        store.put_bytes(b"", key=cancel_key("b", 1))
        if isinstance(message, Progress) and message.step == "evaluate"
        else None
    )
    run_build(request, with_limits(desk, heartbeat_s=0.05))
    assert recorder.built().status == "cancelled"
    assert len(list(store.list("checkpoints"))) == 1
    recorder.sent.clear()
    run_build(msgspec.structs.replace(request, attempt=2), desk)
    assert recorder.built().status == "built"
    assert "quantize" not in {progress.step for progress in recorder.progress()}
    assert list(store.list("checkpoints")) == []


def test_a_damaged_checkpoint_is_not_used(store: BlobStore, tmp_path: Path) -> None:
    store.put_bytes(b"[{", key="checkpoints/x.json")
    assert resume(store, "checkpoints/x.json", tmp_path) == []
    assert resume(store, "checkpoints/none.json", tmp_path) == []


def test_a_build_that_runs_twice_gives_the_same(desk: Desk, recorder: Recorder, store: BlobStore) -> None:
    source = source_of(store, onnx_models.classifier())
    request = BuildRequest(
        build="b", attempt=1, source=source, recipe=RECIPE, facts=inspected(desk, recorder, source)
    )
    files = []
    for _ in range(2):
        run_build(request, desk)
        artifact = recorder.built().artifact
        assert artifact is not None
        files.append(artifact.files)
        recorder.sent.clear()
    assert files[0] == files[1]


def test_a_killed_workers_folder_is_cleared_and_a_living_ones_stays(tmp_path: Path) -> None:
    (tmp_path / "job-killed" / "source").mkdir(parents=True)
    with job_folder(tmp_path) as one:
        (one / "file").touch()
        with job_folder(tmp_path) as other:
            assert sorted(tmp_path.iterdir()) == sorted([one, other])
        assert (one / "file").exists()
    assert not list(tmp_path.iterdir())


def test_a_broker_that_fails_does_not_end_the_job(desk: Desk, recorder: Recorder, store: BlobStore) -> None:
    def fail_on_progress(message: msgspec.Struct) -> None:
        if isinstance(message, Progress):
            raise ConnectionError("no broker")

    recorder.on_send = fail_on_progress
    source = source_of(store, onnx_models.classifier())
    run_inspect(InspectRequest(version="v", attempt=1, source=source), desk)
    assert recorder.inspected().status == "ready"
    assert recorder.sent[0][0] == TASK_PROGRESS


@pytest.mark.parametrize("trick", ["link", "folder", "other content", "missing"])
def test_chunks_that_are_not_what_the_child_says(trick: str, store: BlobStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    digest = hashlib.sha256(b"secret").hexdigest()
    place = tmp_path / "chunks" / digest
    place.parent.mkdir()
    if trick == "link":
        place.symlink_to(secret)
    elif trick == "folder":
        place.mkdir()
    elif trick == "other content":
        place.write_bytes(b"SECRET")
    chunk = ArtifactChunk(sha256=digest, size_bytes=6, stored_sha256=digest, stored_size_bytes=6)
    file = ArtifactFile(path="model.onnx", sha256=digest, size_bytes=6, chunks=[chunk])
    with pytest.raises(SandboxFailed):
        store_chunks(store, [file], place.parent)
    assert list(store.list("blobs")) == []


HOLD = """
import sys, threading
from pathlib import Path
from quantize_worker.errors import Cancelled, SandboxFailed
from quantize_worker.sandbox import Sandbox
from quantize_worker.steps.confinement import Limits
from quantize_worker.steps.exchange import Job
from quantize_worker.contract import SourceFile
folder = Path(sys.argv[1])
size = (folder / "source" / "model.onnx").stat().st_size
job = Job(kind="inspect", files=[SourceFile(path="model.onnx", sha256="", size_bytes=size)],
          limits=Limits(wall_s=300, memory_bytes=16 << 30))
Sandbox(bubblewrap=sys.argv[2] or None).run(
    folder, job, lambda step: print(step.step, flush=True), threading.Event())
"""


@pytest.mark.parametrize("confined", [True, False])
def test_killing_the_worker_ends_its_child(confined: bool, tmp_path: Path) -> None:
    program = find_bubblewrap() if confined else ""
    if program is None:
        pytest.skip("bubblewrap is not available")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "model.onnx").write_bytes(onnx_models.endless_loop().SerializeToString())
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), program], stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        for line in worker.stdout:
            if line.strip() == "prepare":  # the child now hangs in the model
                break
        assert children_with(tmp_path)
        worker.send_signal(signal.SIGKILL)
    wait_until(lambda: not children_with(tmp_path))


def children_with(folder: Path) -> list[int]:
    """Processes of any user whose command line names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if (
                str(folder).encode() in command
                and b"quantize_worker" in command
                and b"-c" not in command.split(b"\0")
            ):
                found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


def test_the_child_sees_neither_network_nor_our_state(tmp_path: Path) -> None:
    program = find_bubblewrap()
    if program is None:
        pytest.skip("bubblewrap is not available")
    state, folder = tmp_path / "state", tmp_path / "state" / "work" / "job"
    folder.mkdir(parents=True)
    (state / "secret").write_text("x")
    code = (
        "import os, socket, pathlib; "
        f"print(os.path.exists('{state}/secret'), len(socket.if_nameindex()), sorted(os.environ)); "
        f"pathlib.Path('{folder}/new').write_text('x'); pathlib.Path('/usr/new').write_text('x')"
    )
    command = Sandbox(hidden=[state], bubblewrap=program).confinement(folder)
    answer = subprocess.run(
        [*command, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert answer.stdout.startswith("False 1 ")  # the loopback device alone
    assert (folder / "new").exists()
    assert "Read-only file system" in answer.stderr


def with_limits(desk: Desk, **changes: float) -> Desk:
    """A desk with other limits."""
    return replace(desk, **changes)  # type: ignore[arg-type]


def test_jobs_see_no_state_of_ours_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_bubblewrap() is None:
        pytest.skip("bubblewrap is not available")
    monkeypatch.setenv("POCKETFLEET_VAR", str(tmp_path / "var"))
    monkeypatch.setenv("POCKETFLEET_BROKER_FOLDER", str(tmp_path / "queue"))
    monkeypatch.setenv("POCKETFLEET_BLOBS_URL", f"file://{tmp_path}/store")
    monkeypatch.setattr(settings, "blob_store", settings.blob_store.__wrapped__)
    for name in ("var", "queue"):
        (tmp_path / name).mkdir()
    arguments = settings.sandbox.__wrapped__().confinement(settings.work_folder())
    hidden = {path for option, path in itertools.pairwise(arguments) if option == "--tmpfs"}
    assert {str(tmp_path / name) for name in ("var", "queue", "store")} <= hidden


def test_stop_ends_the_child(tmp_path: Path) -> None:
    """``stop`` set by another thread, as the heartbeat does."""
    (tmp_path / "source").mkdir()
    content = onnx_models.endless_loop().SerializeToString()
    (tmp_path / "source" / "model.onnx").write_bytes(content)
    files = [SourceFile(path="model.onnx", sha256="", size_bytes=len(content))]
    stop = threading.Event()

    def on_step(step: Step) -> None:
        if step.step == "prepare":
            stop.set()

    job = Job(kind="inspect", files=files, limits=Limits(wall_s=300, memory_bytes=16 << 30))
    with pytest.raises(Cancelled):
        Sandbox().run(tmp_path, job, on_step, stop)
    assert not children_with(tmp_path)
