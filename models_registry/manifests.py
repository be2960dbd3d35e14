"""Translation of what the worker built into the agent's manifest. Pure.

The manifest is canonical JSON, which knows no fractions: ratios become millionths (a tolerance
rounded down, so that rounding never refuses a good device), times microseconds.
"""

from __future__ import annotations

import math

from device_agent.protocol.manifest import (
    FORMAT_VERSION,
    Chunk,
    Golden,
    Manifest,
    ManifestFile,
    Quality,
    Runtime,
)
from models_registry.models import Build
from quantize_worker.contract import ArtifactDescription, ArtifactFile, QualityReport, TailorPlan

ENGINE = "onnxruntime"


def manifest_of(
    *,
    build: Build,
    plan: TailorPlan,
    artifact: ArtifactDescription,
    quality: QualityReport,
    unverified: bool = False,
) -> Manifest:
    """The manifest of ``build``. ``build.version.model`` must be loaded.

    Args:
        unverified: quality was measured on generated inputs only.
    """
    recipe = plan.recipe
    return Manifest(
        format_version=FORMAT_VERSION,
        build=str(build.pk),
        model=build.version.model.name,
        version=build.version.number,
        precision=recipe.precision,
        runtime=Runtime(
            engine=ENGINE,
            minimum_version=artifact.minimum_runtime,
            execution_provider=recipe.execution_provider,
            accelerator=recipe.accelerator,
            emulated=recipe.emulated,
        ),
        entry=artifact.entry,
        files=[_file(file) for file in artifact.files],
        golden=Golden(
            path=artifact.golden_path,
            samples=artifact.golden_samples,
            min_cosine_ppm=_ppm(artifact.golden_min_cosine),
        ),
        quality=Quality(
            metric=quality.metric,
            value_ppm=_ppm(quality.value),
            cosine_ppm=_ppm(quality.cosine),
            top1_agreement_ppm=_ppm(quality.top1_agreement),
            samples=quality.samples,
        ),
        size_bytes=artifact.size_bytes,
        download_bytes=artifact.download_bytes,
        predicted_memory_bytes=plan.predicted_memory_bytes,
        measured_memory_bytes=artifact.memory_bytes,
        latency_p50_us=round(artifact.latency_p50_ms * 1000),
        source_digest=build.version.source_digest,
        recipe_digest=build.recipe_digest,
        tool_versions=artifact.tool_versions,
        unverified=unverified,
    )


def stored_blobs(manifest: Manifest) -> dict[str, int]:
    """Digest and size of every stored chunk that a device may have to download."""
    return {chunk.stored_sha256: chunk.stored_size_bytes for file in manifest.files for chunk in file.chunks}


def _file(file: ArtifactFile) -> ManifestFile:
    chunks = [
        Chunk(
            sha256=chunk.sha256,
            size_bytes=chunk.size_bytes,
            stored_sha256=chunk.stored_sha256,
            stored_size_bytes=chunk.stored_size_bytes,
        )
        for chunk in file.chunks
    ]
    return ManifestFile(path=file.path, sha256=file.sha256, size_bytes=file.size_bytes, chunks=chunks)


def _ppm(ratio: float) -> int:
    """Millionths, rounded down; what float noise takes off a whole number of them is given back."""
    return math.floor(round(ratio * 1e6, 3))
