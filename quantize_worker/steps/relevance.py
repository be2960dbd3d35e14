"""Which rows of activations matter: padding that no output sees says nothing about a layer.

A batch of sentences is padded to one length and a mask tells real tokens from padding. Rows of
padding can be most of what a layer meets on calibration data; counted among the others, they draw
the rounding towards values that never reach an output. Whether an input is such a mask is not
guessed from its name: what layers read where it is 0 is disturbed, and the outputs have to stay
the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quantize_worker.steps.layers import Layer
from quantize_worker.steps.opening import open_session
from quantize_worker.steps.parity import agrees
from quantize_worker.steps.samples import Sample
from quantize_worker.steps.skeleton import read_skeleton

Array = NDArray[Any]
Rows = NDArray[np.bool_]
TRIALS = 4  # samples that a mask is tried on
SEED = 20_26
SCRATCH_FILE = ".pocketfleet-relevance.onnx"
_NOISE = "pocketfleet.noise."


def relevant_rows(
    model: Path, layers: Sequence[Layer], samples: Sequence[Sample], *, lean: bool = False
) -> list[Rows] | None:
    """The positions of every sample at which what the layers read can reach an output.

    Args:
        model: runs on the samples; a changed copy of its graph lies beside it for a while.
        layers: those whose activations are to be judged.
        samples: inputs by name.
        lean: open the model without copying its weights.

    Returns:
        For each sample a flat mask over (rows, positions); None where all of them matter, or where
        it cannot be told.
    """
    masks = [name for name in samples[0] if _could_be_mask(name, samples)] if samples else []
    read = {layer.node.output[0]: layer.activation for layer in layers if layer.is_matrix}
    if not masks or not read:
        return None
    trials = {name: [one for one in samples if not one[name].all()][:TRIALS] for name in masks}
    names = list(dict.fromkeys(read.values()))
    watching = _session(model, _watched, names, lean=lean)
    for mask, tried in trials.items():
        seen = [dict(zip(names, watching.run(names, sample), strict=True)) for sample in tried]
        positioned = [
            name for name in names if all(_fits(s[name], t[mask]) for s, t in zip(seen, tried, strict=True))
        ]
        if positioned and _hides(model, mask, read, positioned, tried, seen, lean=lean):
            return [np.asarray(sample[mask] != 0).reshape(-1) for sample in samples]
    return None


def chosen(values: Array, rows: Rows | None) -> Array:
    """An activation's rows that matter: (n, columns). All, if its leading axes are not the mask's."""
    flat: Array = values.reshape(-1, values.shape[-1] if values.ndim else 1)
    return flat[rows] if rows is not None and len(rows) == len(flat) else flat


def _could_be_mask(name: str, samples: Sequence[Sample]) -> bool:
    """Whether an input says 0 or 1 at every (row, position), never only 0, and 0 somewhere."""
    values = [sample[name] for sample in samples]
    plain = all(one.ndim == 2 and one.any() and np.isin(one, (0, 1)).all() for one in values)
    return plain and not all(one.all() for one in values)


def _fits(activation: Array, mask: Array) -> bool:
    return activation.ndim > 1 and activation.size == mask.size * activation.shape[-1]


def _hides(
    model: Path,
    mask: str,
    read: Mapping[str, str],
    names: Sequence[str],
    samples: Sequence[Sample],
    seen: Sequence[Mapping[str, Array]],
    *,
    lean: bool,
) -> bool:
    """Whether noise in the activations ``names`` where the mask is 0 changes no output."""
    changed = {output: name for output, name in read.items() if name in names}
    session = _session(model, _disturbed, changed, lean=lean)
    generator = np.random.default_rng(SEED)
    for sample, activations in zip(samples, seen, strict=True):
        hidden = np.asarray(sample[mask] == 0).reshape(-1)
        none = {_NOISE + name: np.zeros_like(activations[name]) for name in names}
        noise = {_NOISE + name: _noise(activations[name], hidden, generator) for name in names}
        pairs = zip(
            session.run(None, {**sample, **none}), session.run(None, {**sample, **noise}), strict=True
        )
        if not all(agrees(left, right) for left, right in pairs):
            return False
    return True


def _noise(values: Array, hidden: Rows, generator: np.random.Generator) -> Array:
    """As large as the activation itself in hidden rows, nothing in the others."""
    flat = np.zeros((len(hidden), values.shape[-1]), np.float32)
    size = float(np.sqrt(np.square(values, dtype=np.float64).mean()))
    flat[hidden] = generator.standard_normal((int(hidden.sum()), values.shape[-1])) * size
    return flat.reshape(values.shape)


def _watched(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Let the graph answer these tensors too."""
    present = {output.name for output in graph.output}
    graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names if n not in present)


def _disturbed(graph: onnx.GraphProto, changed: Mapping[str, str]) -> None:
    """Let layers (by first output) read their activation plus a new input."""
    names = list(dict.fromkeys(changed.values()))
    noisy = {name: f"{_NOISE}{name}.added" for name in names}
    for name in names:
        graph.input.append(onnx.helper.make_tensor_value_info(_NOISE + name, onnx.TensorProto.FLOAT, None))
    for node in graph.node:
        if node.output and node.output[0] in changed:
            node.input[0] = noisy[node.input[0]]
    nodes, waiting = list(graph.node), set(names)
    del graph.node[:]
    for name in [value.name for value in graph.input]:
        _add_noise(graph, name, noisy, waiting)
    for node in nodes:
        graph.node.append(node)
        for name in node.output:
            _add_noise(graph, name, noisy, waiting)


def _add_noise(graph: onnx.GraphProto, name: str, noisy: Mapping[str, str], waiting: set[str]) -> None:
    if name in waiting:
        waiting.discard(name)
        graph.node.append(onnx.helper.make_node("Add", [name, _NOISE + name], [noisy[name]]))


def _session(model: Path, change: Any, what: Any, *, lean: bool) -> Any:
    proto = read_skeleton(model)
    change(proto.graph, what)
    scratch = model.with_name(SCRATCH_FILE)
    scratch.write_bytes(proto.SerializeToString())
    try:
        return open_session(scratch, lean=lean)
    finally:
        scratch.unlink()
