"""Sensitivities and sizes of layers: against assembled models, on small networks of every kind."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantize_worker.contract import Recipe
from quantize_worker.formats import FORMATS
from quantize_worker.planning.losses import INDEX, KINDS, Disturbance, Losses
from quantize_worker.steps import candidates, fitting, interaction, statistics, storage
from quantize_worker.steps.assemble import assemble
from quantize_worker.steps.costs import worker_speed
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.interaction import Trial
from quantize_worker.steps.layer_analysis import LayerAnalysis, analyse_layers
from quantize_worker.steps.layer_errors import MatrixErrors, channels_restored
from quantize_worker.steps.layers import Layer, layers_of
from quantize_worker.steps.probing import Probe, flips, loss_of, run_outputs
from quantize_worker.steps.samples import SampleSet
from quantize_worker.steps.sensitivity import Weighed, guess

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
WIDTH, CLASSES = 64, 5
MEMORY = 256 << 20


def scaled(draw: np.random.Generator, *shape: int) -> np.ndarray:
    return (draw.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def encoder() -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], list[onnx.ValueInfoProto], str]:
    """Tokens, self-attention, two matrices with a bias and a table behind Slice, and a mean."""
    draw = np.random.default_rng(0)
    weights = {
        "table": draw.standard_normal((300, WIDTH)).astype(np.float32),
        "places": scaled(draw, 64, WIDTH),
        "q": scaled(draw, WIDTH, WIDTH),
        "up": scaled(draw, WIDTH, 128),
        "down": scaled(draw, WIDTH, 128),  # Gemm with transB
        "bias": np.linspace(-1, 1, 128).astype(np.float32),
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "flat": np.array([-1, 128], np.int64),
        "back": np.array([-1, 12, WIDTH], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "ids"], ["tokens"]),
        node("Shape", ["ids"], ["shape"]),
        node("Gather", ["shape", "one"], ["length"]),
        node("Slice", ["places", "zero", "length", "zero"], ["placed"]),
        node("Add", ["tokens", "placed"], ["h"]),
        node("MatMul", ["h", "q"], ["query"]),
        node("Transpose", ["h"], ["keys"], perm=[0, 2, 1]),
        node("MatMul", ["query", "keys"], ["scores"]),
        node("Softmax", ["scores"], ["chances"], axis=-1),
        node("MatMul", ["chances", "h"], ["mixed"]),
        node("MatMul", ["mixed", "up"], ["wide"]),
        node("Add", ["wide", "bias"], ["biased"]),
        node("Tanh", ["biased"], ["bent"]),
        node("Reshape", ["bent", "flat"], ["rows"]),
        node("Gemm", ["rows", "down"], ["narrow"], transB=1),
        node("Reshape", ["narrow", "back"], ["again"]),
        node("ReduceMean", ["again"], ["y"], axes=[1], keepdims=0),
    ]
    return nodes, weights, [helper.make_tensor_value_info("ids", INT64, ["n", 12])], "y"


def pictures() -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], list[onnx.ValueInfoProto], str]:
    draw = np.random.default_rng(1)
    weights = {
        "k": scaled(draw, 16, 3, 3, 3),
        "c": np.linspace(-1, 1, 16).astype(np.float32),
        "w": scaled(draw, 16, CLASSES * 8),
        "b": np.ones(CLASSES * 8, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "k", "c"], ["a"], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"]),
    ]
    return nodes, weights, [helper.make_tensor_value_info("x", FLOAT, ["n", 3, 9, 9])], "y"


def series(operator: str, gates: int) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], list, str]:
    draw = np.random.default_rng(2)
    weights = {
        "w": scaled(draw, 1, gates * 32, 16),
        "r": scaled(draw, 1, gates * 32, 32),
        "first": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node(operator, ["t", "w", "r"], ["all", "last"], hidden_size=32),
        helper.make_node("Squeeze", ["last", "first"], ["y"]),
    ]
    return nodes, weights, [helper.make_tensor_value_info("x", FLOAT, ["n", 7, 16])], "y"


def save(parts: tuple, folder: Path) -> Path:
    nodes, weights, inputs, output = parts
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    outputs = [helper.make_tensor_value_info(output, FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def sentences(count: int, seed: int = 3) -> SampleSet:
    return SampleSet({"ids": np.random.default_rng(seed).integers(0, 300, (count, 12))}, None, 1)


def floats(count: int, *shape: int, seed: int = 4) -> SampleSet:
    draw = np.random.default_rng(seed)
    return SampleSet({"x": draw.standard_normal((count, *shape)).astype(np.float32)}, None, 1)


MODELS = {
    "encoder": (encoder(), sentences(32)),
    "pictures": (pictures(), floats(32, 3, 9, 9)),
    "lstm": (series("LSTM", 4), floats(32, 7, 16)),
    "gru": (series("GRU", 3), floats(32, 7, 16)),
}


def analysed(name: str, folder: Path, **options: object) -> tuple[Path, LayerAnalysis]:
    parts, samples = MODELS[name]
    model = save(parts, folder / "model")
    chosen: dict = {"memory_bytes": MEMORY, **options}
    return model, analyse_layers(model, Graph.read(model), samples, folder / "analysis", **chosen)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, LayerAnalysis]]:
    """Each model's folder and analysis."""
    found = {}
    for name in MODELS:
        folder = tmp_path_factory.mktemp(name)
        found[name] = folder, analysed(name, folder)[1]
    return found


def recipe(layers: dict[str, str], products: str = "") -> Recipe:
    first = next(iter(layers.values()), products)
    return Recipe(
        precision=FORMATS[first].precision,
        accelerator="cpu",
        execution_provider="CPUExecutionProvider",
        emulated=False,
        layers=layers,
        products=products,
    )


def stored_bytes(model: Path) -> int:
    return Graph.read(model).weight_bytes()


@pytest.mark.parametrize("name", MODELS)
def test_sizes_are_those_of_assembled_models(
    name: str, known: dict[str, tuple[Path, LayerAnalysis]], tmp_path: Path
) -> None:
    folder, analysis = known[name]
    model = folder / "model" / "model.onnx"
    own = stored_bytes(model)
    place = shutil.copytree(folder / "analysis", tmp_path / "analysis")  # builds leave candidates there
    checked = 0
    for facts in analysis.layers:
        for form, costs in facts.formats.items():
            if form == "fp32":
                continue
            out = tmp_path / f"{checked}"
            assemble(model, recipe({facts.name: form}), place, out)
            changed = stored_bytes(out / "model.onnx") - own + 4 * facts.parameters
            factors = 4 * (facts.shape[0] + facts.shape[-1])  # of smoothing, where there is any
            extra = factors if FORMATS[form].activation_bits < 32 else 0
            assert costs.size_bytes <= changed <= costs.size_bytes + extra, (facts.name, form)
            checked += 1
    assert checked


def test_every_layer_has_facts_for_every_format(known: dict[str, tuple[Path, LayerAnalysis]]) -> None:
    for name, (folder, analysis) in known.items():
        layers = layers_of(Graph.read(folder / "model" / "model.onnx"))
        assert [facts.name for facts in analysis.layers] == [layer.name for layer in layers], name
        for layer, facts in zip(layers, analysis.layers, strict=True):
            assert set(facts.formats) == set(layer.formats())
            assert facts.formats["fp32"].loss == 0.0
            assert facts.quantizable
            for form, costs in facts.formats.items():
                assert np.isfinite(costs.loss), (facts.name, form)
                assert costs.memory_bytes > 0
                if form != "fp32":
                    assert 0 < costs.error < 0.2, (facts.name, form)


def test_coarser_formats_lose_more(known: dict[str, tuple[Path, LayerAnalysis]]) -> None:
    facts = {layer.name: layer.formats for layer in known["encoder"][1].layers}
    for name in ("query", "wide", "narrow"):
        formats = facts[name]
        assert formats["fp16-stored"].loss < formats["int8-b32"].loss < formats["int4-b32"].loss
        assert formats["int8-qdq16"].loss <= formats["int8-qdq"].loss
        assert formats["int4-b16"].error < formats["int4-b32-sym"].error
    assert facts["tokens"]["int8-b128" if "int8-b128" in facts["tokens"] else "int4-b16"].loss > 0


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("encoder", {"query": "int4-b32", "wide": "int4-b32", "narrow": "int4-b16"}),
        ("encoder", {"tokens": "int4-b32", "wide": "int4-b16-sym"}),
        ("encoder", {"query": "int8-dynamic", "wide": "int8-dynamic", "narrow": "int8-dynamic"}),
        ("encoder", {"wide": "int8-qdq", "narrow": "int8-qdq"}),
        ("pictures", {"a": "int8-qdq", "y": "int4-b16"}),
        ("lstm", {"all": "int8-stored"}),
        ("gru", {"all": "int8-stored"}),
    ],
)
def test_single_losses_add_up_to_about_what_is_measured(
    name: str, layers: dict[str, str], known: dict[str, tuple[Path, LayerAnalysis]], tmp_path: Path
) -> None:
    folder, analysis = known[name]
    model = folder / "model" / "model.onnx"
    facts = {layer.name: layer.formats for layer in analysis.layers}
    place = shutil.copytree(folder / "analysis", tmp_path / "analysis")
    assemble(model, recipe(layers), place, tmp_path / "out")
    fresh = (
        sentences(64, 9) if name == "encoder" else floats(64, *MODELS[name][1].inputs["x"].shape[1:], seed=9)
    ).samples()
    expected = run_outputs(model, fresh, batched=True)
    measured = loss_of(expected, run_outputs(tmp_path / "out" / "model.onnx", fresh, batched=True))
    sums = np.zeros(KINDS)
    for layer, form in layers.items():
        sums[INDEX[FORMATS[form].precision]] += facts[layer][form].loss
    predicted = Losses.fitted(analysis.interaction).whole(Disturbance(sums))
    assert predicted == pytest.approx(measured, rel=0.6)


def test_candidates_are_kept_and_second_moments_are_not(known: dict[str, tuple[Path, LayerAnalysis]]) -> None:
    folder, analysis = known["encoder"]
    place = folder / "analysis"
    assert not (place / "statistics" / statistics.GRAMS).exists()
    assert statistics.load(place / "statistics")["h"].importance() is not None
    files = {path.relative_to(place).as_posix() for path in place.rglob("*.npz")}
    assert files == {*analysis.candidates, "statistics/statistics.npz"}
    facts = {layer.name: layer.formats for layer in analysis.layers}
    expected = {(n, f) for n, formats in facts.items() for f in formats if FORMATS[f].data_aware}
    assert set(analysis.candidates.values()) == expected
    assert sorted(path.name for path in (folder / "model").iterdir()) == ["model.onnx"]


def test_whole_models_say_how_losses_add_up(known: dict[str, tuple[Path, LayerAnalysis]]) -> None:
    analysis = known["encoder"][1]
    assert {"int4", "int8-dynamic", "int8-qdq", "int8-qdq16"} <= set(analysis.interaction)
    for law in analysis.interaction.values():
        assert law.points
        assert 0.05 < law.factor * law.points[0][0] ** law.power / law.points[0][1] < 20
    assert analysis.products.names == ["scores", "mixed"]
    assert analysis.products.multiplies == 2 * 12 * 12 * WIDTH
    assert set(analysis.products.loss) == {"int8-qdq", "int8-qdq16"}


def test_operators_are_timed_in_both_phases(known: dict[str, tuple[Path, LayerAnalysis]]) -> None:
    costs = known["encoder"][1].costs
    timed = {(tuple(cost.shape), cost.format, cost.rows) for cost in costs}
    assert {
        ((WIDTH, 128), "fp32", 12),
        ((WIDTH, 128), "int4-b32", 1),
        ((WIDTH, 128), "int8-dynamic", 12),
    } <= timed
    assert all(cost.latency_ms > 0 for cost in costs)
    assert {cost.operator for cost in known["pictures"][1].costs} == {"Conv", "Gemm"}


def test_the_worker_measures_itself() -> None:
    speed = worker_speed()
    assert speed.fp32_gflops > 0
    assert speed.int8_gops > 0
    assert speed.memory_gb_s > 0


def test_an_analysis_is_the_same_every_time(
    known: dict[str, tuple[Path, LayerAnalysis]], tmp_path: Path
) -> None:
    folder, first = known["encoder"]
    _, second = analysed("encoder", tmp_path)
    assert msgspec.json.encode(first.layers) == msgspec.json.encode(second.layers)
    assert msgspec.json.encode(first.interaction) == msgspec.json.encode(second.interaction)
    for path in first.candidates:
        assert (folder / "analysis" / path).read_bytes() == (tmp_path / "analysis" / path).read_bytes()


@pytest.mark.parametrize("lean", [False, True])
def test_some_layers_alone(lean: bool, tmp_path: Path) -> None:
    _, analysis = analysed("encoder", tmp_path, layers={"wide", "narrow"}, lean=lean)
    assert [layer.name for layer in analysis.layers] == ["wide", "narrow"]
    assert analysis.interaction == {}
    assert analysis.costs == []
    indexes = {path.split("/")[1][:4] for path in analysis.candidates}
    assert indexes == {"0003", "0004"}  # their places among all layers
    loss = analysis.layers[0].formats["int4-b32"].loss
    assert 0 < loss < 0.1
    assert ("int4-b16" in analysis.layers[0].formats) != lean


def test_a_model_without_layers(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    parts: tuple = (nodes, {}, [helper.make_tensor_value_info("x", FLOAT, ["n", 8])], "y")
    model = save(parts, tmp_path / "m")
    found = analyse_layers(model, Graph.read(model), floats(4, 8), tmp_path / "a", memory_bytes=MEMORY)
    assert found.layers == []
    assert found.candidates == {}


def test_labels_say_what_loss_costs(tmp_path: Path) -> None:
    parts, samples = MODELS["pictures"]
    model = save(parts, tmp_path / "m")
    outputs = np.concatenate(run_outputs(model, samples.samples(), batched=True))
    labelled = SampleSet(samples.inputs, outputs.argmax(axis=1), 1)
    found = analyse_layers(model, Graph.read(model), labelled, tmp_path / "a", memory_bytes=MEMORY)
    assert found.accuracy_loss >= 0
    measured = [
        Trial("int4", 0.01, 0.02, flips=0.1, correct=0.8),
        Trial("int4", 0.02, 0.04, flips=0.2, correct=0.6),
    ]
    assert interaction.accuracy_loss(measured, 0.9) == pytest.approx(0.4 / 0.9 / 0.06)
    assert interaction.accuracy_loss(measured, None) == 0.0
    steady = [Trial("int4", 0.01, 0.02, flips=0.1, correct=0.9)]
    assert interaction.accuracy_loss(steady, 0.9) == pytest.approx(0.05 / 0.9 / 0.02)


@pytest.mark.parametrize(("factor", "power"), [(1.0, 1.0), (2.0, 1.1), (0.5, 1.3)])
def test_a_law_is_found_again(factor: float, power: float) -> None:
    trials = [Trial("int4", s, factor * s**power, 0.0, None) for s in (0.001, 0.003, 0.01, 0.03)]
    law = interaction.fitted(trials)["int4"]
    for single, loss in law.points:
        assert law.factor * single**law.power == pytest.approx(loss, rel=0.05)


def test_one_point_scales_and_no_point_is_no_law() -> None:
    law = interaction.fitted([Trial("int8", 0.001, 0.003, 0.0, None)])["int8"]
    assert (law.power, law.factor) == (1.0, pytest.approx(3.0))
    assert interaction.fitted([]) == {}
    assert interaction.fitted([Trial("int8", 0.0, 0.003, 0.0, None)]) == {}


def layer_called(name: str, *, operator: str = "MatMul") -> Layer:
    node = helper.make_node(operator, ["x", f"{name}.w"], [name])
    return Layer(name, node, f"{name}.w", "x", (64, 64), True)


def test_layers_that_were_not_probed_are_like_their_neighbours() -> None:
    weighed = [Weighed(layer_called(str(i)), seen={"int4-b32": 0.01}) for i in range(5)]
    weighed[0].sensitivity, weighed[4].sensitivity = 0.1, 0.001
    assert guess(weighed) == 3
    found = [one.sensitivity or 0.0 for one in weighed]
    assert found == sorted(found, reverse=True)
    assert found[2] == pytest.approx(0.01)
    other = [Weighed(layer_called("a"), sensitivity=0.5), Weighed(layer_called("b", operator="Conv"))]
    assert guess(other) == 1
    assert other[1].sensitivity == pytest.approx(0.5)  # nothing is like it
    alone = [Weighed(layer_called("a"))]
    assert guess(alone) == 1
    assert alone[0].sensitivity == 1.0


def test_layers_with_one_weight_share_what_changing_it_costs(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    parts = (nodes, {"w": scaled(draw, 64, 64)}, [helper.make_tensor_value_info("x", FLOAT, ["n", 64])], "y")
    model = save(parts, tmp_path / "m")
    samples = floats(32, 64)
    found = analyse_layers(model, Graph.read(model), samples, tmp_path / "a", memory_bytes=MEMORY)
    assemble(model, recipe({"a": "int4-b32", "y": "int4-b32"}), tmp_path / "a", tmp_path / "out")
    expected = run_outputs(model, samples.samples(), batched=True)
    measured = loss_of(
        expected, run_outputs(tmp_path / "out" / "model.onnx", samples.samples(), batched=True)
    )
    predicted = sum(layer.formats["int4-b32"].loss for layer in found.layers)
    assert predicted == pytest.approx(measured, rel=0.8)


def test_a_probe_sees_what_a_changed_model_would_answer(tmp_path: Path) -> None:
    parts, samples = MODELS["encoder"]
    model = save(parts, tmp_path / "m")
    nodes, weights, inputs, output = parts
    changed = {"up": weights["up"] + np.float32(0.05)}
    other = save((nodes, {**weights, **changed}, inputs, output), tmp_path / "n")
    own = {name: weights[name] for name in ("up", "down")}
    probe = Probe(model, own, samples.samples())
    assert probe.batched
    expected = run_outputs(other, samples.samples(), batched=False)
    for left, right in zip(expected, probe.outputs(changed), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)
    assert probe.loss({}) == pytest.approx(0.0, abs=1e-9)
    assert probe.loss(changed) == pytest.approx(loss_of(probe.own, expected), rel=1e-3)


def test_a_fixed_batch_runs_sample_by_sample(tmp_path: Path) -> None:
    nodes, weights, _, output = pictures()
    model = save(
        (nodes, weights, [helper.make_tensor_value_info("x", FLOAT, [2, 3, 9, 9])], output), tmp_path
    )
    samples = SampleSet(floats(8, 3, 9, 9).inputs, None, 2).samples()
    probe = Probe(model, {"k": weights["k"]}, samples)
    assert probe.batched is False
    assert [len(one) for one in probe.own] == [2] * 4


def test_outputs_are_compared_by_direction_and_best_class() -> None:
    ones = [np.array([[1.0, 2.0]]), np.array([[3.0, 1.0]])]
    others = [np.array([[2.0, 4.0]]), np.array([[1.0, 3.0]])]
    assert loss_of(ones, others) == pytest.approx((0.0 + 0.4) / 2)
    assert flips(ones, others) == 0.5
    numbers = [np.array([[1.0]]), np.array([[2.0]])]
    assert loss_of(numbers, [np.array([[2.0]]), np.array([[1.0]])]) == pytest.approx(0.2)


def rounding_fit(columns: int, rows: int, rank: int, folder: Path) -> tuple[fitting.Fit, Layer, Graph]:
    """How a matrix is rounded whose activations live in ``rank`` directions."""
    draw = np.random.default_rng(0)
    weight = scaled(draw, columns, 96)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = save(
        (nodes, {"w": weight}, [helper.make_tensor_value_info("x", FLOAT, ["n", columns])], "y"), folder
    )
    graph = Graph.read(model)
    [layer] = layers_of(graph)
    mixing = draw.standard_normal((rank, columns))
    rows_of_x = (draw.standard_normal((rows, rank)) @ mixing).astype(np.float32)
    samples = [{"x": row[None]} for row in rows_of_x]
    found = statistics.collect(model, graph, [layer], [], samples, folder / "s", memory_bytes=MEMORY)
    return fitting.fit(layer, graph, found["x"]), layer, graph


def test_rounding_fits_samples_only_as_far_as_others_gain(tmp_path: Path) -> None:
    structured, _, _ = rounding_fit(128, 600, 16, tmp_path / "a")
    assert structured.damping is not None
    assert 1.0 <= structured.growth < 2.5
    noise, _, _ = rounding_fit(128, 24, 128, tmp_path / "b")  # too few rows of nothing in common
    assert noise == fitting.PLAIN or (noise.damping or 0.0) > candidates.DAMPING


def test_errors_are_of_the_layers_output(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    weight = scaled(draw, 64, 48)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = save(
        (nodes, {"w": weight}, [helper.make_tensor_value_info("x", FLOAT, ["n", 64])], "y"), tmp_path
    )
    graph = Graph.read(model)
    [layer] = layers_of(graph)
    rows = (draw.standard_normal((200, 64)) * np.linspace(0.1, 3, 64)).astype(np.float32)
    samples = [{"x": part} for part in np.split(rows, 20)]
    found = statistics.collect(model, graph, [layer], [], samples, tmp_path / "s", memory_bytes=MEMORY)
    errors = MatrixErrors(layer, graph, found["x"], "seen")
    restored = channels_restored(weight.T, None)
    measured = np.square(rows @ (restored.T - weight)).sum() / np.square(rows @ weight).sum()
    assert errors.of(restored) == pytest.approx(measured, rel=1e-3)


def test_a_table_of_sizes_in_memory() -> None:
    layer = layer_called("a")
    assert storage.memory_bytes(layer, "fp32") == storage.memory_bytes(layer, "fp16-stored") == 4 * 64 * 64
    assert storage.memory_bytes(layer, "int4-b32") < storage.memory_bytes(layer, "int8-b32") < 4 * 64 * 64
