"""Samples for a model that came without any: generated inputs that it really runs on."""

from __future__ import annotations

from collections.abc import Iterator

import onnxruntime

from quantize_worker.steps.axes import has_past, sizes
from quantize_worker.steps.graph import Graph
from quantize_worker.steps.inputs import index_bounds, length_inputs
from quantize_worker.steps.opening import Specs
from quantize_worker.steps.samples import SYNTHETIC_LENGTH, SampleSet, synthetic_set

LENGTHS = (SYNTHETIC_LENGTH, 32, 64, 224, 1, 128, 512)  # of open dimensions, in the order they are tried


def fitting_set(graph: Graph, specs: Specs, session: onnxruntime.InferenceSession) -> SampleSet:
    """The first generated set on whose first sample the model runs, else just the first.

    A graph rarely says what its open dimensions may be: a convolutional network needs some pixels,
    and a decoder's mask is as long as past and present together. So sizes are tried.
    """
    bounds, lengths = index_bounds(graph, specs), length_inputs(graph, specs)
    tried: list[SampleSet] = []
    for length, past in _attempts(specs):
        made = synthetic_set(specs, bounds=bounds, lengths=lengths, length=length, past=past)
        if _runs(session, made):
            return made
        tried.append(made)
    return tried[0]


def _attempts(specs: Specs) -> Iterator[tuple[int, int]]:
    """Pairs of length and past, without those that give the same sizes as an earlier one."""
    seen = set()
    for length in LENGTHS:
        for past in (length, 0) if has_past(specs) else (length,):
            made = tuple(sorted(sizes(specs, length, past).items()))
            if made not in seen:
                seen.add(made)
                yield length, past


def _runs(session: onnxruntime.InferenceSession, samples: SampleSet) -> bool:
    try:
        session.run(None, samples.sample(0))
    except MemoryError:
        raise
    except Exception:  # any refusal means "other sizes"
        return False
    return True
