"""Everything the agent can refuse or fail with, as one tree.

::

    AgentError                   code            exit code
    ├── ConfigError              config          2
    ├── AgentRunning             agent_running   7
    ├── TransportError           transport       3
    │   ├── ServerUnreachable    unreachable     3   no answer, or a server that is starting
    │   ├── DownloadTooSlow      too_slow        3   under the minimum rate, or past the deadline
    │   ├── ResponseTooLarge     too_large       3
    │   ├── ProtocolUnsupported  protocol_unsupported 4
    │   └── Refused              (the server's)  4   a problem+json answer, with its HTTP status
    ├── TrustError               trust           5
    │   ├── UntrustedMetadata    untrusted_metadata
    │   └── UntrustedAssignment  untrusted_assignment
    ├── InstallError             (a FailureCode) 6
    └── InferenceError           (see below)     -   each with the HTTP status of the local API

The exit codes are those that ``pocketfleet-agent --help`` documents.
"""

from __future__ import annotations

from device_agent.protocol.messages import FailureCode, SelfTest


class AgentError(Exception):
    """Base of the tree. ``code`` is stable; the message says what to do next."""

    code = "agent"
    exit_code = 1


class ConfigError(AgentError):
    """The configuration is missing something or contradicts itself."""

    code = "config"
    exit_code = 2


class AgentRunning(AgentError):
    """Another agent already works in this state folder."""

    code = "agent_running"
    exit_code = 7


class TransportError(AgentError):
    """The control plane could not be talked to."""

    code = "transport"
    exit_code = 3


class ServerUnreachable(TransportError):
    """No connection, no answer in time, or a 5xx: worth trying again later."""

    code = "unreachable"


class DownloadTooSlow(TransportError):
    """A download fell under the minimum rate (TUF specification, section 1.5.2: slow retrieval)."""

    code = "too_slow"


class ResponseTooLarge(TransportError):
    """A response is longer than this call allows (endless data)."""

    code = "too_large"


class ProtocolUnsupported(TransportError):
    """Server and agent are more than one protocol version apart."""

    code = "protocol_unsupported"
    exit_code = 4


class Refused(TransportError):
    """The server said no: its problem document, with the HTTP status."""

    exit_code = 4

    def __init__(self, *, code: str, status: int, detail: str) -> None:
        super().__init__(f"{detail} ({code}, HTTP {status})")
        self.code = code
        self.status = status


class TrustError(AgentError):
    """Something signed does not hold."""

    code = "trust"
    exit_code = 5
    failure: FailureCode = "untrusted_metadata"


class UntrustedMetadata(TrustError):
    """TUF metadata or a target failed to verify, expired, or went back in time."""

    code = "untrusted_metadata"


class UntrustedAssignment(TrustError):
    """The assignment is not for this device, not signed, outdated, or disagrees with TUF."""

    code = "untrusted_assignment"
    failure: FailureCode = "untrusted_assignment"


class InstallError(AgentError):
    """An installation failed. ``failure`` is what the report says, ``self_test`` its evidence."""

    exit_code = 6

    def __init__(self, failure: FailureCode, message: str, *, self_test: SelfTest | None = None) -> None:
        super().__init__(message)
        self.failure: FailureCode = failure
        self.code = failure
        self.self_test = self_test


class InferenceError(AgentError):
    """A request of the local API is wrong or cannot be served; ``status`` is its HTTP status."""

    def __init__(self, message: str, *, status: int = 400, code: str = "invalid_request") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
