"""Sessions on a class's execution provider, and which provider really got the nodes.

Falling back is silent in ONNX Runtime: a session lists a provider that runs none of its nodes.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

CPU_PROVIDER = "CPUExecutionProvider"
# Plugins that register themselves with a library; each package has get_library_path().
PLUGINS = {
    "OpenVINOExecutionProvider": "onnxruntime_ep_openvino",
    "WebGpuExecutionProvider": "onnxruntime_ep_webgpu",
    "QNNExecutionProvider": "onnxruntime_qnn",
}
PLUGIN_OPTIONS = {"OpenVINOExecutionProvider": {"num_of_threads": "1"}}
_RECORD = "session.record_ep_graph_assignment_info"


def open_session(runtime: Any, model: Path, provider: str, *, lean: bool = False) -> Any:
    """A session with one thread on the provider, or on the CPU's if it is not there.

    Args:
        runtime: the module ``onnxruntime``.
        model: an ONNX file with its external data beside it.
        provider: the name ONNX Runtime knows it by.
        lean: run on weights as they are mapped: nothing is folded, fused or packed. Slower; for models
            too large to be copied.
    """
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry(_RECORD, "1")
    if lean:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")
    devices = _plugin_devices(runtime, provider)
    if devices:
        options.add_provider_for_devices(devices[:1], PLUGIN_OPTIONS.get(provider, {}))
        return runtime.InferenceSession(str(model), options)
    built_in = [provider] if provider in runtime.get_available_providers() else []
    wanted = list(dict.fromkeys([*built_in, CPU_PROVIDER]))
    return runtime.InferenceSession(str(model), options, providers=wanted)


def assigned(session: Any) -> dict[str, int]:
    """How many nodes each provider got, most first."""
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts.most_common()) or {session.get_providers()[0]: 0}


def _plugin_devices(runtime: Any, provider: str) -> list[Any]:
    """Devices of an installed plugin provider; none if it is not installed or does not load."""
    package = PLUGINS.get(provider)
    if package is None or importlib.util.find_spec(package) is None:
        return []
    try:
        library = importlib.import_module(package).get_library_path()
        runtime.register_execution_provider_library(provider, library)
    except Exception:  # whatever keeps it from loading: the CPU's provider stands in, and is named
        return []
    return [device for device in runtime.get_ep_devices() if device.ep_name == provider]
