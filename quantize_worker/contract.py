"""The published contract of the quantize worker: all that servers may know of it.

Requests travel on queue ``tailor``, answers by task name on queue ``control``. Every message
carries ``attempt``; the registry ignores messages of an attempt that is not the current one.
Files travel by digest through the blob store, never inside a message.

| message | queue | task name |
|---|---|---|
| :class:`InspectRequest` | tailor | ``quantize_worker.inspect`` |
| :class:`BuildRequest` | tailor | ``quantize_worker.build`` |
| :class:`Progress` | control | ``models_registry.progress`` |
| :class:`InspectResult` | control | ``models_registry.inspect_result`` |
| :class:`BuildResult` | control | ``models_registry.build_result`` |

Each task takes one positional argument: the message as plain JSON types (:func:`to_wire`).
"""

from __future__ import annotations

import hashlib
import os
from typing import Any, Literal, TypeVar

import msgspec

CONTRACT_VERSION = 1

QUEUE_TAILOR = "tailor"
QUEUE_CONTROL = "control"
TASK_INSPECT = "quantize_worker.inspect"
TASK_BUILD = "quantize_worker.build"
TASK_PROGRESS = "models_registry.progress"
TASK_INSPECT_RESULT = "models_registry.inspect_result"
TASK_BUILD_RESULT = "models_registry.build_result"

# A lease lasts this long from the last progress message; the worker reports progress at least
# every heartbeat, even inside a long step. Both may be shortened, for all processes alike.
LEASE_S = float(os.environ.get("POCKETFLEET_LEASE_S") or 120.0)
HEARTBEAT_S = float(os.environ.get("POCKETFLEET_HEARTBEAT_S") or 15.0)
TIME_LIMIT_S = 1500.0  # wall-clock kill of one job: under RabbitMQ's 30-minute consumer timeout

Precision = Literal["fp32", "fp16", "int8-dynamic", "int8-qdq", "int4"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8-dynamic", "int8-qdq", "int4")
AcceleratorKind = Literal["cpu", "gpu", "npu"]

RefusalCode = Literal[
    "not_onnx",  # does not parse as an ONNX model
    "truncated",  # ends early, or external data shorter than the graph says
    "external_data_outside",  # external data points outside the upload
    "missing_file",  # external data names a file that was not uploaded
    "invalid_model",  # parses, but the checker or ONNX Runtime refuses it
    "unsupported_operator",
    "too_large",
    "resource_limit",  # checking it took more time or memory than allowed
    "invalid_samples",  # a set is not a valid .npz, or it or what FP32 makes of it is not finite
    "wrong_input_names",  # a set's arrays do not match the model's inputs
    "wrong_sample_shape",
]


class Blob(msgspec.Struct, kw_only=True, frozen=True):
    """A file in the blob store."""

    sha256: str
    size_bytes: int


class SourceFile(msgspec.Struct, kw_only=True, frozen=True):
    """An uploaded file. ``path`` is relative to the upload; the first ``.onnx`` is the graph."""

    path: str
    sha256: str
    size_bytes: int


class Source(msgspec.Struct, kw_only=True, frozen=True):
    """A model version's files. The sets are ``.npz``: inputs by name, optional ``labels``."""

    files: list[SourceFile]
    evaluation: Blob | None = None
    calibration: Blob | None = None


class TensorSpec(msgspec.Struct, kw_only=True, frozen=True):
    """An input or output. Symbolic dimensions are strings, e.g. ``["batch", "seq", 384]``."""

    name: str
    dtype: str  # numpy name: "int64", "float32"
    shape: list[int | str]


class LayerFacts(msgspec.Struct, kw_only=True, frozen=True):
    """A layer with weights. ``sensitivity`` is the relative squared weight error per precision."""

    name: str
    operator: str
    parameters: int
    quantizable: bool
    sensitivity: dict[str, float]


class ModelFacts(msgspec.Struct, kw_only=True):
    """What ``inspect`` finds, once per version; ``plan`` needs nothing else of the model.

    ``latency_p50_ms`` is of the FP32 source, one sample at a time on one thread of the worker;
    ``memory_bytes`` the peak resident memory of doing so. ``samples`` and ``has_labels``
    describe the evaluation set; without one, samples are generated from the input specs and
    ``synthetic_samples`` says so. ``measured_samples`` of them, spread evenly over the set, are
    what accuracy, latency and quality are measured on; 0 in facts from before it was counted.
    """

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    opset: int
    operators: dict[str, int]
    parameters: int
    source_bytes: int
    weight_bytes: int
    quantizable_weight_bytes: int
    embedding_weight_bytes: int  # Gather tables, counted in weight_bytes too
    layers: list[LayerFacts]
    samples: int
    has_labels: bool
    synthetic_samples: bool
    accuracy: float | None  # of the FP32 source, where labels exist
    latency_p50_ms: float
    memory_bytes: int
    tool_versions: dict[str, str]
    measured_samples: int = 0


class Target(msgspec.Struct, kw_only=True, frozen=True):
    """A snapshot of a device class: what its accelerator accepts and what it can afford.

    ``precisions`` are those the accelerator accepts, the preferred one first; the planner falls
    back along the list when a build is rejected. ``quality_floor`` is a share of the FP32
    source's quality (accuracy where labels exist, else mean cosine), in [0, 1].
    """

    name: str
    version: int
    accelerator: AcceleratorKind
    execution_provider: str
    emulated: bool
    precisions: list[Precision]
    memory_bytes: int
    storage_bytes: int
    quality_floor: float
    latency_ms: float | None = None
    energy_mwh: float | None = None


class Recipe(msgspec.Struct, kw_only=True, frozen=True):
    """How to make the artifact; equal recipes of one version share one Build.

    ``layers`` names layers whose precision differs from ``precision``.
    """

    precision: Precision
    accelerator: AcceleratorKind
    execution_provider: str
    emulated: bool
    block_size: int | None = None
    layers: dict[str, Precision] = {}


class TailorPlan(msgspec.Struct, kw_only=True, frozen=True):
    """One candidate for a class, with what it is expected to cost and why it was chosen."""

    recipe: Recipe
    predicted_size_bytes: int
    predicted_memory_bytes: int
    predicted_latency_ms: float
    predicted_quality: float
    reasons: list[str]


class BuildRequest(msgspec.Struct, kw_only=True, frozen=True):
    build: str
    attempt: int
    source: Source
    recipe: Recipe
    facts: ModelFacts
    contract: int = CONTRACT_VERSION


class InspectRequest(msgspec.Struct, kw_only=True, frozen=True):
    version: str
    attempt: int
    source: Source
    contract: int = CONTRACT_VERSION


class Progress(msgspec.Struct, kw_only=True, frozen=True):
    """``subject`` is a build or a version; ``share`` of the whole job done, in [0, 1]."""

    subject: str
    subject_kind: Literal["build", "version"]
    attempt: int
    step: str
    share: float
    worker: str


class InspectResult(msgspec.Struct, kw_only=True, frozen=True):
    """``refused``: the model is at fault (code, message). ``failed``: our system is."""

    version: str
    attempt: int
    status: Literal["ready", "refused", "failed"]
    facts: ModelFacts | None = None
    code: str = ""
    message: str = ""


class ArtifactChunk(msgspec.Struct, kw_only=True, frozen=True):
    sha256: str
    size_bytes: int
    stored_sha256: str
    stored_size_bytes: int


class ArtifactFile(msgspec.Struct, kw_only=True, frozen=True):
    path: str
    sha256: str
    size_bytes: int
    chunks: list[ArtifactChunk]


class QualityReport(msgspec.Struct, kw_only=True, frozen=True):
    """Against the FP32 source, on the evaluation set.

    ``value`` is what a floor is compared with: accuracy relative to the source's where labels
    exist (metric ``accuracy``), else, or where the source is never right, the mean cosine of the
    first floating-point output (metric ``cosine``). ``top1_agreement`` is the share of samples whose best class (for
    classifiers) or nearest neighbour in the set (for embeddings) is the source's.
    """

    metric: Literal["accuracy", "cosine"]
    value: float
    cosine: float
    top1_agreement: float
    samples: int
    accuracy: float | None = None
    source_accuracy: float | None = None


class ArtifactDescription(msgspec.Struct, kw_only=True, frozen=True):
    entry: str
    files: list[ArtifactFile]
    golden_path: str
    golden_samples: int
    golden_min_cosine: float  # the tolerance: what was measured here less a margin
    size_bytes: int
    download_bytes: int
    memory_bytes: int
    latency_p50_ms: float
    provider: str  # execution provider that really ran it in the worker
    minimum_runtime: str
    tool_versions: dict[str, str]


class BuildResult(msgspec.Struct, kw_only=True, frozen=True):
    """``built`` carries artifact and quality; whether that is good enough is the registry's word.

    ``failed`` carries a stable code, a sentence and whose fault it is.
    """

    build: str
    attempt: int
    status: Literal["built", "failed", "cancelled"]
    artifact: ArtifactDescription | None = None
    quality: QualityReport | None = None
    code: str = ""
    message: str = ""
    fault: Literal["", "model", "system"] = ""
    seconds: float = 0.0


T = TypeVar("T", bound=msgspec.Struct)


def to_wire(message: msgspec.Struct) -> dict[str, Any]:
    """The message as plain JSON types, for a Celery argument."""
    wire: dict[str, Any] = msgspec.to_builtins(message)
    return wire


def from_wire(data: dict[str, Any], kind: type[T]) -> T:
    """Decode a message.

    Raises:
        msgspec.ValidationError: if it does not fit.
    """
    return msgspec.convert(data, kind)


def digest(value: msgspec.Struct | list[Any] | dict[str, Any]) -> str:
    """SHA-256 over the value's JSON with sorted keys, as hexadecimal digits."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


def blob_key(sha256: str) -> str:
    """Where the blob store keeps the content with this digest."""
    return f"blobs/{sha256[:2]}/{sha256}"


def cancel_key(subject: str, attempt: int) -> str:
    """A blob under this key asks the worker to stop this attempt at its next step."""
    return f"cancel/{subject}/{attempt}"


def celery_settings(broker_url: str, broker_folder: str) -> dict[str, Any]:
    """Celery settings that both services must share, safe on either broker.

    JSON only; late acknowledgement; one message at a time; no result backend. On RabbitMQ
    quorum queues with publisher confirms and a delivery limit.

    Args:
        broker_url: ``amqp://…`` or ``filesystem://``.
        broker_folder: where the ``filesystem://`` transport keeps its messages.
    """
    from kombu import Queue

    amqp = broker_url.startswith(("amqp://", "amqps://"))
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 5} if amqp else {}
    transport: dict[str, Any] = (
        {"confirm_publish": True, "confirm_timeout": 10.0}
        if amqp
        else {
            "data_folder_in": broker_folder,
            "data_folder_out": broker_folder,
            "control_folder": f"{broker_folder}/control",
            "polling_interval": 0.2,
        }
    )
    return {
        "broker_url": broker_url,
        "broker_transport_options": transport,
        "broker_connection_retry_on_startup": True,
        "task_queues": [Queue(name, queue_arguments=arguments) for name in (QUEUE_TAILOR, QUEUE_CONTROL)],
        "task_default_queue": QUEUE_CONTROL,
        "task_default_queue_type": "quorum" if amqp else "classic",
        "worker_detect_quorum_queues": amqp,
        "task_create_missing_queues": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_backend": None,
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "task_publish_retry_policy": {"max_retries": 3, "interval_start": 0.1, "interval_max": 1.0},
        "enable_utc": True,
    }
