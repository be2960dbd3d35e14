"""Make the two graphs of the agent's micro-benchmark: ``python -m demo.make_microbench``.

They are checked in (a few hundred bytes each), because the agent does not carry the onnx package.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

FOLDER = Path(__file__).resolve().parent.parent / "device_agent" / "runtime" / "microbench"


def gemm(operator: str, left: int, right: int, result: int) -> onnx.ModelProto:
    """``c = operator(a, b)`` on matrices of any size, (m, k) by (k, n)."""
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["c"])],
        "gemm",
        [
            helper.make_tensor_value_info("a", left, ["m", "k"]),
            helper.make_tensor_value_info("b", right, ["k", "n"]),
        ],
        [helper.make_tensor_value_info("c", result, ["m", "n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def main() -> None:
    onnx.save(
        gemm("MatMul", TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT), FOLDER / "gemm_fp32.onnx"
    )
    onnx.save(
        gemm("MatMulInteger", TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32),
        FOLDER / "gemm_int8.onnx",
    )


if __name__ == "__main__":
    main()
