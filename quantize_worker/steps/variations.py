"""More calibration data out of the samples that there are: sentences cut up and put together again.

Some dozens of sentences meet a layer with fewer rows than it has columns, and rounding that spreads
its errors (GPTQ) fits them too closely: on all-MiniLM it leaves twice the error on sentences it has
not seen. Variations keep to what the samples hold at each position, so the activations they
cause are plausible ones, and fill the directions that the samples leave empty (a quarter less
error on unseen sentences; drawing tokens from the whole vocabulary brings half of that).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize_worker.steps.samples import Sample

Array = NDArray[Any]
SEED = 20_26
NEAREST_CUT, FARTHEST_CUT = 0.25, 0.75  # of a row's length, where it is cut


def variations(samples: Sequence[Sample], *, copies: int) -> list[Sample]:
    """New samples, ``copies`` for each given one; the same every time.

    Args:
        samples: inputs by name. Anything but whole numbers, (rows, positions), all of one shape,
            has no variations.
        copies: every odd one keeps positions and shuffles rows; every even one joins the beginning
            of a row with the end of another.
    """
    if len(samples) < 2 or not _are_sequences(samples):
        return []
    names, rows = list(samples[0]), len(next(iter(samples[0].values())))
    stacked = np.stack([np.concatenate([one[name] for one in samples]) for name in names])
    generator = np.random.default_rng(SEED)
    made = []
    for copy in range(copies):
        varied = (_shuffled if copy % 2 == 0 else _joined)(stacked, generator)
        for start in range(0, varied.shape[1], rows):
            part = varied[:, start : start + rows]
            made.append({name: part[i].astype(samples[0][name].dtype) for i, name in enumerate(names)})
    return made


def _are_sequences(samples: Sequence[Sample]) -> bool:
    shapes = {values.shape for sample in samples for values in sample.values()}
    kinds = {values.dtype.kind for sample in samples for values in sample.values()}
    return len(shapes) == 1 and len(next(iter(shapes))) == 2 and kinds <= set("iub")


def _shuffled(stacked: Array, generator: np.random.Generator) -> Array:
    """Each position takes what any row has there, all inputs together. (inputs, rows, positions)."""
    rows, positions = stacked.shape[1:]
    order = np.stack([generator.permutation(rows) for _ in range(positions)], axis=1)
    shuffled: Array = stacked[:, order, np.arange(positions)]
    return shuffled


def _joined(stacked: Array, generator: np.random.Generator) -> Array:
    """Each row goes on as another one from some position on. (inputs, rows, positions)."""
    rows, positions = stacked.shape[1:]
    share = generator.uniform(NEAREST_CUT, FARTHEST_CUT, rows)
    other = generator.permutation(rows)
    cut = (_lengths(stacked) * share).astype(np.int64)
    joined: Array = np.where(np.arange(positions) >= cut[:, None], stacked[:, other], stacked)
    return joined


def _lengths(stacked: Array) -> Array:
    """Positions before the rest that is all the same: padding, if a row has any."""
    same = (stacked == stacked[..., -1:]).all(axis=0)  # (rows, positions)
    differs = ~same[:, ::-1]
    length = same.shape[1] - differs.argmax(axis=1)
    lengths: Array = np.where(differs.any(axis=1), length, same.shape[1])
    return lengths
