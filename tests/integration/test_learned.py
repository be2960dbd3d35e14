"""Learned rounding: pieces of a model compute what the whole does, and what is learned is closer to FP32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from quantize_worker.contract import Recipe
from quantize_worker.formats import FORMATS
from quantize_worker.steps import candidates, evaluate
from quantize_worker.steps.course import Course, Run, Subject
from quantize_worker.steps.fragments import Fragments
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.layers import Layer, layers_of
from quantize_worker.steps.learned import MINIMUM_SAMPLES, Learned, learn
from quantize_worker.steps.opening import open_session
from quantize_worker.steps.regression import learned, unlearned, view_of
from quantize_worker.steps.relevance import chosen, relevant_rows
from quantize_worker.steps.samples import Sample
from tests.integration.job_folders import artifact, build, features, inspect, uniform, upload
from tests.integration.onnx_models import FEATURES, FLOAT, INT64, classifier, model_of

WIDTH, DEPTH = 96, 5
FORM = FORMATS["int4-b32-sym"]


def deep(*, zero: bool = False) -> onnx.ModelProto:
    """Gemms with bias, one after the other: errors of early layers go through all later ones, and add up."""
    generator = np.random.default_rng(11)
    weights: dict[str, np.ndarray] = {}
    nodes, last = [], "x"
    for index in range(DEPTH):
        values = generator.standard_normal((WIDTH, WIDTH)) * 1.4 / np.sqrt(WIDTH)
        weights[f"w{index}"] = (values * (not zero)).astype(np.float32)
        weights[f"b{index}"] = (generator.standard_normal(WIDTH) * 0.1).astype(np.float32)
        nodes += [
            helper.make_node("Gemm", [last, f"w{index}", f"b{index}"], [f"h{index}"], transB=index % 2),
            helper.make_node("Tanh", [f"h{index}"], [f"t{index}"]),
        ]
        last = f"t{index}"
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["n", WIDTH])]
    outputs = [helper.make_tensor_value_info(last, FLOAT, ["n", WIDTH])]
    return model_of(nodes, inputs, outputs, weights)


def correlated(count: int, seed: int) -> list[Sample]:
    """Samples of eight rows that fill few directions, as real ones do."""
    mixing = np.random.default_rng(2).standard_normal((WIDTH // 4, WIDTH))
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((count, 8, WIDTH // 4)) @ mixing
    noise = 0.3 * generator.standard_normal((count, 8, WIDTH))
    return [{"x": each} for each in ((rows + noise) / 4).astype(np.float32)]


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def matrices(model: Path) -> tuple[Graph, list[Layer]]:
    graph = Graph.read(model)
    return graph, [layer for layer in layers_of(graph) if layer.is_matrix]


def subjects(model: Path, samples: list[Sample]) -> list[Subject]:
    """Every matrix, rounded to fit its inputs in FP32."""
    graph, layers = matrices(model)
    session = watching(model, [layer.activation for layer in layers])
    found = []
    for layer in layers:
        rows = [session.run([layer.activation], sample)[0] for sample in samples]
        weight = np.ascontiguousarray(layer.matrix(graph))
        blocks = unlearned(weight, FORM, [(each, each) for each in rows])
        found.append(Subject(layer, FORM, blocks))
    return found


def watching(model: Path, names: list[str]) -> Any:
    proto = onnx.load(model)
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name != "x")
    proto.graph.output.append(helper.make_tensor_value_info("x", FLOAT, ["n", WIDTH]))
    return open_session(saved(model.parent / "watching", proto))


def losses(
    model: Path, chosen_blocks: list[dict[str, candidates.Blocks]], samples: list[Sample]
) -> list[float]:
    """1 - cosine of the main output to FP32's, with each choice of blocks."""
    whole = open_session(model)
    expected = [whole.run(None, sample)[0] for sample in samples]
    found = []
    for index, blocks in enumerate(chosen_blocks):
        proto = onnx.load(model)
        for layer in matrices(model)[1]:
            stored = next(each for each in proto.graph.initializer if each.name == layer.weight)
            weight = blocks[layer.name].dequantized()
            value = weight if layer.transposed else np.ascontiguousarray(weight.T)
            stored.CopyFrom(onnx.numpy_helper.from_array(value, layer.weight))
        session = open_session(saved(model.parent / f"rounded{index}", proto))
        found.append(
            float(
                np.mean(
                    [
                        1 - evaluate.cosine(e, session.run(None, s)[0])
                        for e, s in zip(expected, samples, strict=True)
                    ]
                )
            )
        )
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Subject], Learned]:
    """A deep model, and what is learned for it."""
    model = saved(tmp_path_factory.mktemp("deep"), deep())
    samples = correlated(48, seed=3)
    start = subjects(model, samples)
    return model, start, learn(model, model, start, samples)


def test_a_deep_model_comes_much_closer_on_samples_that_it_has_not_seen(
    found: tuple[Path, list[Subject], Learned],
) -> None:
    model, start, outcome = found
    before = {subject.layer.name: subject.start for subject in start}
    first, second = losses(model, [before, before | outcome.blocks], correlated(64, seed=99))
    assert second < 0.75 * first
    assert outcome.after < outcome.before
    assert outcome.blocks.keys() == {each.name for each in outcome.layers if each.better}


def test_it_keeps_formats_and_sizes(found: tuple[Path, list[Subject], Learned]) -> None:
    _, start, outcome = found
    assert outcome.blocks
    for subject in start:
        blocks = outcome.blocks.get(subject.layer.name, subject.start)
        assert (blocks.bits, blocks.block, blocks.shape) == (4, 32, subject.start.shape)
        assert blocks.size_bytes == subject.start.size_bytes


def test_the_same_input_gives_the_same_blocks(found: tuple[Path, list[Subject], Learned]) -> None:
    model, start, outcome = found
    again = learn(model, model, start, correlated(48, seed=3))
    for name, blocks in outcome.blocks.items():
        np.testing.assert_array_equal(again.blocks[name].values, blocks.values)
        np.testing.assert_array_equal(again.blocks[name].scale_codes, blocks.scale_codes)


def test_shares_rise_to_one(found: tuple[Path, list[Subject], Learned]) -> None:
    model, start, _ = found
    shares: list[float] = []
    learn(model, model, start, correlated(24, seed=3), on_share=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


def test_what_is_exact_already_is_left_alone(tmp_path: Path) -> None:
    model = saved(tmp_path, deep(zero=True))
    samples = correlated(24, seed=3)
    outcome = learn(model, model, subjects(model, samples), samples)
    assert outcome.blocks == {}
    assert outcome.before == outcome.after == pytest.approx(0.0, abs=1e-12)


def test_too_few_samples_are_refused(found: tuple[Path, list[Subject], Learned]) -> None:
    model, start, _ = found
    with pytest.raises(ValueError, match="too few"):
        learn(model, model, start, correlated(MINIMUM_SAMPLES - 1, seed=3))


def test_inputs_that_are_all_zero_cannot_be_learned_from() -> None:
    zeros = np.zeros((8, 32), np.float32)
    assert view_of([(zeros, zeros)]) is None


def test_a_layer_makes_up_for_what_its_input_has_lost() -> None:
    generator = np.random.default_rng(5)
    weight = generator.standard_normal((24, 64)).astype(np.float32)
    pairs = []
    for _ in range(30):
        exact = generator.standard_normal((16, 64)).astype(np.float32)
        pairs.append((exact, exact * np.float32(0.8)))  # a wrong factor, which a weight can undo
    view = view_of(pairs)
    assert view is not None
    errors = [
        np.square(pairs[0][1] @ blocks.dequantized().T - pairs[0][0] @ weight.T).sum()
        for blocks in (unlearned(weight, FORM, pairs), learned(weight, FORM, view))
    ]
    assert errors[1] < 0.5 * errors[0]


def test_models_run_in_pieces_answer_what_the_whole_does(tmp_path: Path) -> None:
    model = saved(tmp_path, deep())
    graph = Graph.read(model)
    samples = correlated(2, seed=8)
    start = subjects(model, samples)
    course = Course(model, model, start, [Run(sample, None, True) for sample in samples], lean=False)
    for group in course.groups:
        fit, held = course.advance(group)
        assert (len(fit), len(held)) == (0, 2)
        for subject in group.subjects:
            exact = np.ascontiguousarray(subject.layer.matrix(graph))
            course.multiply(group, subject, exact, subject.start.dequantized())
    before, after = course.judged()
    assert before > 1e-5
    assert after == pytest.approx(0.0, abs=1e-9)


def test_pieces_carry_what_control_flow_reads_from_outside(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Add", ["h", "early"], ["inside"])],
        "then",
        [],
        [helper.make_tensor_value_info("inside", FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["outside"])],
        "else",
        [],
        [helper.make_tensor_value_info("outside", FLOAT, None)],
    )
    nodes = [
        helper.make_node("Neg", ["x"], ["early"]),
        helper.make_node("Tanh", ["x"], ["cut"]),
        helper.make_node("MatMul", ["cut", "w"], ["h"]),
        helper.make_node("ReduceMax", ["h"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=branch, else_branch=other),
    ]
    weights = {"w": np.eye(FEATURES, dtype=np.float32) * 2, "zero": np.float32(0)}
    inputs = [helper.make_tensor_value_info("x", FLOAT, ["n", FEATURES])]
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["n", FEATURES])]
    model = saved(tmp_path, model_of(nodes, inputs, outputs, weights))
    sample = {"x": features(3)}
    pieces = Fragments(model, ["h"], ["cut"], lean=False)
    live = pieces.run(0, sample)
    live["h"] = live["cut"] @ weights["w"]
    found = pieces.run(1, live)
    np.testing.assert_allclose(found["y"], open_session(model).run(None, sample)[0], rtol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


# Which rows matter


def masked(*, hides: bool) -> onnx.ModelProto:
    """Embeddings times a matrix, averaged over the tokens that the mask names, or over all."""
    generator = np.random.default_rng(4)
    weights = {
        "table": generator.standard_normal((50, 32)).astype(np.float32),
        "w": generator.standard_normal((32, 32)).astype(np.float32),
        "axis": np.array([2], np.int64),
        "tokens": np.array([1], np.int64),
    }
    kept = "weighed" if hides else "h"
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["h"]),
        helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "axis"], ["m3"]),
        helper.make_node("Mul", ["h", "m3"], ["weighed"]),
        helper.make_node("ReduceSum", [kept, "tokens"], ["y"], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info(name, INT64, ["n", "t"]) for name in ("ids", "mask")]
    outputs = [helper.make_tensor_value_info("y", FLOAT, ["n", 32])]
    return model_of(nodes, inputs, outputs, weights)


@pytest.mark.parametrize("hides", [True, False])
def test_rows_behind_a_mask_count_only_if_an_output_sees_them(tmp_path: Path, hides: bool) -> None:
    model = saved(tmp_path, masked(hides=hides))
    generator = np.random.default_rng(6)
    samples = []
    for length in (3, 7, 10):
        mask = (np.arange(10) < length).astype(np.int64)[None]
        samples.append({"ids": generator.integers(0, 50, (1, 10)), "mask": mask})
    rows = relevant_rows(model, matrices(model)[1], samples)
    if not hides:
        assert rows is None
        return
    assert rows is not None
    assert [int(each.sum()) for each in rows] == [3, 7, 10]
    assert chosen(np.ones((1, 10, 4)), rows[0]).shape == (3, 4)
    assert chosen(np.ones((1, 5, 4)), rows[0]).shape == (5, 4)  # no row per position: all count


# In a build


def with_learning(recipe: Recipe) -> Recipe:
    return msgspec.structs.replace(recipe, learned=True)


def test_a_build_with_learned_rounding(tmp_path: Path) -> None:
    folder = upload(tmp_path / "job", classifier())
    np.savez(folder / "evaluation.npz", x=features(96))
    np.savez(folder / "calibration.npz", x=features(64, seed=6))
    facts = inspect(folder).facts
    plain = uniform(facts, "int4")
    done = build(folder, plain, with_learning(plain))
    assert [each.code for each in done.outcome.builds] == ["", ""]
    qualities = [each.quality.cosine for each in done.outcome.builds if each.quality]
    assert qualities[1] > 0.99 * qualities[0]
    assert "learn" in done.names
    sizes = [(artifact(folder, index) / "model.data").stat().st_size for index in (0, 1)]
    assert sizes[0] == sizes[1]


def test_made_up_samples_teach_nothing(tmp_path: Path) -> None:
    folder = upload(tmp_path / "job", classifier())
    plain = uniform(inspect(folder).facts, "int4")
    assert [each.code for each in build(folder, plain, with_learning(plain)).outcome.builds] == ["", ""]
    contents = [(artifact(folder, index) / "model.data").read_bytes() for index in (0, 1)]
    assert contents[0] == contents[1]
