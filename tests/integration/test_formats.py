"""Every format of every operator, assembled and run on real ONNX Runtime against FP32."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from quantize_worker.contract import Recipe
from quantize_worker.errors import BuildFailed
from quantize_worker.formats import FORMATS
from quantize_worker.steps import candidates, statistics
from quantize_worker.steps.assemble import assemble
from quantize_worker.steps.evaluate import cosine
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.layers import layers_of, products_of
from tests.integration import onnx_models

BATCH, WIDTH = 8, 128


def weight(seed: int, *shape: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def matmul() -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    return with_floats(nodes, {"w": weight(0, WIDTH, 96), "b": weight(1, 96)}, ["n", "s", WIDTH])


def gemm(*, transposed: bool) -> onnx.ModelProto:
    shape = (96, WIDTH) if transposed else (WIDTH, 96)
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=int(transposed))]
    return with_floats(nodes, {"w": weight(2, *shape), "b": weight(3, 96)}, ["n", WIDTH])


def perceptron() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["hidden"], transB=1),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["y"], transB=1),
    ]
    constants = {"w1": weight(1, 96, 64), "b1": weight(2, 96), "w2": weight(3, 32, 96), "b2": weight(4, 32)}
    return with_floats(nodes, constants, ["n", 64])


def padded() -> onnx.ModelProto:
    """A matrix whose inputs are no multiple of any block."""
    return with_floats([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight(4, 130, 40)}, ["n", 130])


def gather() -> onnx.ModelProto:
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "s"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    return onnx_models.model_of(nodes, inputs, outputs, {"table": weight(5, 400, WIDTH)})


def conv() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "k1", "b1"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "k2"], ["d"], group=2),
        helper.make_node("Flatten", ["d"], ["y"]),
    ]
    weights = {"k1": weight(6, 16, 8, 3, 3), "b1": weight(7, 16), "k2": weight(8, 32, 8, 3, 3)}
    return with_floats(nodes, weights, ["n", 8, 10, 10])


def recurrent(operator: str, *, direction: str = "forward") -> onnx.ModelProto:
    """(steps, batch, features); weights of all gates in one matrix."""
    gates, hidden = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator], 48
    sides = 2 if direction == "bidirectional" else 1
    weights = {
        "w": weight(9, sides, gates * hidden, 64),
        "r": weight(10, sides, gates * hidden, hidden),
        "b": weight(11, sides, 2 * gates * hidden),
    }
    node = helper.make_node(operator, ["x", "w", "r", "b"], ["y"], hidden_size=hidden, direction=direction)
    return with_floats([node], weights, [12, "n", 64])


def transposed_convolution() -> onnx.ModelProto:
    nodes = [helper.make_node("ConvTranspose", ["x", "k"], ["d"]), helper.make_node("Flatten", ["d"], ["y"])]
    return with_floats(nodes, {"k": weight(12, 8, 16, 3, 3)}, ["n", 8, 6, 6])


def steps_first() -> onnx.ModelProto:
    """A transpose of the first axes right before a product, as around recurrent layers."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
    ]
    return with_floats(nodes, {"w": weight(13, WIDTH, 32)}, ["n", 9, WIDTH])


def attention() -> onnx.ModelProto:
    """One head, with a norm before it that nothing else reads."""
    weights = {
        "scale": np.linspace(0.2, 6.0, WIDTH).astype(np.float32),
        "shift": np.zeros(WIDTH, np.float32),
        **{name: weight(20 + i, WIDTH, WIDTH) for i, name in enumerate("qkvo")},
    }
    weights["q"] /= np.float32(4 * np.sqrt(WIDTH))  # scores that leave a softmax something to weigh

    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["h"]),
        *(helper.make_node("MatMul", ["h", name], [f"{name}h"]) for name in "qkv"),
        helper.make_node("Transpose", ["kh"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["qh", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["chances"]),
        helper.make_node("MatMul", ["chances", "vh"], ["mixed"]),
        helper.make_node("MatMul", ["mixed", "o"], ["y"]),
    ]
    return with_floats(nodes, weights, ["n", "s", WIDTH])


def with_floats(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], shape: list[int | str]
) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    return onnx_models.model_of(nodes, inputs, outputs, weights)


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "MatMul": matmul,
    "Gemm": lambda: gemm(transposed=False),
    "Gemm, transposed": lambda: gemm(transposed=True),
    "MatMul, padded": padded,
    "Gather": gather,
    "Conv": conv,
    "LSTM": lambda: recurrent("LSTM"),
    "LSTM, both ways": lambda: recurrent("LSTM", direction="bidirectional"),
    "GRU": lambda: recurrent("GRU"),
    "RNN": lambda: recurrent("RNN"),
    "ConvTranspose": transposed_convolution,
    "steps first": steps_first,
    "attention": attention,
}
# The least cosine to FP32 that a format must keep, by bits of weights and of activations.
FLOORS = {32: 0.999999, 16: 0.99999, 8: 0.998, 4: 0.97}


class Bench:
    """A model's prepared form and analysis in a folder, and samples to run."""

    def __init__(self, folder: Path, model: onnx.ModelProto, *, ranges: bool = True) -> None:
        self.folder, self.model = folder, folder / "model" / "model.onnx"
        Graph(model).write(self.model.parent)
        self.graph = Graph.read(self.model)
        self.layers = layers_of(self.graph)
        self.samples = [self._sample(seed) for seed in range(6)]
        if ranges:
            products = products_of(self.graph)
            statistics.collect(
                self.model,
                self.graph,
                self.layers,
                products,
                self.samples[:5],
                folder / "analysis" / "statistics",
                memory_bytes=1 << 30,
                on_share=lambda share: None,
            )

    def recipe(self, name: str = "", *, products: str = "", precision: str = "") -> Recipe:
        layers = {layer.name: name for layer in self.layers if name in layer.formats() and name != "fp32"}
        return Recipe(
            precision=precision or FORMATS[name].precision,  # type: ignore[arg-type]
            accelerator="cpu",
            execution_provider="CPUExecutionProvider",
            emulated=False,
            layers=layers,
            products=products,
        )

    def build(self, recipe: Recipe, name: str = "artifact") -> Path:
        assemble(self.model, recipe, self.folder / "analysis", self.folder / name)
        return self.folder / name / "model.onnx"

    def cosine(self, artifact: Path) -> float:
        """To FP32, on a sample that calibration has not seen."""
        return cosine(self._run(self.model), self._run(artifact))

    def fused(self, artifact: Path) -> Counter[str]:
        """Operators of the graph that really runs."""
        seen = self.folder / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(seen)
        onnxruntime.InferenceSession(str(artifact), options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(seen, load_external_data=False).graph.node)

    def _run(self, model: Path) -> np.ndarray:
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        return session.run(None, self.samples[-1])[0]

    def _sample(self, seed: int) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(seed)
        value = self.graph.model.graph.input[0]
        dims = [
            d.dim_value or (BATCH if d.dim_param == "n" else 10) for d in value.type.tensor_type.shape.dim
        ]
        if value.name == "ids":
            return {"ids": generator.integers(0, 400, dims)}
        values = generator.standard_normal(dims).astype(np.float32)
        values[..., 3] *= 12.0  # a column that stretches the range of all
        return {value.name: values}


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bench]:
    made: dict[str, Bench] = {}

    def bench(name: str) -> Bench:
        if name not in made:
            made[name] = Bench(tmp_path_factory.mktemp("bench"), MODELS[name]())
        return made[name]

    return bench


CASES = [
    (name, form)
    for name, make in MODELS.items()
    for form in sorted({form for layer in layers_of(Graph(make())) for form in layer.formats()} - {"fp32"})
]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_a_format_keeps_the_outputs(benches: Callable[[str], Bench], name: str, form: str) -> None:
    bench = benches(name)
    artifact = bench.build(bench.recipe(form), form)
    assert bench.cosine(artifact) >= (
        0.997 if "LSTM" in name and "dynamic" in form else FLOORS[FORMATS[form].bits]
    )
    assert stored(artifact) < stored(bench.model)


def stored(model: Path) -> int:
    return sum(path.stat().st_size for path in model.parent.iterdir())


@pytest.mark.parametrize("name", MODELS)
def test_fp32_is_the_model_itself(benches: Callable[[str], Bench], name: str) -> None:
    bench = benches(name)
    artifact = bench.build(bench.recipe(precision="fp32"), "fp32")
    assert bench.cosine(artifact) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_fp16_halves_the_whole_model(benches: Callable[[str], Bench], name: str) -> None:
    bench = benches(name)
    artifact = bench.build(bench.recipe(precision="fp16"), "fp16")
    assert bench.cosine(artifact) >= 0.99999
    assert stored(artifact) < 0.6 * stored(bench.model) + 2048


@pytest.mark.parametrize(
    ("name", "form", "operator"),
    [
        ("MatMul", "int4-b32", "MatMulNBits"),
        ("MatMul", "int8-b128", "MatMulNBits"),
        ("MatMul", "int8-dynamic", "DynamicQuantizeMatMul"),
        ("MatMul", "int8-qdq", "MatMulIntegerToFloat"),
        ("Gemm", "int8-qdq", "QGemm"),
        ("Gemm, transposed", "int8-qdq", "QGemm"),
        ("Gather", "int4-b16", "GatherBlockQuantized"),
        ("Gather", "int8-b128", "GatherBlockQuantized"),
        ("LSTM", "int8-dynamic", "DynamicQuantizeLSTM"),
    ],
)
def test_the_runtime_has_a_kernel_for_it(
    benches: Callable[[str], Bench], name: str, form: str, operator: str
) -> None:
    """One node is left of it: scales are folded, pairs fused, and biases but for a static MatMul's."""
    bench = benches(name)
    found = bench.fused(bench.build(bench.recipe(form), form))
    assert found[operator] == 1
    assert not set(found) - {operator, "QuantizeLinear", "Mul", *(["Add"] if form == "int8-qdq" else [])}
    assert found["Mul"] <= 1  # smoothing, where it pays


def test_a_gemm_before_a_relu_stays_in_integers(tmp_path: Path) -> None:
    """ONNX Runtime would fuse the two in floating point and restore the weight at every run."""
    bench = Bench(tmp_path, perceptron())
    artifact = bench.build(bench.recipe("int8-qdq"))
    found = bench.fused(artifact)
    assert found["QGemm"] == 2
    assert not found["FusedGemm"] + found["Gemm"]
    assert bench.cosine(artifact) >= 0.998


@pytest.mark.parametrize(("form", "limit"), [("int8-qdq", 0.998), ("int8-qdq16", 0.9995)])
def test_every_multiplication_of_attention_is_static(
    benches: Callable[[str], Bench], form: str, limit: float
) -> None:
    bench = benches("attention")
    artifact = bench.build(bench.recipe(form, products=form), f"{form}-products")
    assert bench.cosine(artifact) >= limit
    found = bench.fused(artifact)
    if form == "int8-qdq":
        assert found["MatMulIntegerToFloat"] + found["QLinearMatMul"] == 6
        assert not {"MatMul", "FusedMatMul"} & set(found)
    kinds = {node.op_type for node in onnx.load(artifact, load_external_data=False).graph.node}
    assert "Mul" in kinds or "LayerNormalization" in kinds


def test_a_norms_own_scale_takes_the_factors(benches: Callable[[str], Bench]) -> None:
    """Only the projections read the norm: no node is added to smooth its output."""
    bench = benches("attention")
    artifact = onnx.load(bench.build(bench.recipe("int8-dynamic"), "folded"), load_external_data=False)
    norm = next(node for node in artifact.graph.node if node.op_type == "LayerNormalization")
    assert norm.input[1] != "scale"
    readers = [node.op_type for node in artifact.graph.node if "h" in node.input]
    assert readers == ["DynamicQuantizeMatMul"] * 3


def test_stored_weights_are_gone_when_it_runs(benches: Callable[[str], Bench]) -> None:
    """The loaded model is FP32's: as fast, and as large in memory."""
    bench = benches("MatMul")
    for form in ("fp16-stored",):
        assert bench.fused(bench.build(bench.recipe(form), form)) == bench.fused(bench.model)
    gru = benches("GRU")
    assert gru.fused(gru.build(gru.recipe("int8-stored"), "stored")) == gru.fused(gru.model)


def test_layers_that_share_a_weight_share_what_is_made_of_it(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    bench = Bench(tmp_path, with_floats(nodes, {"w": weight(30, WIDTH, WIDTH)}, ["n", WIDTH]))
    for form in ("int4-b32", "int8-dynamic", "int8-qdq", "fp16-stored"):
        artifact = bench.build(bench.recipe(form), form)
        data = (artifact.parent / "model.data").stat().st_size
        assert data < 1.25 * WIDTH * WIDTH * FORMATS[form].bits / 8, form
        assert bench.cosine(artifact) > 0.95


def test_a_kept_candidate_is_what_is_built(tmp_path: Path) -> None:
    bench = Bench(tmp_path, matmul())
    recipe = bench.recipe("int8-b32")
    bench.build(recipe, "made")
    path = candidates.path_of(tmp_path / "analysis", 0, "int8-b32")
    assert path.exists()  # the next build finds it
    kept = candidates.read(path)
    zero = candidates.Blocks(
        np.full_like(kept.values, 128),
        kept.scale_codes,
        kept.row_scales,
        kept.zero_points,
        kept.bits,
        kept.block,
        kept.shape,
    )
    candidates.write(path, zero)
    artifact = bench.build(recipe, "zeroed")
    found = bench._run(artifact)
    bias = bench.graph.constant("b")
    assert bias is not None
    assert np.allclose(found, bias, atol=1e-5)  # a product of zeros, and the bias


def test_a_range_that_was_not_seen_is_said(tmp_path: Path) -> None:
    bench = Bench(tmp_path, matmul(), ranges=False)
    with pytest.raises(BuildFailed, match="no range for 'x'") as failure:
        bench.build(bench.recipe("int8-qdq"))
    assert failure.value.code == "missing_ranges"
    assert bench.cosine(bench.build(bench.recipe("int8-dynamic"), "dynamic")) > 0.999  # needs none


def test_an_old_recipe_names_a_precision_only(benches: Callable[[str], Bench]) -> None:
    bench = benches("MatMul")
    old = Recipe(
        precision="int4",
        accelerator="cpu",
        execution_provider="CPUExecutionProvider",
        emulated=False,
        block_size=32,
    )
    new = bench.recipe("int4-b32")
    assert bench.build(old, "old").read_bytes() == bench.build(new, "new").read_bytes()


BUILD = """
import sys
from pathlib import Path
import msgspec
from quantize_worker.contract import Recipe
from quantize_worker.steps.assemble import assemble
folder = Path(sys.argv[1])
recipe = msgspec.json.decode(sys.argv[2].encode(), type=Recipe)
assemble(folder / "model" / "model.onnx", recipe, folder / "analysis", folder / sys.argv[3])
"""


@pytest.mark.parametrize("form", ["int4-b32", "int8-b32", "int8-dynamic", "int8-qdq", "fp16-stored"])
def test_equal_bytes_whatever_else_runs(tmp_path: Path, form: str) -> None:
    """Five runs, with one and two threads, two at once, each with its own order of hashes."""
    import msgspec

    bench = Bench(tmp_path, attention())
    recipe = msgspec.json.encode(
        bench.recipe(form, products="int8-qdq" if form == "int8-qdq" else "")
    ).decode()

    def started(run: int, threads: int) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "PYTHONHASHSEED": str(run),
            "OMP_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": str(threads),
        }
        return subprocess.Popen(
            [sys.executable, "-c", BUILD, str(tmp_path), recipe, f"run{run}"], env=environment
        )

    for runs in ((0, 1), (2, 3), (4,)):
        processes = [started(run, 1 + run % 2) for run in runs]
        assert all(process.wait() == 0 for process in processes)
    digests = {
        tuple(hashlib.sha256((tmp_path / f"run{run}" / name).read_bytes()).hexdigest() for name in ARTIFACT)
        for run in range(5)
    }
    assert len(digests) == 1


ARTIFACT = ("model.onnx", "model.data")
