"""How the check of a version ends, and what a worker gets to know of its files."""

from __future__ import annotations

from typing import Any, get_args

from models_registry import lifecycle
from models_registry.models import ModelVersion, VersionFile
from quantize_worker.contract import Blob, ModelFacts, RefusalCode, Source, SourceFile

CHECK_FAILED = "check_failed"  # the one refusal that is our fault, not the model's
CANCELLED = "cancelled"
CHECKED_AGAIN = (CHECK_FAILED, CANCELLED)
MODELS_FAULT = frozenset(get_args(RefusalCode))


def settle_check(version: ModelVersion, event: str, **changes: Any) -> bool:
    """End the check of the version's current attempt.

    Args:
        event: of :data:`models_registry.lifecycle.VERSION`: pass, refuse or cancel.

    Returns:
        False if another process was faster.
    """
    ended = {"lease_expires_at": None, "step": "", "step_began_at": None, "share": 1.0}
    checked = ModelVersion.objects.filter(
        pk=version.pk, attempt=version.attempt, state__in=lifecycle.sources("version", event)
    )
    return bool(checked.update(state=lifecycle.result("version", event), **ended, **changes))


def refuse(version: ModelVersion, *, code: str, message: str) -> bool:
    """The model is at fault."""
    return settle_check(version, "refuse", refusal_code=code[:40] or "invalid_model", refusal_message=message)


def refuse_for_our_fault(*, version: ModelVersion, message: str) -> bool:
    """Give up checking: the model may be fine, our side is not."""
    return refuse(
        version,
        code=CHECK_FAILED,
        message=f"Checking the model failed on our side ({message or 'the worker was lost'}). "
        "Ask the operator to look at the worker's log, then check the version again.",
    )


def lineage_of(version: ModelVersion, facts: ModelFacts) -> dict[str, Any]:
    """What the version's facts rest on, by digest."""
    sets = version.files.exclude(role=VersionFile.Role.MODEL)
    return {
        "source_digest": version.source_digest,
        **{f"{file.role}_sha256": file.sha256 for file in sets},
        "synthetic_samples": facts.synthetic_samples,
        "tool_versions": facts.tool_versions,
    }


def source_of(version: ModelVersion) -> Source:
    """The version's files as the worker gets them, by path."""
    files = list(version.files.order_by("path"))
    sets = {
        file.role: Blob(sha256=file.sha256, size_bytes=file.size_bytes)
        for file in files
        if file.role != VersionFile.Role.MODEL
    }
    return Source(
        files=[
            SourceFile(path=file.path, sha256=file.sha256, size_bytes=file.size_bytes)
            for file in files
            if file.role == VersionFile.Role.MODEL
        ],
        evaluation=sets.get("evaluation"),
        calibration=sets.get("calibration"),
    )
