"""The manifest of an artifact: the TUF target that says what a build is made of.

Serialised as canonical JSON (:mod:`device_agent.protocol.canonical`), so it holds no fractions:
ratios are given in millionths (``_ppm``), times in microseconds.
"""

from __future__ import annotations

import msgspec

from device_agent.protocol.canonical import canonical_json
from device_agent.protocol.messages import AcceleratorKind, Identifier, Name, Sha256

FORMAT_VERSION = 1


class Chunk(msgspec.Struct, kw_only=True):
    """A piece of a file.

    ``sha256``/``size_bytes`` are those of the content, ``stored_sha256``/``stored_size_bytes``
    those of the zstd frame that is downloaded as ``blobs/<stored_sha256>``. Both are checked:
    the stored bytes before they are decompressed, the content before it is used.
    """

    sha256: Sha256
    size_bytes: int
    stored_sha256: Sha256
    stored_size_bytes: int


class ManifestFile(msgspec.Struct, kw_only=True):
    """A file of the build; its content is its chunks, one after the other.

    ``path`` is relative, with forward slashes, and never leaves the slot.
    """

    path: str
    sha256: Sha256
    size_bytes: int
    chunks: list[Chunk]


class Runtime(msgspec.Struct, kw_only=True):
    """What runs the build. ``emulated`` marks a class whose accelerator the CPU stands in for."""

    engine: str  # "onnxruntime"
    minimum_version: str
    execution_provider: str
    accelerator: AcceleratorKind
    emulated: bool


class Golden(msgspec.Struct, kw_only=True):
    """Self-test data: ``path`` is an ``.npz`` in ``files``.

    Its arrays are named ``input/<name>`` and ``reference/<name>``; references are the outputs
    of the FP32 source. The self-test passes when the lowest cosine between an output row and
    its reference row is at least ``min_cosine_ppm / 1e6``, which is positive: a tolerance that
    any output meets would prove nothing.
    """

    path: str
    samples: int
    min_cosine_ppm: int


class Quality(msgspec.Struct, kw_only=True):
    """Quality against the FP32 source on the evaluation set, in millionths."""

    metric: str  # "accuracy" (labels) or "cosine"
    value_ppm: int
    cosine_ppm: int
    top1_agreement_ppm: int
    samples: int


class Manifest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Everything a device needs to fetch, verify, prove and run one build.

    ``unverified`` (left out where it is false): quality was measured on generated inputs only.
    """

    format_version: int
    build: Identifier
    model: Name
    version: int
    precision: str
    runtime: Runtime
    entry: str  # path of the ONNX graph among ``files``
    files: list[ManifestFile]
    golden: Golden
    quality: Quality
    size_bytes: int
    download_bytes: int
    predicted_memory_bytes: int
    measured_memory_bytes: int
    latency_p50_us: int  # one sample at a time, on the worker that built it
    source_digest: str
    recipe_digest: str
    tool_versions: dict[str, str]
    unverified: bool = False

    def encode(self) -> bytes:
        """Canonical JSON of the manifest: the bytes of the TUF target."""
        return canonical_json(msgspec.to_builtins(self))


def decode_manifest(data: bytes) -> Manifest:
    """Decode and check a manifest.

    Raises:
        msgspec.ValidationError: if a field is missing or of the wrong type.
        ValueError: if the format version is unknown, a path leaves the slot, or the self-test
            would pass whatever the build computes.
    """
    manifest = msgspec.json.decode(data, type=Manifest)
    if manifest.format_version != FORMAT_VERSION:
        raise ValueError(f"manifest format {manifest.format_version}, expected {FORMAT_VERSION}")
    paths = [file.path for file in manifest.files]
    for path in paths:
        parts = path.split("/")
        if not path or path.startswith("/") or "\\" in path or any(p in ("", ".", "..") for p in parts):
            raise ValueError(f"manifest path {path!r} leaves the slot")
    if len(set(paths)) != len(paths):
        raise ValueError("manifest names a file twice")
    if manifest.entry not in paths or manifest.golden.path not in paths:
        raise ValueError("manifest's entry or golden file is not among its files")
    if manifest.golden.min_cosine_ppm <= 0:
        raise ValueError(f"manifest's golden tolerance is {manifest.golden.min_cosine_ppm} ppm, not positive")
    return manifest
