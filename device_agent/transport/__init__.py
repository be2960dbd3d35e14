"""Talking to the control plane: HTTP with limits, the device API, and the device's key."""

from device_agent.transport.backoff import Backoff, jittered
from device_agent.transport.credentials import DeviceKey
from device_agent.transport.device_api import DeviceApi
from device_agent.transport.http import HttpClient, Response

__all__ = ["Backoff", "DeviceApi", "DeviceKey", "HttpClient", "Response", "jittered"]
