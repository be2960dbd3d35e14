"""Result messages of an attempt: what an outcome or an error becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blobstore import BlobMissing, DigestMismatch
from quantize_worker.contract import BuildResult, InspectResult
from quantize_worker.errors import (
    ModelRefused,
    SandboxCrashed,
    SandboxOutOfMemory,
    SandboxTimeout,
    WorkerError,
)
from quantize_worker.steps.exchange import Built, Outcome


@dataclass(frozen=True)
class Answer:
    """Result messages of one attempt."""

    subject: str
    attempt: int

    def inspected(self, outcome: Outcome) -> InspectResult:
        if outcome.status == "ready":
            return InspectResult(
                version=self.subject,
                attempt=self.attempt,
                status="ready",
                facts=outcome.facts,
                batches=outcome.batches,
            )
        status: Literal["refused", "failed"] = "refused" if outcome.status == "refused" else "failed"
        return self._inspect_result(status, outcome.code, outcome.message)

    def not_inspected(self, error: Exception) -> InspectResult:
        """Whatever the model made the child do is the model's fault; the rest is ours."""
        if isinstance(error, ModelRefused):
            return self._inspect_result("refused", error.code, error.message)
        if isinstance(error, (SandboxTimeout, SandboxOutOfMemory)):
            message = f"Checking the model was given up: {error.message} Simplify the model or split it."
            return self._inspect_result("refused", "resource_limit", message)
        if isinstance(error, SandboxCrashed):
            message = f"Checking the model crashed ONNX Runtime: {error.message} Export it again."
            return self._inspect_result("refused", "invalid_model", message)
        return self._inspect_result("failed", code_of(error), sentence_of(error))

    def built(self, outcome: Outcome) -> BuildResult:
        only = outcome.builds[0] if outcome.builds else Built(code=outcome.code, message=outcome.message)
        if only.artifact is None or only.quality is None:
            fault = only.fault or outcome.fault or "system"
            return self.failed("failed", only.code or "worker_failed", only.message, fault)
        return BuildResult(
            build=self.subject,
            attempt=self.attempt,
            status="built",
            artifact=only.artifact,
            quality=only.quality,
        )

    def failed(
        self,
        status: Literal["failed", "cancelled"],
        code: str,
        message: str,
        fault: Literal["", "model", "system"],
    ) -> BuildResult:
        return BuildResult(
            build=self.subject, attempt=self.attempt, status=status, code=code, message=message, fault=fault
        )

    def _inspect_result(self, status: Literal["refused", "failed"], code: str, message: str) -> InspectResult:
        return InspectResult(
            version=self.subject, attempt=self.attempt, status=status, code=code, message=message
        )


def code_of(error: Exception) -> str:
    return str(getattr(error, "code", "worker_failed"))


def sentence_of(error: Exception) -> str:
    if isinstance(error, (BlobMissing, DigestMismatch, WorkerError)):
        return str(error)
    return f"The worker could not finish the job ({error}); it can be tried again."


def fault_of(error: Exception) -> Literal["model", "system"]:
    return "model" if isinstance(error, ModelRefused) else "system"
