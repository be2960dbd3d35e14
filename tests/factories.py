"""Rows for tests of the control plane, made straight through the ORM, and devices with real keys."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_agent.protocol.canonical import b64, enrolment_payload, sha256_hex, token_payload
from device_agent.protocol.messages import (
    LATENCY_BUCKET_BOUNDS_MS,
    Accelerator,
    CapabilityReport,
    InferenceAggregate,
    InstallEvent,
    SelfTest,
)
from fleet.devices.models import Device, DeviceClass, DeviceSeen
from fleet.devices.services import save_device_class
from models_registry.models import Build, Model, ModelVersion, Release, ReleaseEntry
from quantize_worker.contract import FormatFacts, LayerFacts, ModelFacts, TensorSpec
from tenancy.actor import Actor
from tenancy.models import App

ACTOR = Actor(kind="user", name="tester")


# bits a weight with its scales, and what the average layer loses in the format
FORMATS = {
    "fp32": (32.0, 0.0),
    "fp16-stored": (16.0, 1e-8),
    "int8-b32": (8.4, 2e-5),
    "int8-dynamic": (8.1, 4e-4),
    "int8-qdq": (8.1, 9e-4),
    "int8-qdq16": (8.1, 3e-5),
    "int4-b32": (4.4, 2e-3),
}


def make_facts(layers: int = 20, **changes: Any) -> ModelFacts:
    """Facts of an encoder of 20 MatMuls with a million weights each; later ones lose more."""
    found = [_layer(f"/encoder/layer.{i}/MatMul_output_0", 0.5 + i / layers) for i in range(layers)]
    weights = 4 * sum(layer.parameters for layer in found)
    fields: dict[str, Any] = {
        "inputs": [TensorSpec(name="ids", dtype="int64", shape=["batch", "seq"])],
        "outputs": [TensorSpec(name="embedding", dtype="float32", shape=["batch", 384])],
        "opset": 17,
        "operators": {"MatMul": layers},
        "parameters": weights // 4,
        "source_bytes": weights + 50_000,
        "weight_bytes": weights,
        "quantizable_weight_bytes": weights,
        "embedding_weight_bytes": 0,
        "layers": found,
        "samples": 300,
        "measured_samples": 100,
        "has_labels": False,
        "synthetic_samples": False,
        "accuracy": None,
        "latency_p50_ms": 10.0,
        "memory_bytes": 200_000_000,
        "tool_versions": {"onnx": "1.23"},
        "other_bytes": 50_000,
    }
    return ModelFacts(**fields | changes)


def _layer(name: str, sensitive: float) -> LayerFacts:
    parameters = 1_000_000
    formats = {
        kind: FormatFacts(
            size_bytes=int(parameters * bits / 8),
            memory_bytes=int(parameters * bits / 8),
            error=loss,
            loss=loss * sensitive,
        )
        for kind, (bits, loss) in FORMATS.items()
    }
    return LayerFacts(
        name=name,
        operator="MatMul",
        parameters=parameters,
        quantizable=True,
        weight=f"{name}.weight",
        shape=[1000, 1000],
        rows=48.0,
        formats=formats,
    )


def make_class(tenant: Any, name: str = "entry", **changes: Any) -> DeviceClass:
    """A class as an operator saves it: by default every device with less than 4 GB."""
    fields: dict[str, Any] = {
        "filter": "ram_mb < 4096",
        "accelerator": "cpu",
        "execution_provider": "CPUExecutionProvider",
        "precisions": ["int4", "int8-dynamic"],
        "memory_bytes": 400_000_000,
        "storage_bytes": 1_000_000_000,
        "quality_floor": 0.9,
    }
    return save_device_class(tenant=tenant, name=name, actor=ACTOR, **fields | changes)


def make_release(app: App, class_names: Iterable[str], *, model: str = "minilm", number: int = 1) -> Release:
    """A published release of one version with one ready build per class."""
    tenant = app.tenant
    row, _ = Model.objects.get_or_create(tenant=tenant, name=model, defaults={"app": app})
    version = ModelVersion.objects.create(tenant=tenant, model=row, number=number, state="ready")
    release = Release.objects.create(tenant=tenant, version=version, number=1, state="published")
    for name in class_names:
        build = Build.objects.create(
            tenant=tenant,
            version=version,
            recipe_digest=sha256_hex(name.encode()),
            plan={},
            precision="int8-dynamic",
            state="ready",
        )
        manifest = f"manifest of {build.pk}".encode()
        ReleaseEntry.objects.create(
            tenant=tenant,
            release=release,
            class_name=name,
            build=build,
            target_path=f"builds/{build.pk}/manifest.json",
            manifest_sha256=sha256_hex(manifest),
            manifest_length=len(manifest),
        )
    return release


def make_devices(
    tenant: Any, count: int, *, class_name: str, enrolled_at: datetime | None = None, **columns: Any
) -> list[Device]:
    """Accepted devices of a class, as if they had reported long ago."""
    devices = Device.objects.bulk_create(
        Device(
            tenant=tenant,
            name=f"{class_name}-{index}",
            public_key=uuid.uuid4().hex,
            state="accepted",
            class_name=class_name,
            **columns,
        )
        for index in range(count)
    )
    if enrolled_at is not None:
        Device.objects.filter(pk__in=[device.pk for device in devices]).update(enrolled_at=enrolled_at)
    return list(Device.objects.filter(pk__in=[device.pk for device in devices]).order_by("pk"))


def seen(device: Device, at: datetime) -> None:
    """The device was heard of at that time."""
    DeviceSeen.objects.update_or_create(
        device=device, defaults={"tenant_id": device.tenant_id, "last_seen_at": at}
    )


def capability_report(**changes: Any) -> CapabilityReport:
    """What a small phone says of itself."""
    fields: dict[str, Any] = {
        "soc": "test-soc-1",
        "ram_mb": 3072,
        "storage_free_mb": 8000,
        "os": "android",
        "os_version": "14",
        "runtime": "onnxruntime",
        "runtime_version": "1.32.0",
        "agent_version": "0.1.0",
        "accelerators": [
            Accelerator(
                name="cpu",
                kind="cpu",
                execution_provider="CPUExecutionProvider",
                data_types=["float32", "int8"],
                fp32_gflops=12.5,
                int8_gops=40.0,
            )
        ],
    }
    return CapabilityReport(**fields | changes)


def self_test(*, passed: bool = True, emulated: bool = False) -> SelfTest:
    return SelfTest(
        passed=passed,
        provider="CPUExecutionProvider",
        emulated=emulated,
        min_cosine=0.99 if passed else 0.4,
        latency_p50_ms=7.5,
    )


def install_event(at: datetime, offer: Any, state: str, **fields: Any) -> InstallEvent:
    """An event of the device that got ``offer`` (an AssignedModel)."""
    return InstallEvent(
        at=at.timestamp(),
        rollout=offer.rollout,
        model=offer.model,
        version=offer.version,
        build=offer.build,
        state=state,  # type: ignore[arg-type]
        **fields,
    )


def inference(build: uuid.UUID, at: datetime, *, latency_ms: float, requests: int = 10) -> InferenceAggregate:
    """A window in which every request took ``latency_ms``."""
    bounds = [*LATENCY_BUCKET_BOUNDS_MS, float("inf")]
    index = next(i for i, bound in enumerate(bounds) if latency_ms <= bound)
    buckets = [0] * len(bounds)
    buckets[index] = requests
    return InferenceAggregate(
        at=at.timestamp(),
        window_s=10.0,
        build=str(build),
        provider="CPUExecutionProvider",
        emulated=False,
        requests=requests,
        errors=1,
        latency_buckets=buckets,
        latency_sum_ms=latency_ms * requests,
    )


@dataclass
class DeviceKey:
    """A device's Ed25519 key and the messages it signs, as the agent makes them."""

    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    @property
    def public(self) -> str:
        raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
        return b64(self.private.public_key().public_bytes(*raw))

    def enrolment(self, nonce: str, *, provisioning_key: str, server: str, **changes: Any) -> dict[str, Any]:
        payload = enrolment_payload(nonce=nonce, public_key=self.public, server=server)
        return {
            "public_key": self.public,
            "nonce": nonce,
            "provisioning_key": provisioning_key,
            "signature": b64(self.private.sign(payload)),
            "name": "phone",
        } | changes

    def token(self, nonce: str, *, device: str, server: str, **changes: Any) -> dict[str, Any]:
        payload = token_payload(nonce=nonce, device=device, server=server)
        signature = b64(self.private.sign(payload))
        return {"device": device, "nonce": nonce, "signature": signature} | changes
