"""Builds that are broken on purpose do not pass the gate, in any order of samples; good ones always do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from quantize_worker.steps import candidates, statistics
from quantize_worker.steps.candidates import Blocks
from quantize_worker.steps.evaluate import quality
from quantize_worker.steps.gate import Gate
from quantize_worker.steps.measure import CPU_PROVIDER, Runner, measure
from quantize_worker.steps.samples import SampleSet
from quantize_worker.steps.weights import pack_nibbles
from tests.integration.test_formats import WIDTH, Bench, weight, with_floats

SAMPLES, SEEDS = 128, 50
Outputs = list[dict[str, np.ndarray]]


def network() -> onnx.ModelProto:
    """Three layers with residuals and the mean over positions."""
    weights, nodes, last = {"axes": np.array([1], np.int64)}, [], "x"
    for index in range(3):
        weights[f"w{index}"] = weight(index, WIDTH, WIDTH)
        nodes += [
            helper.make_node("MatMul", [last, f"w{index}"], [f"p{index}"]),
            helper.make_node("Tanh", [f"p{index}"], [f"t{index}"]),
            helper.make_node("Add", [last, f"t{index}"], [f"h{index}"]),
        ]
        last = f"h{index}"
    weights["head"] = weight(7, WIDTH, 64)
    nodes += [
        helper.make_node("MatMul", [last, "head"], ["z"]),
        helper.make_node("ReduceMean", ["z"], ["y"], axes=[1], keepdims=0),
    ]
    return with_floats(nodes, weights, ["n", 12, WIDTH])


class Forge:
    """Makes good and bad builds of one model and runs each once over the gate samples."""

    def __init__(self, folder: Path, runner: Runner) -> None:
        self.bench, self._runner = Bench(folder, network()), runner
        generator = np.random.default_rng(9)
        values = generator.standard_normal((SAMPLES, 12, WIDTH)).astype(np.float32)
        self._samples = SampleSet({"x": values}, None, rows=1)
        self.reference = self.outputs(self.bench.model)

    def outputs(self, model: Path) -> Outputs:
        found = measure(
            model,
            self._samples,
            self.bench.folder / "m",
            provider=CPU_PROVIDER,
            golden=1,
            runner=self._runner,
        )
        return found.outputs

    def good(self, form: str) -> Outputs:
        self._forget()
        return self.outputs(self.bench.build(self.bench.recipe(form), f"good-{form}"))

    def static(self, *, zeroed: bool) -> Outputs:
        """Ranges far too narrow, as those of samples that say nothing about the others."""
        folder = self.bench.folder / "analysis" / "statistics"
        kept = statistics.load(folder)
        narrow = {
            name: replace(seen, low=seen.low / 64, high=seen.high / 64, column_low=None, column_high=None)
            for name, seen in kept.items()
        }
        statistics.save(folder, narrow)
        try:
            artifact = self.bench.build(self.bench.recipe("int8-qdq"), "bad-static")
        finally:
            statistics.save(folder, kept)
        return self.outputs(_with_zeros(artifact) if zeroed else artifact)

    def spoilt(self, kind: str) -> Outputs:
        """A build in blocks, from candidates that were tampered with."""
        self._forget()
        recipe = self.bench.recipe("int4-b32")
        self.bench.build(recipe, "clean")
        for index in range(len(self.bench.layers)) if kind == "two bits" else (1,):
            path = candidates.path_of(self.bench.folder / "analysis", index, "int4-b32")
            candidates.write(path, SPOIL[kind](candidates.read(path)))
        return self.outputs(self.bench.build(recipe, f"bad-{kind.replace(' ', '-')}"))

    def _forget(self) -> None:
        for path in (self.bench.folder / "analysis" / candidates.FOLDER).glob("*"):
            path.unlink()


def two_bits(blocks: Blocks) -> Blocks:
    """What rounding to two bits leaves: every value is one of four."""
    coarse = (blocks.integers() // 4) * 4 + 2
    return replace(blocks, values=pack_nibbles(coarse.astype(np.uint8)))


def zeroed(blocks: Blocks) -> Blocks:
    zeros = np.broadcast_to(blocks.zeros()[..., None], blocks.integers().shape)
    return replace(blocks, values=pack_nibbles(np.ascontiguousarray(zeros)))


def swapped_scales(blocks: Blocks) -> Blocks:
    """Scales of other rows, and of other blocks."""
    return replace(
        blocks,
        scale_codes=np.ascontiguousarray(np.roll(blocks.scale_codes, 1, axis=1)[::-1]),
        row_scales=np.ascontiguousarray(blocks.row_scales[::-1] * np.float32(4.0)),
    )


SPOIL = {"two bits": two_bits, "zeroed layer": zeroed, "swapped scales": swapped_scales}


def _with_zeros(artifact: Path) -> Path:
    """The same build with a weight of zeros."""
    model = onnx.load(artifact)
    tensor = next(one for one in model.graph.initializer if one.name.startswith("w1.int8"))
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tuple(tensor.dims), np.int8), tensor.name))
    path = artifact.with_name("zeroed.onnx")
    onnx.save(model, path)
    return path


def in_bf16(outputs: Outputs) -> Outputs:
    """As a provider that computes in bfloat16 would answer: 8 bits of mantissa."""
    rounded = []
    for sample in outputs:
        bits = sample["y"].view(np.uint32)
        rounded.append({"y": ((bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32)})
    return rounded


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    with Runner() as runner:
        yield Forge(tmp_path_factory.mktemp("forge"), runner)


def values(forge: Forge, outputs: Outputs, floor: float) -> list[float]:
    """The gate's verdict for each of 50 orders of the samples."""
    found = []
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(SAMPLES)
        gate = Gate([forge.reference[i] for i in order], None, [floor])
        for index in order:
            if gate.add(outputs[index]):
                break
        found.append(gate.report().value)
    return found


@pytest.mark.parametrize(
    "form", ["int4-b32", "int8-b32", "int8-dynamic", "int8-qdq", "int8-qdq16", "fp16-stored"]
)
def test_no_good_build_is_rejected(forge: Forge, form: str) -> None:
    outputs = forge.good(form)
    loss = 1.0 - quality(forge.reference, outputs, None).cosine
    assert loss < 0.02
    for floor in (1.0 - 1.2 * loss, 1.0 - 2.0 * loss, 0.9):
        assert min(values(forge, outputs, floor)) >= floor


@pytest.mark.parametrize("kind", SPOIL)
def test_spoilt_weights_are_rejected(forge: Forge, kind: str) -> None:
    assert max(values(forge, forge.spoilt(kind), 0.98)) < 0.98


def test_zeros_behind_narrow_ranges_are_rejected(forge: Forge) -> None:
    for empty in (False, True):
        assert max(values(forge, forge.static(zeroed=empty), 0.98)) < 0.98


def test_a_provider_that_rounds_more_than_the_floor_allows_is_rejected(forge: Forge) -> None:
    outputs = in_bf16(forge.reference)
    loss = 1.0 - quality(forge.reference, outputs, None).cosine
    assert 0 < loss < 1e-4
    floor = 1.0 - loss / 2
    assert max(values(forge, outputs, floor)) < floor
    assert min(values(forge, outputs, 1.0 - 2 * loss)) >= 1.0 - 2 * loss
