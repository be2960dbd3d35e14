"""Statistics of activations: against NumPy on small models, and that padding does not count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantize_worker.steps import activation, statistics
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.histogram import Histogram
from quantize_worker.steps.layers import layers_of, products_of
from quantize_worker.steps.moments import Moments, paths, read, spans
from quantize_worker.steps.samples import Sample
from quantize_worker.steps.shortening import Shortener
from quantize_worker.steps.statistics import Activation, collect, load
from quantize_worker.steps.variations import variations
from quantize_worker.steps.watching import groups_of, watched

WIDTH = 32
MEMORY = 64 << 20


def save(
    folder: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], output: str, **kind: list
) -> Path:
    """A model whose inputs are given as name=[type, shape]."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *value) for name, value in kind.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def masked_encoder(folder: Path, *, length: int | str = "seq") -> Path:
    """Rows of a table, mixed, and their mean over the tokens that the mask allows."""
    draw = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {
        "table": draw.standard_normal((200, WIDTH)).astype(np.float32),
        "w": draw.standard_normal((WIDTH, WIDTH)).astype(np.float32),
        "one": np.array([1], np.int64),
        "last": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["tokens"]),
        helper.make_node("MatMul", ["tokens", "w"], ["mixed"]),
        helper.make_node("Cast", ["mask"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["real", "last"], ["shares"]),
        helper.make_node("Mul", ["mixed", "shares"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["mean"], keepdims=0),
    ]
    kind = [TensorProto.INT64, ["n", length]]
    return save(folder, nodes, weights, "mean", ids=kind, mask=kind)


def sentences(count: int, length: int = 12) -> list[Sample]:
    """Token ids from 1 on, and behind a sentence's end 0 where the mask is 0."""
    draw = np.random.default_rng(1)
    made = []
    for _ in range(count):
        end = int(draw.integers(3, length))
        ids = np.where(np.arange(length) < end, draw.integers(1, 200, length), 0)[None]
        made.append({"ids": ids.astype(np.int64), "mask": (ids > 0).astype(np.int64)})
    return made


def collected(model: Path, samples: list[Sample], folder: Path, **options: object) -> dict[str, Activation]:
    graph = Graph.read(model)
    chosen = {"memory_bytes": MEMORY, **options}
    return collect(model, graph, layers_of(graph), products_of(graph), samples, folder, **chosen)  # type: ignore[arg-type]


def table_rows(model: Path, samples: list[Sample]) -> list[np.ndarray]:
    """What the layer meets in each sample, padding left out."""
    table = Graph.read(model).constant("table")
    assert table is not None
    return [table[sample["ids"][sample["mask"] > 0]] for sample in samples]


def test_ranges_and_squares_leave_padding_out(tmp_path: Path) -> None:
    model, samples = masked_encoder(tmp_path / "m"), sentences(8)
    found = collected(model, samples, tmp_path / "s")["tokens"]
    rows = table_rows(model, samples)
    everything = np.concatenate(rows)
    assert found.low == pytest.approx(everything.min())
    assert found.high == pytest.approx(everything.max())
    np.testing.assert_allclose(np.asarray(found.column_low), everything.min(axis=0))
    np.testing.assert_allclose(np.asarray(found.column_high), everything.max(axis=0))
    # every sample counts the same, however long
    np.testing.assert_allclose(
        np.asarray(found.squares), np.mean([np.square(r).mean(axis=0) for r in rows], axis=0), rtol=1e-5
    )
    assert found.rows == 12
    assert found.relevant == len(everything)
    assert found.shape == (1, 12, WIDTH)


def test_moments_are_of_all_samples_and_of_variations(tmp_path: Path) -> None:
    model, samples = masked_encoder(tmp_path / "m"), sentences(24)
    found = collected(model, samples, tmp_path / "s")["tokens"]
    per_sample = [rows.T @ rows / len(rows) for rows in table_rows(model, samples)]
    seen = found.moments("seen")
    assert seen is not None
    np.testing.assert_allclose(seen[0], np.mean(per_sample, axis=0), rtol=1e-3, atol=1e-3)
    rest = found.moments(activation.REST)
    assert rest is not None
    np.testing.assert_allclose(rest[0], np.mean(per_sample[5::6], axis=0), rtol=1e-3, atol=1e-3)
    fit = found.gram()
    assert fit is not None
    assert not np.allclose(fit, seen[0], rtol=1e-2)
    np.testing.assert_allclose(np.trace(fit), np.trace(seen[0]), rtol=0.2)  # the same scale


def test_few_samples_are_not_divided(tmp_path: Path) -> None:
    found = collected(masked_encoder(tmp_path / "m"), sentences(4), tmp_path / "s")["tokens"]
    assert found.moments(activation.REST) is None
    assert found.moments() is not None


def test_second_moments_and_variations_are_optional(tmp_path: Path) -> None:
    model = masked_encoder(tmp_path / "m")
    plain = collected(model, sentences(16), tmp_path / "plain", correlated=False)["tokens"]
    assert plain.moments() is None
    assert plain.importance() is not None
    lean = collected(model, sentences(16), tmp_path / "lean", lean=True)["tokens"]
    assert activation.VARIED not in lean.shares
    assert lean.moments() is not None


def test_what_is_left_in_the_folder_comes_back(tmp_path: Path) -> None:
    found = collected(masked_encoder(tmp_path / "m"), sentences(16), tmp_path / "s")
    again = load(tmp_path / "s")
    assert list(again) == list(found)
    one, other = found["tokens"], again["tokens"]
    assert (one.low, one.high, one.run_span, one.rows) == (other.low, other.high, other.run_span, other.rows)
    np.testing.assert_array_equal(one.column_high, other.column_high)
    np.testing.assert_array_equal(one.gram(), other.gram())
    assert one.best_range(256) == pytest.approx(other.best_range(256))


def test_without_second_moments_the_rest_is_still_there(tmp_path: Path) -> None:
    collected(masked_encoder(tmp_path / "m"), sentences(16), tmp_path / "s")
    for path in (tmp_path / "s" / statistics.GRAMS).iterdir():
        path.unlink()
    found = load(tmp_path / "s")["tokens"]
    assert found.gram() is None
    assert found.importance() is not None
    assert load(tmp_path / "nowhere") == {}


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    model = masked_encoder(tmp_path / "m")
    for name, memory in (("a", MEMORY), ("b", 1 << 10)):
        collected(model, sentences(16), tmp_path / name, memory_bytes=memory)
    for path in sorted((tmp_path / "a").rglob("*.np*")):
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes(), path.name


def test_inputs_of_products_have_ranges(tmp_path: Path) -> None:
    kind = [TensorProto.FLOAT, ["n", 4, 8]]
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["scores"]),
        helper.make_node("MatMul", ["scores", "x"], ["y"]),
    ]
    model = save(tmp_path / "m", nodes, {}, "y", x=kind)
    samples = [
        {"x": np.random.default_rng(i).standard_normal((1, 4, 8)).astype(np.float32)} for i in range(3)
    ]
    found = collected(model, samples, tmp_path / "s")
    assert set(found) == {"x", "t", "scores"}
    assert found["x"].high == pytest.approx(max(sample["x"].max() for sample in samples))
    spans_of_runs = [max(0, s["x"].max()) - min(0, s["x"].min()) for s in samples]
    assert found["x"].run_span == pytest.approx(np.sqrt(np.mean(np.square(spans_of_runs))))
    assert found["scores"].shape == (1, 4, 4)


def test_channels_of_pictures_are_columns(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((16, 3, 5, 5)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "k"], ["y"])]
    model = save(tmp_path / "m", nodes, {"k": weight}, "y", x=[TensorProto.FLOAT, ["n", 3, 9, 9]])
    samples = [
        {"x": np.random.default_rng(i).standard_normal((1, 3, 9, 9)).astype(np.float32)} for i in range(5)
    ]
    found = collected(model, samples, tmp_path / "s")["x"]
    pictures = np.concatenate([sample["x"] for sample in samples])
    np.testing.assert_allclose(np.asarray(found.column_high), pictures.max(axis=(0, 2, 3)))
    np.testing.assert_allclose(np.asarray(found.squares), np.square(pictures).mean(axis=(0, 2, 3)), rtol=1e-5)
    assert found.rows == 81


def test_tensors_are_asked_for_in_groups_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantize_worker.steps.watching.ASKED_AT_ONCE", 2)
    model, samples = masked_encoder(tmp_path), sentences(2)
    names = ["tokens", "mixed", "kept", "ids"]
    size = 12 * WIDTH * 4
    groups = groups_of(model, names, samples[0], memory_bytes=2 * size, lean=False)
    assert groups == [["ids", "tokens", "mixed"], ["kept"]]
    for group in groups:
        for sample, values in zip(samples, watched(model, group, samples, lean=False), strict=True):
            assert set(values) == set(group)
            assert values.get("ids", sample["ids"]) is sample["ids"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


@pytest.mark.parametrize("held", [1, 7, 64])
def test_sums_do_not_depend_on_how_rows_come(held: int, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((50, 20)).astype(np.float32)
    total = Moments(tmp_path / "x", 20, held)
    for part in np.array_split(rows, 9):
        total.add(part, 0.5)
    total.close()
    found = read(tmp_path / "x", 20)
    assert found is not None
    np.testing.assert_allclose(found[0], 0.5 * rows.T @ rows, rtol=1e-4, atol=1e-4)
    paths(tmp_path / "x", 20)[0].unlink()
    assert read(tmp_path / "x", 20) is None


def test_wide_moments_are_cut_where_blocks_of_weights_are() -> None:
    assert [span.stop - span.start for span in spans(2048)] == [2048]
    cut = spans(5000)
    assert cut[0].start == 0
    assert cut[-1].stop == 5000
    assert all(span.start % 128 == 0 for span in cut)
    assert max(span.stop - span.start for span in cut) <= 2048


def test_an_outlier_does_not_widen_the_best_range() -> None:
    values = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    values[0] = 100.0
    seen = Histogram()
    seen.add(values)
    low, high = seen.best_range(float(values.min()), 100.0, 16)
    assert -5 < low < -1
    assert high < 50
    assert seen.best_range(float(values.min()), 100.0, 1 << 16) == pytest.approx(
        (values.min(), 100.0), rel=0.1
    )


def test_a_histogram_grows_without_losing_counts() -> None:
    seen, draw = Histogram(), np.random.default_rng(0)
    for scale in (0.01, 3.0, 0.1, 500.0):
        seen.add((draw.standard_normal(1000) * scale).astype(np.float32))
    assert seen.counts.sum() == 4000
    assert seen.best_range(0.0, 0.0, 256) == (0.0, 0.0)
    middle = len(seen.counts) // 2
    assert abs(seen.counts[:middle].sum() - 2000) < 150  # zero is still an edge


def test_variations_keep_to_what_positions_hold() -> None:
    samples = sentences(20)
    made = variations(samples, copies=4)
    assert len(made) == 80
    held = [{int(s["ids"][0, p]) for s in samples} for p in range(12)]
    for sample in made:
        assert sample["ids"].shape == (1, 12)
        assert sample["ids"].dtype == np.int64
        assert all(int(sample["ids"][0, p]) in held[p] for p in range(12))
        np.testing.assert_array_equal(sample["mask"] > 0, sample["ids"] > 0)  # inputs move together
    assert any(not any(np.array_equal(m["ids"], s["ids"]) for s in samples) for m in made)
    for one, other in zip(made, variations(samples, copies=4), strict=True):
        np.testing.assert_array_equal(one["ids"], other["ids"])


@pytest.mark.parametrize(
    "samples",
    [
        [],
        sentences(1),
        [{"x": np.zeros((1, 4), np.float32)}] * 4,
        [{"x": np.zeros((1, 4), np.int64)}, {"x": np.zeros((1, 5), np.int64)}],
        [{"x": np.zeros((1, 4, 2), np.int64)}] * 4,
    ],
)
def test_other_samples_have_no_variations(samples: list[Sample]) -> None:
    assert variations(samples, copies=2) == []


@pytest.mark.parametrize(("length", "expected"), [("seq", 8), (12, 12)])
def test_padding_is_cut_off_only_where_the_model_takes_any_length(
    length: int | str, expected: int, tmp_path: Path
) -> None:
    model = masked_encoder(tmp_path, length=length)
    sample = {name: values.copy() for name, values in sentences(1)[0].items()}
    sample["mask"][:] = np.arange(12) < 6
    shortener = Shortener(model, Graph.read(model).model.graph, lean=False)
    found, masks = shortener.shortened([sample], [sample["mask"].reshape(-1) > 0])
    assert found[0]["ids"].shape == (1, expected)
    assert masks is not None
    assert masks[0].sum() == 6
    assert len(masks[0]) == expected


def test_a_model_that_does_not_run_on_shorter_samples_gets_whole_ones(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["ids"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),  # fits twelve positions only
    ]
    weights = {"w": np.ones((12, 32), np.float32)}
    model = save(tmp_path, nodes, weights, "y", ids=[TensorProto.INT64, ["n", "seq"]])
    sample = {"ids": np.ones((1, 12), np.int64)}
    shortener = Shortener(model, Graph.read(model).model.graph, lean=False)
    found, _ = shortener.shortened([sample], [np.arange(12) < 4])
    assert found[0]["ids"].shape == (1, 12)
