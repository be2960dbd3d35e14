"""What the model's own outputs lose when weights change: runs with some weights given as inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quantize_worker.steps.evaluate import MINIMUM_ROW, best_classes, cosine, main_output
from quantize_worker.steps.opening import open_session
from quantize_worker.steps.parity import agrees
from quantize_worker.steps.samples import Sample
from quantize_worker.steps.skeleton import read_skeleton

Array = NDArray[Any]
Floats = NDArray[np.float32]
Batches = list[tuple[Sample, int]]  # inputs, and how many samples they are
SCRATCH_FILE = ".pocketfleet-probed.onnx"
BATCH = 16  # samples of one shape that run together


class Probe:
    """Compares changed weights with the model's own, on samples.

    Args:
        model: the prepared model; a changed copy of its graph lies beside it for a while.
        weights: initializers that will be changed, with their values; views on mapped files are fine.
        samples: inputs by name.
        lean: open the model without copying its weights.
        batched: whether samples may run together along their first axis, if that gives the same;
            the attribute says whether they do.
    """

    def __init__(
        self,
        model: Path,
        weights: Mapping[str, Floats],
        samples: Sequence[Sample],
        *,
        lean: bool = False,
        batched: bool = True,
    ) -> None:
        self._weights, self._samples = dict(weights), samples
        self._session = _session(model, self._weights, lean=lean)
        single = [(sample, 1) for sample in samples]
        together = _batched(samples) if batched else single
        self.batched = self._agrees(together)
        self._batches = together if self.batched else single
        self.own = self.outputs({})

    def loss(self, changed: Mapping[str, Floats]) -> float:
        """1 - mean cosine of the main output if these weights take these values."""
        return loss_of(self.own, self.outputs(changed))

    def outputs(self, changed: Mapping[str, Floats]) -> list[Array]:
        """The main output of each sample."""
        return _outputs(self._session, self._batches, {**self._weights, **changed})

    def _agrees(self, batches: Batches) -> bool:
        """Whether a batch gives what its samples give."""
        number = max(range(len(batches)), key=lambda index: batches[index][1])
        largest = batches[number]
        if largest[1] == 1:
            return False
        place = sum(count for _, count in batches[:number])
        try:
            together = _outputs(self._session, [largest], self._weights)[0]
        except MemoryError:
            raise
        except Exception:  # ONNX Runtime's exceptions have no common base; a fixed batch is no error
            return False
        return agrees(_outputs(self._session, [(self._samples[place], 1)], self._weights)[0], together)


def run_outputs(model: Path, samples: Sequence[Sample], *, batched: bool) -> list[Array]:
    """The main output of each sample of another model with the same inputs and outputs."""
    session = open_session(model)
    return _outputs(session, _batched(samples) if batched else [(one, 1) for one in samples], {})


def loss_of(expected: Sequence[Array], found: Sequence[Array]) -> float:
    """1 - mean cosine; outputs of one number are compared as one vector."""
    if all(one.size < MINIMUM_ROW for one in expected):
        return 1.0 - cosine(
            *(np.concatenate([one.reshape(-1) for one in side]) for side in (expected, found))
        )
    return float(np.mean([1.0 - cosine(left, right) for left, right in zip(expected, found, strict=True)]))


def flips(expected: Sequence[Array], found: Sequence[Array]) -> float:
    """Share of best classes that differ."""
    pairs = zip(expected, found, strict=True)
    return float(np.mean([np.mean(best_classes(left) != best_classes(right)) for left, right in pairs]))


def _outputs(session: Any, batches: Batches, weights: Mapping[str, Floats]) -> list[Array]:
    names = [output.name for output in session.get_outputs()]
    found: list[Array] = []
    for batch, count in batches:
        outputs = dict(zip(names, session.run(None, {**batch, **weights}), strict=True))
        main = outputs[main_output([outputs])]
        found.extend(np.split(main, count) if count > 1 else [main])
    return found


def _session(model: Path, weights: Mapping[str, Floats], *, lean: bool) -> Any:
    proto = read_skeleton(model)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in weights]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    present = {value.name for value in proto.graph.input}
    for name, value in weights.items():
        if name not in present:
            proto.graph.input.append(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(value.shape))
            )
    scratch = model.with_name(SCRATCH_FILE)
    scratch.write_bytes(proto.SerializeToString())
    try:
        return open_session(scratch, lean=lean)
    finally:
        scratch.unlink()


def _batched(samples: Sequence[Sample]) -> Batches:
    """Neighbours of one shape together."""
    batches: Batches = []
    start = 0
    while start < len(samples):
        shapes, end = _shapes(samples[start]), start + 1
        while end < len(samples) and end - start < BATCH and _shapes(samples[end]) == shapes:
            end += 1
        part = samples[start:end] if all(shapes.values()) else samples[start : start + 1]
        joined = {name: np.concatenate([one[name] for one in part]) for name in part[0]}
        batches.append((joined if len(part) > 1 else part[0], len(part)))
        start += len(part)
    return batches


def _shapes(sample: Sample) -> dict[str, tuple[int, ...]]:
    return {name: values.shape for name, values in sample.items()}
