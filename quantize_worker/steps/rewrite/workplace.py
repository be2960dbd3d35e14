"""What every rewriter needs at hand: the graph, a scratch file, and constants that were made already."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from quantize_worker.steps.graph import Graph, nodes_in, subgraphs_of
from quantize_worker.steps.layers import Layer
from quantize_worker.steps.rewrite.scratch import Scratch


class Workplace:
    """A graph being rewritten.

    Args:
        graph: still as the source has it.
        scratch: where large constants wait.
        shared: weights of more than one layer, which then share what is made of them.
    """

    def __init__(self, graph: Graph, scratch: Scratch, shared: frozenset[str] = frozenset()) -> None:
        self.graph, self.scratch, self.shared = graph, scratch, shared
        self._made: dict[tuple[str, ...], list[str]] = {}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._producers = {name: node for node in graph.nodes for name in node.output}
        for node in graph.nodes:
            inner = (name for below in nodes_in(*subgraphs_of(node)) for name in below.input)
            for name in dict.fromkeys((*node.input, *inner)):
                self._readers.setdefault(name, []).append(node)

    def once(self, key: tuple[str, ...], make: Callable[[], list[str]]) -> list[str]:
        """Names of the constants made under this key, by the first who asks."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        """Nodes of the source's top level that read a tensor, themselves or in a subgraph."""
        return self._readers.get(tensor, [])

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """The source's node that makes a tensor; None for inputs and constants."""
        return self._producers.get(tensor)

    def is_output(self, tensor: str) -> bool:
        return any(output.name == tensor for output in self.graph.model.graph.output)

    def split_bias(self, layer: Layer) -> tuple[str, str, list[onnx.NodeProto]]:
        """What a Gemm adds, as kernels for rounded matrices take it: one constant number an output.

        ONNX Runtime's fusion also makes a Gemm of a product and any other tensor, such as a residual:
        that needs a node of its own.

        Returns:
            the bias or "", the name of the product's output, and the node that follows if there is one.
        """
        bias, output = bias_of(layer), str(layer.node.output[0])
        value = self.graph.constant(bias) if bias else None
        if not bias or (value is not None and value.shape == (layer.outputs,)):
            return bias, output, []
        product = self.graph.fresh_name(f"{output}.product")
        return "", product, [self.graph.node("Add", [product, bias], [output])]


def bias_of(layer: Layer) -> str:
    """The third input of a Gemm or Conv; empty if there is none."""
    inputs = layer.node.input
    return str(inputs[2]) if len(inputs) > 2 else ""
