"""Measuring builds on real ONNX Runtime, in the real measuring process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from quantize_worker.errors import SandboxCrashed, SandboxOutOfMemory
from quantize_worker.steps import references
from quantize_worker.steps.gate import MINIMUM_SAMPLES
from quantize_worker.steps.measure import CPU_PROVIDER, MeasuredError, Runner, measure
from quantize_worker.steps.samples import SampleSet
from tests.integration import onnx_models

SAMPLES, GOLDEN = 96, 8


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with Runner() as running:
        yield running


def saved(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def features(count: int = SAMPLES, seed: int = 0) -> SampleSet:
    values = np.random.default_rng(seed).standard_normal((count, onnx_models.FEATURES))
    return SampleSet({"x": values.astype(np.float32)}, None, rows=1)


def reference_of(model: Path, samples: SampleSet, folder: Path, runner: Runner) -> Path:
    found = measure(model, samples, folder, provider=CPU_PROVIDER, golden=GOLDEN, runner=runner)
    references.write(folder / "references.npz", found.outputs, found.batch)
    return folder / "references.npz"


def test_fp32_keeps_all_outputs(tmp_path: Path, runner: Runner) -> None:
    path, samples = saved(onnx_models.classifier(), tmp_path), features()
    shares: list[float] = []
    found = measure(
        path, samples, tmp_path, provider=CPU_PROVIDER, golden=GOLDEN, runner=runner, on_share=shares.append
    )
    assert len(found.outputs) == len(shares) == SAMPLES
    assert shares[-1] == 1.0
    assert found.batch["p"].shape == (GOLDEN, onnx_models.CLASSES)
    assert np.allclose(np.concatenate([sample["p"] for sample in found.outputs[:GOLDEN]]), found.batch["p"])
    assert found.quality is None
    assert found.figures.provider == CPU_PROVIDER
    assert found.figures.assigned[CPU_PROVIDER] >= 3
    assert found.figures.latency_p50_ms > 0


def test_a_build_is_judged_and_stops_early(tmp_path: Path, runner: Runner) -> None:
    model, samples = onnx_models.classifier(), features()
    truth = reference_of(saved(model, tmp_path), samples, tmp_path, runner)
    found = measure(
        saved(model, tmp_path, "build.onnx"),
        samples,
        tmp_path / "build",
        provider=CPU_PROVIDER,
        golden=GOLDEN,
        references=truth,
        floors=[0.9],
        runner=runner,
    )
    assert found.quality is not None
    assert found.quality.samples == MINIMUM_SAMPLES
    assert found.quality.value == pytest.approx(1.0)
    assert len(found.outputs) == GOLDEN
    assert found.batch["p"].shape[0] == GOLDEN


def test_references_survive_the_file(tmp_path: Path) -> None:
    outputs = [{"y": np.full((1, 3), i, np.float32), "label/of": np.array([i])} for i in range(11)]
    references.write(tmp_path / "a.npz", outputs, {"y": np.ones((2, 3), np.float32)})
    references.write(tmp_path / "b.npz", outputs, {"y": np.ones((2, 3), np.float32)})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with references.read(tmp_path / "a.npz") as found:
        assert len(found) == 11
        assert found[10]["label/of"] == 10
        assert [sample["y"][0, 0] for sample in found[8:]] == [8, 9, 10]
        assert found.batch()["y"].shape == (2, 3)


def test_nan_stops_the_gate_and_is_told(tmp_path: Path, runner: Runner) -> None:
    samples = features()
    truth = reference_of(
        saved(onnx_models.linear(np.eye(64, dtype=np.float32)), tmp_path), samples, tmp_path, runner
    )
    found = measure(
        saved(onnx_models.logarithmic(), tmp_path, "log.onnx"),
        samples,
        tmp_path / "build",
        provider=CPU_PROVIDER,
        golden=GOLDEN,
        references=truth,
        floors=[0.5],
        runner=runner,
    )
    assert not found.finite
    assert found.quality is not None
    assert found.quality.value < 0.5


def test_a_refused_model_is_an_answer_and_the_runner_lives(tmp_path: Path, runner: Runner) -> None:
    broken = onnx_models.classifier()
    broken.graph.node[0].op_type = "Gemmm"
    with pytest.raises(MeasuredError, match="Gemmm"):
        measure(
            saved(broken, tmp_path, "broken.onnx"),
            features(),
            tmp_path,
            provider=CPU_PROVIDER,
            golden=1,
            runner=runner,
        )
    good = saved(onnx_models.classifier(), tmp_path)
    assert measure(good, features(8), tmp_path, provider=CPU_PROVIDER, golden=1, runner=runner).outputs


def endless() -> onnx.ModelProto:
    """A loop that takes minutes."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["still"]),
            helper.make_node("MatMul", ["state", "state"], ["squared"]),
            helper.make_node("Tanh", ["squared"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [64, 64]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [64, 64]),
        ],
    )
    nodes = [
        helper.make_node("MatMul", ["column", "x"], ["start"]),
        helper.make_node("Loop", ["turns", "", "start"], ["y"], body=body),
    ]
    weights = {"turns": np.array(1 << 40, np.int64), "column": np.ones((64, 1), np.float32)}
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 64])]
    return onnx_models.model_of(nodes, inputs, outputs, weights)


def children(parent: int) -> list[int]:
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(one) for one in listed]


@pytest.mark.parametrize(
    ("sent", "error"), [(signal.SIGSEGV, SandboxCrashed), (signal.SIGKILL, SandboxOutOfMemory)]
)
def test_a_crash_of_the_runtime_is_an_outcome(
    tmp_path: Path, sent: signal.Signals, error: type[Exception]
) -> None:
    path = saved(endless(), tmp_path)
    with Runner() as own:
        warm = measure(
            saved(onnx_models.classifier(), tmp_path, "c.onnx"),
            features(8),
            tmp_path,
            provider=CPU_PROVIDER,
            golden=1,
            runner=own,
        )
        assert warm.outputs
        process = own._process
        assert process is not None

        def kill_the_fork() -> None:
            while not (found := children(process.pid)):
                pass
            os.kill(found[0], sent)

        killer = threading.Thread(target=kill_the_fork)
        killer.start()
        with pytest.raises(error):
            measure(path, features(1), tmp_path, provider=CPU_PROVIDER, golden=1, runner=own)
        killer.join()
        again = measure(
            tmp_path / "c.onnx", features(8), tmp_path, provider=CPU_PROVIDER, golden=1, runner=own
        )
        assert len(again.outputs) == 8


def test_a_dead_runner_is_told_and_started_again(tmp_path: Path) -> None:
    path = saved(onnx_models.classifier(), tmp_path)
    with Runner() as own:
        measure(path, features(8), tmp_path, provider=CPU_PROVIDER, golden=1, runner=own)
        process = own._process
        assert process is not None
        process.kill()
        process.wait()
        assert measure(path, features(8), tmp_path, provider=CPU_PROVIDER, golden=1, runner=own).outputs


def test_memory_is_each_builds_own(tmp_path: Path, runner: Runner) -> None:
    """After a large model, a small one does not inherit its peak."""
    large = onnx_models.linear(np.ones((64, 1 << 20), np.float32))
    small = onnx_models.linear(np.ones((64, 64), np.float32))
    figures = []
    for name, model in (("large", large), ("small", small)):
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path, save_as_external_data=True, location=f"{name}.data")
        figures.append(
            measure(path, features(4), tmp_path, provider=CPU_PROVIDER, golden=1, runner=runner).figures
        )
    assert figures[0].memory_bytes > 64 << 20
    assert figures[1].memory_bytes < 32 << 20
    assert figures[1].anonymous_bytes <= figures[1].memory_bytes


def test_a_missing_provider_is_told(tmp_path: Path, runner: Runner) -> None:
    path = saved(onnx_models.classifier(), tmp_path)
    found = measure(path, features(8), tmp_path, provider="QNNExecutionProvider", golden=1, runner=runner)
    assert found.figures.provider == CPU_PROVIDER


def test_a_fixed_batch_and_lean_weights(tmp_path: Path, runner: Runner) -> None:
    path = saved(onnx_models.classifier(batch=4), tmp_path)
    samples = SampleSet(features(32).inputs, None, rows=4)
    found = measure(path, samples, tmp_path, provider=CPU_PROVIDER, golden=1, runner=runner, lean=True)
    assert len(found.outputs) == 8
    assert found.outputs[0]["p"].shape == (4, onnx_models.CLASSES)


def test_labels_make_accuracy_the_measure(tmp_path: Path, runner: Runner) -> None:
    path, plain = saved(onnx_models.classifier(), tmp_path), features()
    truth = reference_of(path, plain, tmp_path, runner)
    with references.read(truth) as stored:
        labels = np.array([int(sample["p"].argmax()) for sample in stored])
    samples = SampleSet(plain.inputs, labels, rows=1)
    found = measure(
        path,
        samples,
        tmp_path,
        provider=CPU_PROVIDER,
        golden=1,
        references=truth,
        floors=[0.99],
        runner=runner,
    )
    assert found.quality is not None
    assert (found.quality.metric, found.quality.value, found.quality.samples) == ("accuracy", 1.0, SAMPLES)
