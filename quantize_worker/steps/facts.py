"""What is said of a model or a build beside what is measured: tools' versions, outputs that are no numbers."""

from __future__ import annotations

from importlib.metadata import version as package_version

from quantize_worker.errors import ModelRefused
from quantize_worker.steps.samples import SampleSet

_TOOLS = ("onnx", "onnxruntime", "numpy")


def tool_versions() -> dict[str, str]:
    """Versions of what an artifact's bytes depend on."""
    return {name: package_version(name) for name in _TOOLS}


def non_finite_outputs(samples: SampleSet) -> ModelRefused:
    """FP32 itself makes NaN or infinity of the samples: there is nothing to compare builds with."""
    if samples.synthetic:
        text = "generated inputs; upload an evaluation set with real ones, or correct the model."
    else:
        text = "the evaluation set; leave those samples out, or correct the model."
    return ModelRefused("non_finite_outputs", f"The FP32 model's outputs are NaN or infinite on {text}")
