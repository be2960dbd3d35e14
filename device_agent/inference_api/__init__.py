"""The local API of the device: Open Inference Protocol v2 over HTTP on loopback."""

from device_agent.inference_api.application import build_application
from device_agent.inference_api.server import InferenceServer, bind

__all__ = ["InferenceServer", "bind", "build_application"]
