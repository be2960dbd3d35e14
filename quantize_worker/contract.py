"""The published contract of the quantize worker: all that servers may know of it.

Requests travel on the tailoring queues, sized to memory (:func:`queue_for`), answers by task name
on queue ``control``. Every message carries ``attempt``; the registry ignores messages of an attempt
that is not the current one. Files travel by digest through the blob store, never inside a message.

| message | queue | task name |
|---|---|---|
| :class:`InspectRequest` | tailor.small, tailor.large | ``quantize_worker.inspect`` |
| :class:`CandidatesRequest` | tailor.small, tailor.large | ``quantize_worker.candidates`` |
| :class:`BuildRequest` | tailor.small, tailor.large | ``quantize_worker.build`` |
| :class:`Progress` | control | ``models_registry.progress`` |
| :class:`InspectResult` | control | ``models_registry.inspect_result`` |
| :class:`CandidatesResult` | control | ``models_registry.candidates_result`` |
| :class:`BuildResult` | control | ``models_registry.build_result`` |

Each task takes one positional argument: the message as plain JSON types (:func:`to_wire`).
"""

from __future__ import annotations

import hashlib
import os
from typing import Any, Literal, TypeVar

import msgspec

CONTRACT_VERSION = 2
OLDEST_CONTRACT_VERSION = 1  # a request of this version is still understood

QUEUE_TAILOR = "tailor"  # of contract 1; still consumed, nothing is sent there any more
QUEUE_TAILOR_SMALL = "tailor.small"
QUEUE_TAILOR_LARGE = "tailor.large"
TAILOR_QUEUES = (QUEUE_TAILOR, QUEUE_TAILOR_SMALL, QUEUE_TAILOR_LARGE)
LARGE_SOURCE_BYTES = 1 << 30  # from here on a job belongs on a machine with much memory
QUEUE_CONTROL = "control"
TASK_INSPECT = "quantize_worker.inspect"
TASK_CANDIDATES = "quantize_worker.candidates"
TASK_CANDIDATES_RESULT = "models_registry.candidates_result"
TASK_BUILD = "quantize_worker.build"
TASK_PROGRESS = "models_registry.progress"
TASK_INSPECT_RESULT = "models_registry.inspect_result"
TASK_BUILD_RESULT = "models_registry.build_result"

# A lease lasts this long from the last progress message; the worker reports progress at least
# every heartbeat, even inside a long step. Both may be shortened, for all processes alike.
LEASE_S = float(os.environ.get("POCKETFLEET_LEASE_S") or 120.0)
HEARTBEAT_S = float(os.environ.get("POCKETFLEET_HEARTBEAT_S") or 15.0)
TIME_LIMIT_S = 1500.0  # wall-clock kill of one job: under RabbitMQ's 30-minute consumer timeout

# What a class accepts. Every Format (quantize_worker.formats) belongs to one of them.
Precision = Literal["fp32", "fp16", "int8", "int8-dynamic", "int8-qdq", "int8-qdq16", "int4"]
PRECISIONS: tuple[Precision, ...] = (
    "fp32",
    "fp16",
    "int8",  # weights in blocks of 8 bits, activations in floating point
    "int8-dynamic",  # activations rounded to 8 bits while running
    "int8-qdq",  # static: weights and activations in 8 bits
    "int8-qdq16",  # static: weights in 8 bits, activations in 16
    "int4",
)
Objective = Literal["size", "latency", "quality"]
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
    # from contract 2 on
    "unknown_opset",  # newer than the worker's tools, or of a domain they do not know
    "non_finite_weights",  # NaN or infinity in a weight; the message names it
    "non_finite_outputs",  # FP32 itself makes NaN or infinity of the samples
    "wrong_labels",  # labels of the wrong length or kind
    "unsupported_architecture",  # safetensors of a network the exporter does not know
]


class Blob(msgspec.Struct, kw_only=True, frozen=True):
    """A file in the blob store."""

    sha256: str
    size_bytes: int


class SourceFile(msgspec.Struct, kw_only=True, frozen=True):
    """An uploaded file. ``path`` is relative to the upload.

    The first ``.onnx`` is the graph; without one, ``config.json`` with ``.safetensors`` beside it is
    exported.
    """

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


class FormatFacts(msgspec.Struct, kw_only=True, frozen=True):
    """What it costs to store and run one layer in one format.

    ``size_bytes`` is exact: all initializers that the format writes for the layer. ``error`` is the
    mean squared error of the layer's output over its mean square, on calibration data, of rounding
    the weights and, where the format does, the activations. ``loss`` is the loss of quality
    (1 - cosine of the model's main output) predicted if only this layer takes the format.
    ``memory_bytes`` is resident while the model is loaded, packed as the kernel wants it.
    """

    size_bytes: int
    memory_bytes: int
    error: float
    loss: float


class LayerFacts(msgspec.Struct, kw_only=True, frozen=True):
    """A layer with weights.

    ``name`` is its node's first output in the *prepared* model. ``sensitivity`` is the relative
    squared weight error per precision (contract 1; empty now). ``formats`` lists every format the
    layer can take, "fp32" always among them. ``reason`` says why it can take no other.
    """

    name: str
    operator: str
    parameters: int
    quantizable: bool
    sensitivity: dict[str, float] = {}
    weight: str = ""  # initializer; layers that share one have the same
    shape: list[int] = []  # of the weight as stored
    rows: float = 0.0  # mean rows that multiply the weight in one sample (tokens; pixels of a Conv)
    formats: dict[str, FormatFacts] = {}
    reason: str = ""


class ProductFacts(msgspec.Struct, kw_only=True, frozen=True):
    """Products of two activations (attention), which static formats may round as well.

    ``multiplies`` counts multiply-accumulates of all of them per sample. ``loss`` is predicted per
    static format ("int8-qdq", "int8-qdq16") when all take it.
    """

    names: list[str] = []
    multiplies: float = 0.0
    loss: dict[str, float] = {}


class OperatorCost(msgspec.Struct, kw_only=True, frozen=True):
    """Measured on the inspecting worker: one layer's operator in one format, one thread.

    ``shape`` is (in, out) for matrices. ``rows`` is the phase: the rows of a sample (encoder or
    prefill), and 1 (decoding a token).
    """

    operator: str
    shape: list[int]
    format: str
    rows: int
    provider: str
    latency_ms: float


class Interaction(msgspec.Struct, kw_only=True, frozen=True):
    """How the sum of single losses turns into the loss of the whole: ``factor * sum ** power``.

    Fitted per precision on whole assembled models measured on calibration data (``points`` of
    [sum, measured]). Without points: 1 and 1.
    """

    factor: float = 1.0
    power: float = 1.0
    points: list[tuple[float, float]] = []


class KeptNode(msgspec.Struct, kw_only=True, frozen=True):
    """A node with weights that stays as it is, and why."""

    name: str
    operator: str
    reason: str


class WorkerSpeed(msgspec.Struct, kw_only=True, frozen=True):
    """One thread of the machine, as the agent's micro-benchmarks measure devices too; 0: unknown."""

    fp32_gflops: float = 0.0
    int8_gops: float = 0.0
    memory_gb_s: float = 0.0


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
    # from contract 2 on
    analysis: list[Blob] = []  # indexes (AnalysisIndex as JSON) of what later jobs reuse
    other_bytes: int = 0  # of the prepared model in FP32: graph and initializers of no layer
    products: ProductFacts = ProductFacts()
    costs: list[OperatorCost] = []
    interaction: dict[str, Interaction] = {}  # by precision
    accuracy_loss: float = 0.0  # share of labels lost per unit of loss, fitted; 0: unknown
    speed: WorkerSpeed = WorkerSpeed()
    kept: list[KeptNode] = []
    prepared: list[str] = []  # what preparing the model did, in words


class AnalysisFile(msgspec.Struct, kw_only=True, frozen=True):
    """A file of an analysis. ``path`` is relative to the job's ``analysis`` folder.

    ``layer`` and ``format`` are set for candidates: builds fetch those of their recipe only.
    """

    path: str
    sha256: str
    size_bytes: int
    layer: str = ""
    format: str = ""


class AnalysisIndex(msgspec.Struct, kw_only=True):
    """All files that an inspection, or a batch of candidates, has left for later jobs."""

    files: list[AnalysisFile]


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
    energy_mwh: float | None = None  # per inference
    objective: Objective = "size"  # smallest or fastest over the floor, or best within the budgets
    speed: WorkerSpeed = WorkerSpeed()  # median of what the class's devices have measured
    active_power_mw: float | None = None  # of the accelerator at work, declared


class Recipe(msgspec.Struct, kw_only=True, frozen=True):
    """How to make the artifact; equal recipes of one version share one Build.

    ``layers`` gives every layer that is not in FP32 its format (contract 1: those that differ from
    ``precision``). ``precision`` is the one most weights are in. Whole-model FP32 and FP16 have
    no ``layers``. ``products`` is the static format of products of two activations, or "".
    ``learned`` asks for learned rounding (the ``qat`` step).
    """

    precision: Precision
    accelerator: AcceleratorKind
    execution_provider: str
    emulated: bool
    block_size: int | None = None  # contract 1
    layers: dict[str, str] = {}
    products: str = ""
    learned: bool = False


class LayerChoice(msgspec.Struct, kw_only=True, frozen=True):
    """Why one layer got its format."""

    layer: str
    operator: str
    format: str
    size_bytes: int
    loss: float
    reason: str


class ParetoPoint(msgspec.Struct, kw_only=True, frozen=True):
    """The best that can be had at a size, for one class."""

    size_bytes: int
    memory_bytes: int
    latency_ms: float
    quality: float
    formats: dict[str, float]  # share of weights per format


class MeasuredBuild(msgspec.Struct, kw_only=True, frozen=True):
    """A build that has been measured, for correcting predictions."""

    recipe: Recipe
    quality: float  # as QualityReport.value
    cosine: float
    latency_ms: float | None = None  # reported by devices of the class, where they have


class TailorPlan(msgspec.Struct, kw_only=True, frozen=True):
    """One candidate for a class, with what it is expected to cost and why it was chosen."""

    recipe: Recipe
    predicted_size_bytes: int
    predicted_memory_bytes: int
    predicted_latency_ms: float
    predicted_quality: float
    reasons: list[str]
    predicted_cosine: float = 1.0
    predicted_energy_mwh: float = 0.0  # an estimate from bytes moved and operations
    choices: list[LayerChoice] = []
    bound: str = ""  # what kept it from being better: "floor", "storage", "memory", "latency", "energy", ""


class BuildRequest(msgspec.Struct, kw_only=True, frozen=True):
    build: str
    attempt: int
    source: Source
    recipe: Recipe
    facts: ModelFacts
    floors: list[float] = []  # of the classes that wait for it; the gate may stop early past all of them
    contract: int = CONTRACT_VERSION


class InspectRequest(msgspec.Struct, kw_only=True, frozen=True):
    version: str
    attempt: int
    source: Source
    contract: int = CONTRACT_VERSION


class Progress(msgspec.Struct, kw_only=True, frozen=True):
    """``subject`` is a build or a version; ``share`` of the whole job done, in [0, 1]."""

    subject: str
    subject_kind: Literal["build", "version", "batch"]
    attempt: int
    step: str
    share: float
    worker: str


class InspectResult(msgspec.Struct, kw_only=True, frozen=True):
    """``refused``: the model is at fault (code, message). ``failed``: our system is.

    ``batches`` names the layers whose candidates are still to be made, a batch per task; the facts
    are complete when all have answered. A small model has none: it is done at once.
    """

    version: str
    attempt: int
    status: Literal["ready", "refused", "failed"]
    facts: ModelFacts | None = None
    batches: list[list[str]] = []
    code: str = ""
    message: str = ""


class CandidatesRequest(msgspec.Struct, kw_only=True, frozen=True):
    """Make and weigh the candidates of some layers. ``subject`` of its progress is ``batch``."""

    version: str
    batch: str
    attempt: int
    source: Source
    facts: ModelFacts
    layers: list[str]
    contract: int = CONTRACT_VERSION


class CandidatesResult(msgspec.Struct, kw_only=True, frozen=True):
    """``layers`` replace those of the same name in the facts; ``analysis`` joins the facts' list."""

    batch: str
    attempt: int
    status: Literal["ready", "failed", "cancelled"]
    layers: list[LayerFacts] = []
    analysis: Blob | None = None
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
    # from contract 2 on: the gate may stop early
    confidence: float | None = None  # that ``value`` is on its side of the floor; None: no early stop
    interval: tuple[float, float] | None = None  # time-uniform, at that confidence


class ArtifactDescription(msgspec.Struct, kw_only=True, frozen=True):
    entry: str
    files: list[ArtifactFile]
    golden_path: str
    golden_samples: int
    golden_min_cosine: float  # the tolerance: what was measured here less a margin
    size_bytes: int
    download_bytes: int
    memory_bytes: int
    latency_p50_ms: float  # 0: not measured (models too large to run at full speed beside others)
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


def queue_for(source: Source) -> str:
    """The tailoring queue for jobs on this source, by its size."""
    size = sum(file.size_bytes for file in source.files)
    return QUEUE_TAILOR_LARGE if size >= LARGE_SOURCE_BYTES else QUEUE_TAILOR_SMALL


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
        "task_queues": [Queue(name, queue_arguments=arguments) for name in (*TAILOR_QUEUES, QUEUE_CONTROL)],
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
