"""Runs of a model that also answer tensors from inside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from quantize_worker.steps.opening import open_session
from quantize_worker.steps.samples import Sample
from quantize_worker.steps.skeleton import read_skeleton

Array = NDArray[Any]
SCRATCH_FILE = ".pocketfleet-watched.onnx"
ASKED_AT_ONCE = 64  # tensors answered by one run whatever their sizes


def groups_of(
    model: Path, names: Sequence[str], sample: Sample, *, memory_bytes: int, lean: bool
) -> list[list[str]]:
    """Tensors in groups whose values in one run fit in memory together, by their sizes in a sample.

    Args:
        model: a changed copy of its graph lies beside it for a while.
        names: tensors to answer; inputs of the model are allowed, and stand in the first group.
        sample: inputs by name.
        memory_bytes: for the values of one run.
        lean: open the model without copying its weights.
    """
    given = [name for name in names if name in sample]
    inner = [name for name in names if name not in sample]
    groups: list[list[str]] = [[]]
    size = 0
    for start in range(0, len(inner), ASKED_AT_ONCE):
        part = inner[start : start + ASKED_AT_ONCE]
        if len(inner) <= ASKED_AT_ONCE:
            groups[-1].extend(part)
            break
        answers = watching_session(model, part, lean=lean).run(part, sample)
        for name, values in zip(part, answers, strict=True):
            if groups[-1] and size + values.nbytes > memory_bytes:
                groups.append([])
                size = 0
            groups[-1].append(name)
            size += values.nbytes
    return [given + groups[0], *groups[1:]]


def watched(
    model: Path, group: Sequence[str], samples: Iterable[Sample], *, lean: bool
) -> Iterator[dict[str, Array]]:
    """The tensors of a group, and inputs among them, in every sample."""
    session: Any = None
    for sample in samples:
        inner = [name for name in group if name not in sample]
        if inner and session is None:
            session = watching_session(model, inner, lean=lean)
        answers = session.run(inner, sample) if inner else []
        yield {**dict(zip(inner, answers, strict=True)), **{n: sample[n] for n in group if n in sample}}


def watching_session(model: Path, names: Sequence[str], *, lean: bool) -> Any:
    """A session that answers these tensors beside the model's outputs."""
    proto = read_skeleton(model)
    present = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in present
    )
    scratch = model.with_name(SCRATCH_FILE)
    scratch.write_bytes(proto.SerializeToString())
    try:
        return open_session(scratch, lean=lean)
    finally:
        scratch.unlink()
