"""Messages of the device API, ``/api/device/v1/``. All JSON, decoded strictly by msgspec.

Telemetry is a schema of allow-listed numbers and enumerations: there is no field that could
carry an input, an output, a tensor or free text.

| call | method | request → response |
|---|---|---|
| ``nonce`` | POST | - → :class:`NonceResponse` |
| ``enroll`` | POST | :class:`EnrollRequest` → :class:`EnrollResponse` |
| ``token`` | POST | :class:`TokenRequest` → :class:`TokenResponse` |
| ``capabilities`` | PUT | :class:`CapabilityReport` → 204 |
| ``desired`` | GET | ``If-None-Match`` → :class:`Desired` or 304 |
| ``assignment`` | GET | → signed envelope around :class:`Assignment` |
| ``reports`` | POST | :class:`Report` → :class:`ReportAck` |
| ``metadata/<name>`` | GET | → TUF metadata of the device's tenant |
| ``targets/<sha256>.<name>`` | GET | → TUF target (a manifest, a key list) |
| ``blobs/<sha256>`` | GET | → a stored (compressed) chunk |

All but ``nonce``, ``enroll`` and ``token`` need ``Authorization: Bearer <token>``.
Errors are RFC 9457 ``application/problem+json`` with a stable ``code``: :class:`Problem`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

# Patterns end in \Z: Python's $ would let a line feed through behind the last character.
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Identifier = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f-]{36}\Z")]  # a UUID
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}\Z")]
Provider = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_]{1,64}\Z")]  # a name of ONNX Runtime's: no text
Token = Annotated[str, msgspec.Meta(max_length=512)]
Label = Annotated[str, msgspec.Meta(max_length=100)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Millis = Annotated[float, msgspec.Meta(ge=0, le=1e9)]

DeviceState = Literal["pending", "accepted", "rejected", "decommissioned"]
AcceleratorKind = Literal["cpu", "gpu", "npu"]
InstallState = Literal[
    "offered",
    "downloading",
    "verifying",
    "staged",
    "testing",
    "active",
    "failed",
    "rolled_back",
    "expired",
]
WaitingReason = Literal["charging", "wifi", "storage", "thermal", "quota", "network", "server"]
FailureCode = Literal[
    "download_failed",
    "digest_mismatch",
    "untrusted_metadata",
    "untrusted_assignment",
    "insufficient_storage",
    "insufficient_memory",
    "runtime_too_old",
    "session_failed",
    "provider_fallback",
    "output_mismatch",
    "internal",
]


class NonceResponse(msgspec.Struct, kw_only=True):
    """A single-use nonce. ``server`` is the audience to put into the signed payload."""

    nonce: str
    server: str
    expires_in_s: int


class EnrollRequest(msgspec.Struct, kw_only=True):
    """Ask to join a tenant's fleet.

    ``signature`` is Ed25519 over :func:`~device_agent.protocol.canonical.enrolment_payload`.
    With a valid provisioning key the device is accepted into that key's tenant; without one the
    request is refused. Whether it becomes ``accepted`` or ``pending`` is the key's setting.
    Repeating the call with the same key is harmless and returns the same device.
    """

    public_key: Annotated[str, msgspec.Meta(max_length=64)]
    nonce: Token
    provisioning_key: Token
    signature: Token
    name: Label = ""


class EnrollResponse(msgspec.Struct, kw_only=True):
    device: Identifier
    tenant: Identifier
    state: DeviceState


class TokenRequest(msgspec.Struct, kw_only=True):
    device: Identifier
    nonce: Token
    signature: Token


class TokenResponse(msgspec.Struct, kw_only=True):
    """``token`` is opaque to the agent. ``server_time`` is Unix seconds (UTC)."""

    token: str
    expires_in_s: int
    server_time: int


class Accelerator(msgspec.Struct, kw_only=True):
    """One accelerator as the agent found it.

    The four figures are measured on the device by the agent's micro-benchmark. Figures of an
    emulated accelerator are measured on the CPU that stands in for it and never count as
    measured hardware.
    """

    name: Label
    kind: AcceleratorKind
    execution_provider: Label
    data_types: list[Label]
    emulated: bool = False
    fp32_gflops: float | None = None
    int8_gops: float | None = None
    bandwidth_gb_per_s: float | None = None
    session_start_ms: float | None = None


class CapabilityReport(msgspec.Struct, kw_only=True):
    """What the device is. Sent only when its digest changed."""

    soc: Label
    ram_mb: Count
    storage_free_mb: Count
    os: Label
    os_version: Label
    runtime: Label
    runtime_version: Label
    agent_version: Label
    accelerators: Annotated[list[Accelerator], msgspec.Meta(min_length=1, max_length=16)]
    tags: Annotated[list[Name], msgspec.Meta(max_length=32)] = []
    time_zone: Label = "UTC"


class DesiredModel(msgspec.Struct, kw_only=True):
    """One model that devices of this deployment should run. ``target`` is a TUF target path."""

    model: Name
    version: int
    rollout: Identifier
    target: str


class Desired(msgspec.Struct, kw_only=True):
    """What a device should run: a document with a generation, the same for a whole deployment."""

    generation: int
    poll_interval_s: float
    models: list[DesiredModel]


class AssignedModel(msgspec.Struct, kw_only=True):
    """``sha256`` and ``length`` are those of the manifest, and must agree with the TUF target."""

    model: Name
    version: int
    rollout: Identifier
    build: Identifier
    target: str
    sha256: Sha256
    length: int


class Assignment(msgspec.Struct, kw_only=True, tag_field="_type", tag="assignment"):
    """What *this* device may install (as Uptane's director says it).

    ``issued`` and ``expires`` are Unix seconds. A device refuses a sequence lower than the
    highest it has seen, another device's document, and an expired one.
    """

    device: Identifier
    tenant: Identifier
    sequence: int
    issued: int
    expires: int
    models: list[AssignedModel]


class Signature(msgspec.Struct, kw_only=True):
    """``sig`` is hexadecimal Ed25519 over the canonical JSON of ``signed``."""

    keyid: str
    sig: str


class SignedEnvelope(msgspec.Struct, kw_only=True):
    """``signed`` stays undecoded until its signature has been verified."""

    signed: dict[str, Any]
    signatures: list[Signature]


class AssignmentKey(msgspec.Struct, kw_only=True):
    """Raw Ed25519 public key (base64url) that may sign assignments."""

    keyid: str
    public: str


class AssignmentKeys(msgspec.Struct, kw_only=True):
    """The TUF target ``pocketfleet/assignment-keys.json``."""

    keys: list[AssignmentKey]


ASSIGNMENT_KEYS_TARGET = "pocketfleet/assignment-keys.json"


class SelfTest(msgspec.Struct, kw_only=True):
    """Result of the golden-input self-test on the device.

    ``provider`` is the execution provider that really ran; ``min_cosine`` the lowest cosine
    between a golden output row and its reference; ``latency_p50_ms`` is evidence, not a gate.
    """

    passed: bool
    provider: Provider
    emulated: bool
    min_cosine: float
    latency_p50_ms: Millis
    peak_memory_bytes: Count = 0


class InstallEvent(msgspec.Struct, kw_only=True, tag_field="kind", tag="install"):
    """A state an installation has reached. ``at`` is Unix seconds on the device's clock."""

    at: float
    rollout: Identifier
    model: Name
    version: int
    build: Identifier
    state: InstallState
    waiting: WaitingReason | None = None
    failure: FailureCode | None = None
    self_test: SelfTest | None = None
    downloaded_bytes: Count = 0
    reused_bytes: Count = 0


class InferenceAggregate(msgspec.Struct, kw_only=True, tag_field="kind", tag="inference"):
    """Inference of one build in one window, in numbers only.

    ``latency_buckets`` counts requests per bucket of :data:`LATENCY_BUCKET_BOUNDS_MS` (one more
    bucket than bounds, the last one open), so that aggregates can be merged.
    """

    at: float
    window_s: Millis
    build: Identifier
    provider: Provider
    emulated: bool
    requests: Count
    errors: Count
    latency_buckets: Annotated[list[Count], msgspec.Meta(max_length=64)]
    latency_sum_ms: Millis


class DeviceSample(msgspec.Struct, kw_only=True, tag_field="kind", tag="device"):
    """How the device itself is doing."""

    at: float
    agent_rss_bytes: Count
    cpu_seconds: Millis
    storage_free_mb: Count
    battery_percent: Annotated[int, msgspec.Meta(ge=0, le=100)] | None = None
    charging: bool | None = None
    temperature_c: float | None = None


Event = InstallEvent | InferenceAggregate | DeviceSample

# Geometric, 2**(1/2) apart, from 0.25 ms to 16 s: a quantile read off them is within 19 %.
LATENCY_BUCKET_BOUNDS_MS: tuple[float, ...] = tuple(0.25 * 2 ** (i / 2) for i in range(33))


class Report(msgspec.Struct, kw_only=True):
    """One numbered batch. Immutable: (device, boot, first_sequence) names it for ever.

    ``first_sequence`` is the number of ``events[0]``; the following events count on from it.
    """

    boot: Identifier
    first_sequence: Count
    events: Annotated[list[Event], msgspec.Meta(min_length=1, max_length=500)]


class ReportAck(msgspec.Struct, kw_only=True):
    """Everything up to and including ``acknowledged`` is stored for this boot."""

    acknowledged: int


class Problem(msgspec.Struct, kw_only=True):
    """RFC 9457 problem details with a stable ``code`` and what to do next in ``detail``."""

    code: str
    title: str
    status: int
    detail: str = ""
    type: str = "about:blank"
