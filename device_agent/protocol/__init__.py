"""The wire format between a device agent and the control plane.

This package is the only part of the agent that servers import. It holds message types, the
artifact manifest and the exact bytes that are signed; it does no I/O.

Compatibility: every request and every response carries the header ``Pocketfleet-Protocol``.
Two sides work together when their versions differ by at most one; unknown fields are ignored and
new fields are optional, so version N talks to N-1 in both directions. Beyond that the server
answers 426 with the code ``protocol_unsupported``.
"""

from device_agent.protocol.version import (
    PROTOCOL_HEADER,
    PROTOCOL_VERSION,
    compatible,
)

__all__ = ["PROTOCOL_HEADER", "PROTOCOL_VERSION", "compatible"]
