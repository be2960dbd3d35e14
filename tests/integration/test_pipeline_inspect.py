"""Inspections on real ONNX Runtime: facts, stages that a successor takes up, and batches on many workers."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from quantize_worker.contract import AnalysisFile, LayerFacts, ModelFacts, TensorSpec
from quantize_worker.formats import FORMATS
from quantize_worker.plan import consider
from quantize_worker.steps.exchange import FIRST_STAGE, SOURCE_FOLDER
from quantize_worker.steps.samples import SYNTHETIC_SAMPLES
from tests.integration import onnx_models
from tests.integration.job_folders import (
    Done,
    Inspected,
    artifact,
    build,
    candidates,
    features,
    inspect,
    moved,
    target,
    uniform,
    upload,
)

MEASURED = ("foundation.json",)  # holds times, which differ from run to run


def digests(files: list[AnalysisFile]) -> dict[str, str]:
    return {file.path: file.sha256 for file in files if file.path not in MEASURED}


def made(files: list[AnalysisFile]) -> list[AnalysisFile]:
    return [file for file in files if file.layer]


def test_what_a_plan_needs_is_found(tmp_path: Path) -> None:
    source = onnx_models.embedder()
    done = inspect(upload(tmp_path, source))
    facts = done.facts
    assert facts.inputs == [TensorSpec(name="ids", dtype="int64", shape=["n", "seq"])]
    assert facts.outputs == [TensorSpec(name="embedding", dtype="float32", shape=["n", 64])]
    assert facts.parameters == 500 * 64 + 64 * 64
    assert facts.embedding_weight_bytes == 4 * 500 * 64
    assert facts.quantizable_weight_bytes == 4 * (500 * 64 + 64 * 64)
    assert (
        facts.weight_bytes == facts.quantizable_weight_bytes + 8
    )  # axes of the mean, a constant from opset 18 on
    assert facts.source_bytes == len(source.SerializeToString())
    assert 0 < facts.other_bytes < 8192
    assert facts.latency_p50_ms > 0
    assert facts.memory_bytes > facts.weight_bytes
    assert facts.operators["Gather"] == facts.operators["MatMul"] == 1
    assert facts.speed.fp32_gflops > 0
    assert {cost.operator for cost in facts.costs} >= {"MatMul"}
    assert [step.share for step in done.steps] == sorted(step.share for step in done.steps)
    assert {"prepare", "measure", "analyse"} <= set(done.names)


def test_every_format_of_a_layer_is_weighed(tmp_path: Path) -> None:
    facts = inspect(upload(tmp_path, onnx_models.encoder())).facts
    assert len(facts.layers) == 7
    for layer in facts.layers:
        assert layer.quantizable
        assert layer.rows > 0
        assert layer.formats["fp32"].loss == 0.0
        for name, found in layer.formats.items():
            assert found.size_bytes <= 4 * layer.parameters
            assert np.isfinite([found.error, found.loss]).all()
            assert found.error >= 0 if FORMATS[name].bits > 4 else found.error > 1e-4
        assert layer.formats["int4-b32"].loss > layer.formats["fp16-stored"].loss


def test_candidates_are_kept_for_every_data_aware_format(tmp_path: Path) -> None:
    done = inspect(upload(tmp_path, onnx_models.embedder()))
    kept = {(file.layer, file.format) for file in made(done.outcome.files)}
    assert kept == {
        (layer.name, name)
        for layer in done.facts.layers
        for name in layer.formats
        if FORMATS[name].data_aware
    }


def test_equal_models_are_analysed_equally(tmp_path: Path) -> None:
    first, second = (inspect(upload(tmp_path / name, onnx_models.encoder())) for name in "ab")
    assert digests(first.outcome.files) == digests(second.outcome.files)
    assert first.facts.layers == second.facts.layers
    assert first.facts.interaction == second.facts.interaction
    assert first.facts.products == second.facts.products


def test_without_a_set_samples_are_generated_and_said(tmp_path: Path) -> None:
    facts = inspect(upload(tmp_path, onnx_models.embedder(rows=70))).facts
    assert facts.synthetic_samples
    assert facts.samples == facts.measured_samples == SYNTHETIC_SAMPLES
    assert (facts.has_labels, facts.accuracy) == (False, None)


def test_what_is_measured_is_counted(tmp_path: Path) -> None:
    folder = upload(tmp_path, onnx_models.classifier())
    np.savez(folder / "evaluation.npz", x=features(300))
    facts = inspect(folder).facts
    assert (facts.samples, facts.measured_samples) == (300, 128)
    assert not facts.synthetic_samples


def test_a_model_of_log_is_fine_where_its_samples_are(tmp_path: Path) -> None:
    """Generated inputs would be negative; real ones are not."""
    folder = upload(tmp_path, onnx_models.logarithmic())
    np.savez(folder / "evaluation.npz", x=np.ones((6, onnx_models.FEATURES), np.float32))
    assert inspect(folder).outcome.status == "ready"


def first_stage(done: Done) -> list[AnalysisFile]:
    (step,) = [step for step in done.steps if step.stage]
    assert step.stage == FIRST_STAGE
    return step.files


def test_a_successor_goes_on_after_the_first_stage(tmp_path: Path) -> None:
    folder = upload(tmp_path / "first", onnx_models.encoder())
    whole = inspect(folder)
    later = moved(folder, first_stage(whole), tmp_path / "second")
    shutil.copytree(folder / SOURCE_FOLDER, later / SOURCE_FOLDER)
    resumed = inspect(later, stages=[FIRST_STAGE])
    assert not {"prepare", "read sets", "measure"} & set(resumed.names)
    assert digests(resumed.outcome.files) == digests(whole.outcome.files)
    assert resumed.facts.layers == whole.facts.layers
    same = ("latency_p50_ms", "memory_bytes", "prepared", "other_bytes", "source_bytes", "samples")
    assert all(getattr(resumed.facts, name) == getattr(whole.facts, name) for name in same)


def chain(layers: int = 5, width: int = 64) -> onnx.ModelProto:
    """Products of one size, one after the other."""
    generator = np.random.default_rng(8)
    weights = {
        f"w{i}": (generator.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
        for i in range(layers)
    }
    nodes = []
    for i in range(layers):
        nodes.append(onnx.helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"p{i}"]))
        nodes.append(onnx.helper.make_node("Tanh", [f"p{i}"], [f"h{i + 1}"]))
    inputs = [onnx.helper.make_tensor_value_info("h0", onnx_models.FLOAT, ["n", width])]
    outputs = [onnx.helper.make_tensor_value_info(f"h{layers}", onnx_models.FLOAT, ["n", width])]
    return onnx_models.model_of(nodes, inputs, outputs, weights)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Inspected:
    return Inspected(tmp_path_factory.mktemp("whole"), chain())


class Batched:
    """A model inspected in batches, each on a worker of its own that has the foundation only."""

    def __init__(self, folder: Path) -> None:
        self.first = inspect(upload(folder / "first", chain()), batch_parameters=2 * 64 * 64)
        self.done: list[Done] = []
        self.gathered = moved(folder / "first", self.first.outcome.files, folder / "gathered")
        for number, layers in enumerate(self.first.outcome.batches):
            worker = moved(folder / "first", self.first.outcome.files, folder / f"worker{number}")
            self.done.append(candidates(worker, layers))
            moved(worker, self.done[-1].outcome.files, self.gathered)

    @property
    def facts(self) -> ModelFacts:
        """Facts as the registry completes them."""
        layers = [layer for one in self.done for layer in one.outcome.layers]
        found = {layer.name: layer for layer in layers}
        return msgspec.structs.replace(
            self.first.facts, layers=[found[layer.name] for layer in self.first.facts.layers]
        )


@pytest.fixture(scope="module")
def batched(tmp_path_factory: pytest.TempPathFactory) -> Batched:
    return Batched(tmp_path_factory.mktemp("batched"))


def test_a_large_model_is_left_to_batches(batched: Batched, whole: Inspected) -> None:
    first = batched.first
    names = [layer.name for layer in whole.facts.layers]
    assert first.outcome.batches == [names[0:2], names[2:4], names[4:5]]
    assert [layer.name for layer in first.facts.layers] == names
    assert all(layer.quantizable and not layer.formats for layer in first.facts.layers)
    assert not made(first.outcome.files)
    assert {"model/model.onnx", "gate.npz", "calibration.npz", "references.npz"} <= digests(
        first.outcome.files
    ).keys()


def test_a_model_of_one_batch_is_done_at_once(tmp_path: Path) -> None:
    done = inspect(upload(tmp_path, onnx_models.classifier()), batch_parameters=1 << 20)
    assert done.outcome.batches == []
    assert all(layer.formats for layer in done.facts.layers)


def test_batches_find_what_one_job_finds(batched: Batched, whole: Inspected) -> None:
    assert all(one.outcome.status == "ready" for one in batched.done)
    found: list[LayerFacts] = [layer for one in batched.done for layer in one.outcome.layers]
    assert found == whole.facts.layers
    together = {file.path: file for one in batched.done for file in made(one.outcome.files)}
    assert list(together.values()) == made(whole.done.outcome.files)
    assert all(one.steps[-1].share <= 1.0 for one in batched.done)


@pytest.mark.parametrize("precision", ["int4", "int8-dynamic", "int8-qdq", "int8-qdq16"])
def test_batches_build_what_one_job_builds(
    precision: str, batched: Batched, whole: Inspected, tmp_path: Path
) -> None:
    """Every layer's statistics and candidates are there, whichever worker found them."""
    recipe = uniform(whole.facts, precision)  # type: ignore[arg-type]
    one = build(whole.copy(precision), recipe).built
    folder = tmp_path / "build"
    shutil.copytree(batched.gathered, folder)
    other = build(folder, recipe).built
    assert one.artifact is not None, one.message
    assert other.artifact is not None, other.message
    assert other.artifact.files[:2] == one.artifact.files[:2]
    assert artifact(folder).exists()


def test_a_plan_of_batches_can_be_built(batched: Batched, tmp_path: Path) -> None:
    plans = consider(batched.facts, target("int8-dynamic", "int4", quality_floor=0.95)).candidates
    folder = tmp_path / "build"
    shutil.copytree(batched.gathered, folder)
    for built in build(folder, *(plan.recipe for plan in plans)).outcome.builds:
        assert built.quality is not None, built.message
        assert built.quality.value > 0.95


def test_a_batch_of_layers_that_are_not_there_fails(batched: Batched) -> None:
    outcome = candidates(batched.gathered, ["nowhere"]).outcome
    assert (outcome.status, outcome.code, outcome.fault) == ("failed", "unknown_layer", "system")
