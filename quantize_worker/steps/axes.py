"""What the axes of a model's inputs mean, as far as their names tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from quantize_worker.contract import TensorSpec

_BATCH = "batch"


def rows_per_run(specs: Sequence[TensorSpec]) -> int:
    """Rows of axis 0 that one run takes: what the model fixes, else 1; 0 if axis 0 is not for samples.

    It is not where an input is a scalar, where inputs fix different first axes, or where the batch
    is another axis (a recurrent state's, or all axes of a model that takes time first). Samples of
    such a model have arrays of their own.
    """
    batch = _batch_symbol(specs)
    fixed = {spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], int)}
    elsewhere = any(batch in spec.shape[1:] and spec.shape[0] != batch for spec in specs if spec.shape)
    scalar = any(not spec.shape for spec in specs)
    if scalar or elsewhere or len(fixed) > 1 or 0 in fixed:
        return 0
    return int(next(iter(fixed), 1))


def sizes(specs: Iterable[TensorSpec], length: int, past: int) -> dict[str, int]:
    """A size for every symbolic dimension.

    Args:
        length: of anything that is not said to be something else.
        past: of what a decoder has seen before; its total length is the sum.
    """
    symbols = {dim for spec in specs for dim in spec.shape if isinstance(dim, str)}
    simple = {name: _simple_size(name, length, past) for name in symbols if name.isidentifier()}
    return {name: simple.get(name) or _expression(name, simple, length) for name in symbols} | simple


def has_past(specs: Iterable[TensorSpec]) -> bool:
    """Whether a decoder's earlier keys and values are among the inputs."""
    return any("past" in str(dim).lower() for spec in specs for dim in spec.shape)


def _simple_size(name: str, length: int, past: int) -> int:
    lower = name.lower()
    if _BATCH in lower:
        return 1
    if "total" in lower:
        return past + length
    return past if "past" in lower else length


def _expression(name: str, known: Mapping[str, int], length: int) -> int:
    """The size of a sum such as ``past_sequence_length + 1``; exporters write no other."""
    parts = [part.strip() for part in name.split("+")]
    if not all(part.isdecimal() or part.isidentifier() for part in parts):
        return length
    return sum(
        int(part) if part.isdecimal() else known.get(part, _simple_size(part, length, length))
        for part in parts
    )


def _batch_symbol(specs: Sequence[TensorSpec]) -> str:
    """The symbol of the samples' axis: one that is called so, else the first input's first symbol."""
    symbols = [dim for spec in specs for dim in spec.shape if isinstance(dim, str)]
    leading = [spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], str)]
    named = [name for name in symbols if _BATCH in name.lower()]
    return str(next(iter(named or leading), ""))
