"""What is run of other quantizers: which script, in which environment, with which words for people."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.environments import Steps

# PyTorch comes first and by itself: as a dependency of others another build of it would be chosen.
TORCH = ("torch==2.13.0",)
ENVIRONMENTS: dict[str, Steps] = {
    "onnxruntime": (TORCH, ("onnxruntime==1.32.0", "onnx==1.23.2", "onnx-ir==1.1.0")),
    "olive": (TORCH, ("olive-ai==0.13.0", "requests==2.34.2", "onnxruntime==1.32.0", "onnx==1.23.2")),
    "aimet": (TORCH, ("aimet-onnx==2.42.0", "onnxruntime==1.32.0", "onnx==1.23.2")),
}


@dataclass(frozen=True)
class Peer:
    """One recipe of another quantizer.

    Args:
        name: of the figures.
        words: for people, with the version.
        environment: a key of :data:`ENVIRONMENTS`.
        script: in this folder.
        recipe: the script's first argument.
        timeout_s: it is ended after that long.
    """

    name: str
    words: str
    environment: str
    script: str
    recipe: str
    timeout_s: float = 600.0


def _onnxruntime(recipe: str, words: str, timeout_s: float = 600.0) -> Peer:
    return Peer(
        f"ort-{recipe}",
        f"ONNX Runtime 1.32 {words}",
        "onnxruntime",
        "onnxruntime_tools.py",
        recipe,
        timeout_s,
    )


RTN = _onnxruntime("rtn", "RTN")
RTN_SYMMETRIC = _onnxruntime("rtn-symmetric", "RTN without zero points")
RTN_2_BIT = _onnxruntime("rtn-2-bit", "RTN, 2 bits")
K_QUANT = _onnxruntime("k-quant", "k-quant")
HQQ = _onnxruntime("hqq", "HQQ")
GPTQ = _onnxruntime("gptq", '"GPTQ"', timeout_s=1800.0)
DYNAMIC = _onnxruntime("dynamic", "dynamic")
DYNAMIC_PER_CHANNEL = _onnxruntime("dynamic-per-channel", "dynamic per channel")
STATIC = _onnxruntime("static", "static, defaults")
STATIC_PER_CHANNEL = _onnxruntime("static-per-channel", "static per channel")
STATIC_MATMUL = _onnxruntime("static-matmul", "static per channel, MatMul only")
STATIC_A16W8 = _onnxruntime("static-a16w8", "static A16W8")
OLIVE = Peer("olive-rtn", "Olive 0.13 RTN4 with embedding", "olive", "olive_rtn.py", "rtn")
AIMET = Peer(
    "aimet-seqmse",
    "AIMET 2.42 SeqMSE W4A16, simulated",
    "aimet",
    "aimet_seqmse.py",
    "w4a16",
    timeout_s=3600.0,
)

BLOCKS_OF_32 = (RTN, RTN_SYMMETRIC, K_QUANT, HQQ, GPTQ)
INTEGERS = (DYNAMIC, DYNAMIC_PER_CHANNEL, STATIC, STATIC_PER_CHANNEL, STATIC_MATMUL, STATIC_A16W8)
ALL = (*BLOCKS_OF_32, *INTEGERS, OLIVE, AIMET)
