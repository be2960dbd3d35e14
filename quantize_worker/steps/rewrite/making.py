"""Blocks of a weight for which no candidate was kept, made from the weight in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from quantize_worker.formats import Format
from quantize_worker.steps.candidates import Blocks, make
from quantize_worker.steps.layers import Layer
from quantize_worker.steps.rewrite.scratch import Array, parts
from quantize_worker.steps.rewrite.workplace import Workplace
from quantize_worker.steps.statistics import Activation

FIELDS = ("values", "scale_codes", "row_scales", "zero_points")


def made_blocks(place: Workplace, layer: Layer, form: Format, activation: Activation | None) -> Blocks:
    """Round the layer's weight.

    Rows are rounded apart, so blocks of rows give what the whole gives. Error feedback prepares a matrix
    as large as the columns' square for every call: then the weight is rounded whole.
    """
    matrix = layer.matrix(place.graph)
    known = None if layer.is_table else activation
    feedback = form.data_aware and known is not None
    sections = [slice(0, len(matrix))] if feedback else list(parts(matrix))
    return joined(
        place, len(matrix), sections, lambda part: make(np.ascontiguousarray(matrix[part]), form, known)
    )


def joined(
    place: Workplace, rows: int, sections: list[slice], make_part: Callable[[slice], Blocks]
) -> Blocks:
    """One weight's blocks from those of its sections of rows, kept in the scratch file."""
    whole: dict[str, Array] = {}
    last: Blocks | None = None
    for part in sections:
        last = make_part(part)
        for name, values in _fields(last).items():
            if name not in whole:
                whole[name] = place.scratch.empty((rows, *values.shape[1:]), values.dtype)
            whole[name][part] = values
    assert last is not None
    return replace(last, shape=(rows, last.shape[1]), **whole)  # type: ignore[arg-type]


def kept(place: Workplace, blocks: Blocks) -> Blocks:
    """The same blocks, out of memory until the graph is written."""
    fields = {name: place.scratch.keep(values) for name, values in _fields(blocks).items()}
    return replace(blocks, **fields)  # type: ignore[arg-type]


def _fields(blocks: Blocks) -> dict[str, Array]:
    """Its arrays, those that there are."""
    found = {name: getattr(blocks, name) for name in FIELDS}
    return {name: values for name, values in found.items() if values is not None}
