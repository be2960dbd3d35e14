"""The self-test's arithmetic and its honesty, sessions, lanes and micro-benchmarks; on real ONNX Runtime."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from device_agent.errors import InferenceError, InstallError
from device_agent.protocol.messages import Accelerator
from device_agent.runtime import Runtime, detect_accelerators, engine_version, measure, open_session
from device_agent.runtime.lanes import Lanes
from device_agent.runtime.providers import older_than
from device_agent.runtime.self_test import load_golden, min_row_cosine, self_test
from device_agent.scheduler import Priority
from tests.simulators.artifacts import golden, make_artifact, run_model, tiny_inputs, tiny_model

CPU = "CPUExecutionProvider"


def accelerator(name: str, kind: str, *, emulated: bool = False) -> Accelerator:
    return Accelerator(name=name, kind=kind, execution_provider=CPU, data_types=[], emulated=emulated)  # type: ignore[arg-type]


def slot(folder: Path, model: bytes, inputs: Any, references: Any, **arguments: Any) -> Any:
    """A slot with a model and its golden file; returns what the self-test takes."""
    files = {"model.onnx": model, "golden.npz": golden(inputs, references)}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    manifest = make_artifact(files, **arguments).manifest
    return open_session(folder / "model.onnx", provider=CPU, threads=1), folder, manifest


def model_of(nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


class TestCosine:
    @pytest.mark.parametrize(
        ("output", "reference", "expected"),
        [
            ([[1.0, 0.0]], [[2.0, 0.0]], 1.0),
            ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]], -1.0),  # the worst row counts
            ([[1.0, 1.0]], [[1.0, 0.0]], 2**-0.5),
            ([[0.0, 0.0]], [[0.0, 0.0]], 1.0),
            ([[0.0, 0.0]], [[1.0, 0.0]], 0.0),
            ([[np.nan, 1.0]], [[1.0, 1.0]], -1.0),
            ([[np.inf, 1.0]], [[1.0, 1.0]], -1.0),
            ([[1.0]], [[1.0, 1.0]], -1.0),
        ],
    )
    def test_rows(self, output: Any, reference: Any, expected: float) -> None:
        assert min_row_cosine(np.array(output), np.array(reference)) == pytest.approx(expected)


class TestSelfTest:
    def test_it_passes_with_evidence(self, tmp_path: Path) -> None:
        inputs = tiny_inputs()
        arguments = slot(tmp_path, tiny_model(), inputs, run_model(tiny_model(), inputs))
        result = self_test(*arguments, emulated=True)
        assert (result.passed, result.provider, result.emulated) == (True, CPU, True)
        assert result.latency_p50_ms > 0
        assert result.peak_memory_bytes > 0

    @pytest.mark.parametrize(("noise", "passes"), [(0.01, True), (0.5, False)])
    def test_the_tolerance_is_the_manifests(self, tmp_path: Path, noise: float, passes: bool) -> None:
        inputs = tiny_inputs()
        reference = run_model(tiny_model(), inputs)["y"]
        draw = np.random.default_rng(1).standard_normal(reference.shape).astype(np.float32)
        promised = {"y": reference + noise * np.abs(reference).max() * draw}
        arguments = slot(tmp_path, tiny_model(), inputs, promised, min_cosine=0.99)
        if passes:
            assert self_test(*arguments, emulated=False).passed
        else:
            with pytest.raises(InstallError) as caught:
                self_test(*arguments, emulated=False)
            assert caught.value.failure == "output_mismatch"
            assert caught.value.self_test is not None

    def test_indices_and_labels_are_not_compared(self, tmp_path: Path) -> None:
        model = model_of(
            [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Cast", ["x"], ["label"], to=7)],
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
            [
                helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2]),
                helper.make_tensor_value_info("label", TensorProto.INT64, ["n", 2]),
            ],
        )
        x = np.array([[1, 2], [3, 4]], np.float32)
        references = {"y": x, "label": np.array([[9, 9], [9, 9]])}
        arguments = slot(tmp_path, model, {"x": x}, references, samples=2)
        assert self_test(*arguments, emulated=False).passed

    def test_a_model_whose_batch_is_fixed_runs_whole(self, tmp_path: Path) -> None:
        info = helper.make_tensor_value_info
        model = model_of(
            [helper.make_node("Relu", ["x"], ["y"])],
            [info("x", TensorProto.FLOAT, [3, 2])],
            [info("y", TensorProto.FLOAT, [3, 2])],
        )
        x = np.ones((3, 2), np.float32)
        assert self_test(*slot(tmp_path, model, {"x": x}, {"y": x}, samples=3), emulated=False).passed

    def test_rows_on_another_axis(self, tmp_path: Path) -> None:
        info = helper.make_tensor_value_info
        model = model_of(
            [helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0])],
            [info("x", TensorProto.FLOAT, ["n", 2])],
            [info("y", TensorProto.FLOAT, [2, "n"])],
        )
        x = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
        assert self_test(*slot(tmp_path, model, {"x": x}, {"y": x.T}, samples=3), emulated=False).passed

    def test_samples_that_do_not_fit_the_model(self, tmp_path: Path) -> None:
        arguments = slot(tmp_path, tiny_model(), {"z": np.ones((4, 3), np.float32)}, {"y": np.ones((4, 16))})
        with pytest.raises(InstallError, match="do not run") as caught:
            self_test(*arguments, emulated=False)
        assert caught.value.failure == "session_failed"

    @pytest.mark.parametrize("content", [b"", b"no archive", None])
    def test_a_golden_file_that_is_none(self, tmp_path: Path, content: bytes | None) -> None:
        path = tmp_path / "golden.npz"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InstallError, match="golden"):
            load_golden(path)

    def test_pickles_are_not_loaded(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "golden.npz", **{"input/x": np.array([object()])})  # type: ignore[arg-type]
        with pytest.raises(InstallError, match="cannot be read"):
            load_golden(tmp_path / "golden.npz")

    def test_a_golden_file_without_references(self, tmp_path: Path) -> None:
        (tmp_path / "golden.npz").write_bytes(golden(tiny_inputs(), {}))
        with pytest.raises(InstallError, match="lacks"):
            load_golden(tmp_path / "golden.npz")


class TestSession:
    def test_a_provider_that_is_not_here_is_no_silent_cpu(self, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").write_bytes(tiny_model())
        with pytest.raises(InstallError) as caught:
            open_session(tmp_path / "m.onnx", provider="QNNExecutionProvider", threads=1)
        assert caught.value.failure == "provider_fallback"

    @pytest.mark.parametrize("content", [b"", b"\0" * 100])
    def test_no_model(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(InstallError) as caught:
            open_session(tmp_path / "m.onnx", provider=CPU, threads=1)
        assert caught.value.failure == "session_failed"

    def test_what_onnx_runtime_refuses_is_the_requests_fault(self, tmp_path: Path) -> None:
        info = helper.make_tensor_value_info
        model = model_of(
            [helper.make_node("MatMul", ["a", "b"], ["c"])],
            [info("a", TensorProto.FLOAT, ["m", "k"]), info("b", TensorProto.FLOAT, ["k", "n"])],
            [info("c", TensorProto.FLOAT, ["m", "n"])],
        )
        (tmp_path / "m.onnx").write_bytes(model)
        session = open_session(tmp_path / "m.onnx", provider=CPU, threads=1)
        inputs = {"a": np.ones((2, 3), np.float32), "b": np.ones((4, 5), np.float32)}
        session.check(inputs, [])
        with pytest.raises(InferenceError, match="refused this input") as caught:
            session.run(inputs)
        assert caught.value.status == 400


class TestPlacing:
    def placed(self, tmp_path: Path, accelerators: list[Accelerator], kind: str) -> Any:
        (tmp_path / "model.onnx").write_bytes(tiny_model())
        files = {"model.onnx": tiny_model(), "golden.npz": b"x"}
        runtime = Runtime(accelerators, ram_bytes=2**30, threads=1)
        served = runtime.load(tmp_path, make_artifact(files, accelerator=kind).manifest)
        runtime.close()
        return served

    def test_a_build_runs_on_the_accelerators_of_its_kind(self, tmp_path: Path) -> None:
        both = [accelerator("cpu", "cpu"), accelerator("npu", "npu", emulated=True)]
        served = self.placed(tmp_path, both, "npu")
        assert (served.lanes, served.emulated) == (("npu",), True)
        served = self.placed(tmp_path, both, "cpu")
        assert (served.lanes, served.emulated) == (("cpu",), False)

    def test_without_one_of_its_kind_the_provider_decides(self, tmp_path: Path) -> None:
        assert self.placed(tmp_path, [accelerator("cpu", "cpu")], "gpu").lanes == ("cpu",)


class TestLanes:
    def test_work_runs_on_the_lanes_own_thread(self) -> None:
        lanes = Lanes(["a", "b"])
        names = [
            lanes.submit(
                lambda options: threading.current_thread().name, lanes=[lane], priority=Priority.NORMAL
            ).result(10)
            for lane in ("a", "b")
        ]
        lanes.close()
        assert names == ["lane-a", "lane-b"]

    def test_the_urgent_overtakes_and_the_impossible_is_refused(self) -> None:
        lanes = Lanes(["a"])
        gate, order = threading.Event(), []

        def work(name: str) -> Any:
            return lambda options: order.append(name)

        first = lanes.submit(lambda options: gate.wait(10), lanes=["a"], priority=Priority.NORMAL)
        futures = [
            lanes.submit(work("background"), lanes=["a"], priority=Priority.BACKGROUND),
            lanes.submit(work("interactive"), lanes=["a"], priority=Priority.INTERACTIVE),
        ]
        refused = lanes.submit(work("never"), lanes=["none"], priority=Priority.NORMAL)
        gate.set()
        for future in (first, *futures):
            future.result(10)
        with pytest.raises(InferenceError, match="too busy") as caught:
            refused.result(10)
        lanes.close()
        assert order == ["interactive", "background"]
        assert caught.value.status == 503

    def test_an_error_reaches_the_caller_and_the_lane_goes_on(self) -> None:
        lanes = Lanes(["a"])
        failing = lanes.submit(lambda options: 1 / 0, lanes=["a"], priority=Priority.NORMAL)
        with pytest.raises(ZeroDivisionError):
            failing.result(10)
        assert lanes.submit(lambda options: 7, lanes=["a"], priority=Priority.NORMAL).result(10) == 7
        lanes.close()

    def test_closing_ends_what_waits_and_what_runs(self) -> None:
        lanes = Lanes(["a"])
        started = threading.Event()

        def until_terminated(options: Any) -> None:
            started.set()
            while not options.terminate:
                pass

        running = lanes.submit(until_terminated, lanes=["a"], priority=Priority.NORMAL)
        waiting = lanes.submit(lambda options: None, lanes=["a"], priority=Priority.NORMAL)
        assert started.wait(10)
        lanes.close()
        assert waiting.cancelled()
        assert running.result(10) is None


def test_accelerators_are_real_providers_only() -> None:
    found = {one.execution_provider: one for one in detect_accelerators()}
    assert found[CPU].kind == "cpu"
    assert "AzureExecutionProvider" not in found


def test_figures_are_measured() -> None:
    figures = measure(CPU, threads=1)
    assert figures.fp32_gflops > 0.1
    assert figures.int8_gops > 0.1
    assert figures.bandwidth_gb_per_s > 0.1
    assert figures.session_start_ms > 0


@pytest.mark.parametrize(
    ("version", "minimum", "older"),
    [
        ("1.32.0", "1.17", False),
        ("1.9.0", "1.17.0", True),
        ("1.17.0", "1.17.0", False),
        ("1.32.0+cu12", "1.32.1", True),
        ("2", "1.99.9", False),
    ],
)
def test_versions_compare_as_numbers(version: str, minimum: str, older: bool) -> None:
    assert older_than(version, minimum) is older
    assert not older_than(engine_version(), "1.0")
