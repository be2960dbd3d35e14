"""Models, their versions, builds and releases."""

from __future__ import annotations

import uuid
from typing import Any

from django.db import models

from tenancy.models import App, TenantOwned


class Work(TenantOwned):
    """What a worker does: its attempts, its lease, and how far it is."""

    attempt = models.PositiveIntegerField(default=0)
    starts = models.PositiveIntegerField(default=0)  # attempts that a worker really began
    enqueued_at = models.DateTimeField(null=True)  # the current attempt
    queue = models.CharField(max_length=32, blank=True, default="", db_default="")
    lease_expires_at = models.DateTimeField(null=True)
    step = models.CharField(max_length=40, blank=True)
    step_began_at = models.DateTimeField(null=True)
    share = models.FloatField(default=0.0)
    worker = models.CharField(max_length=100, blank=True, default="", db_default="")

    class Meta:
        abstract = True


class Model(TenantOwned):
    """A named model of an app. Aliases point at versions (as in MLflow: aliases, not stages)."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    app = models.ForeignKey(App, on_delete=models.PROTECT, related_name="models")
    name = models.SlugField(max_length=63)
    description = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["tenant", "name"], name="model_name")]

    def __str__(self) -> str:
        return self.name


class ModelVersion(Work):
    """One upload of a model. Transitions: :mod:`models_registry.lifecycle`.

    Its work is the inspection. While ``batches`` of it are under way it has no lease of its own.
    """

    class State(models.TextChoices):
        UPLOADING = "uploading"
        CHECKING = "checking"
        READY = "ready"
        REFUSED = "refused"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    model = models.ForeignKey(Model, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    state = models.CharField(max_length=16, choices=State.choices, default=State.UPLOADING)
    refusal_code = models.CharField(max_length=40, blank=True)
    refusal_message = models.TextField(blank=True)
    source_digest = models.CharField(max_length=64, blank=True)
    facts = models.JSONField(null=True)  # quantize_worker.contract.ModelFacts
    lineage = models.JSONField(default=dict)
    created_by = models.CharField(max_length=100, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    completed_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["model", "number"], name="version_number")]

    def __str__(self) -> str:
        return f"{self.model.name} v{self.number}"


class VersionFile(TenantOwned):
    """A file of an upload, announced with size and digest, received in parts, then complete."""

    class Role(models.TextChoices):
        MODEL = "model"
        EVALUATION = "evaluation"
        CALIBRATION = "calibration"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="files")
    role = models.CharField(max_length=16, choices=Role.choices)
    path = models.CharField(max_length=255)
    size_bytes = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    received_bytes = models.BigIntegerField(default=0)
    complete = models.BooleanField(default=False)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["version", "path"], name="file_path")]


class CandidateBatch(Work):
    """Some layers of a large model whose candidates are made by a task of their own.

    ``found`` is what the worker answered, until all batches have and the version's facts take it.
    """

    class State(models.TextChoices):
        PLANNED = "planned"
        BUILDING = "building"
        READY = "ready"
        FAILED = "failed"
        CANCELLED = "cancelled"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="batches")
    number = models.PositiveIntegerField()
    layers = models.JSONField()  # names
    state = models.CharField(max_length=16, choices=State.choices, default=State.PLANNED)
    found = models.JSONField(null=True)  # {"layers": list of LayerFacts, "analysis": Blob}
    error_code = models.CharField(max_length=40, blank=True)
    error_message = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["version", "number"], name="batch_number")]
        indexes = [models.Index(fields=["state", "lease_expires_at"], name="batch_lease")]

    def __str__(self) -> str:
        return f"batch {self.number} of {self.version}"


class UploadPart(TenantOwned):
    """A contiguous piece of a file that has been received and stored under a staging key."""

    file = models.ForeignKey(VersionFile, on_delete=models.CASCADE, related_name="parts")
    offset = models.BigIntegerField()
    size_bytes = models.BigIntegerField()
    key = models.CharField(max_length=200)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["file", "offset"], name="part_offset")]


class Alias(TenantOwned):
    """A movable name of a version, e.g. ``champion``."""

    model = models.ForeignKey(Model, on_delete=models.CASCADE, related_name="aliases")
    name = models.SlugField(max_length=63)
    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="aliases")
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["model", "name"], name="alias_name")]


class Build(Work):
    """A model version made by one recipe. Classes with equal plans share it.

    ``unverified``: there was no evaluation set, so it was measured on generated inputs only.
    """

    class State(models.TextChoices):
        PLANNED = "planned"
        BUILDING = "building"
        READY = "ready"
        REJECTED = "rejected"  # below every asking class's quality floor; the figures are kept
        FAILED = "failed"
        CANCELLED = "cancelled"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="builds")
    recipe_digest = models.CharField(max_length=64)
    plan = models.JSONField()  # quantize_worker.contract.TailorPlan, of the class that asked first
    precision = models.CharField(max_length=16)  # of most weights
    description = models.TextField(blank=True, default="", db_default="")  # the mix of formats in words
    state = models.CharField(max_length=16, choices=State.choices, default=State.PLANNED)
    quality = models.JSONField(null=True)  # quantize_worker.contract.QualityReport
    unverified = models.BooleanField(default=False, db_default=False)
    error_code = models.CharField(max_length=40, blank=True)
    error_message = models.TextField(blank=True)
    fault = models.CharField(max_length=8, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["version", "recipe_digest"], name="build_recipe")]
        indexes = [models.Index(fields=["state", "lease_expires_at"], name="build_lease")]

    def __str__(self) -> str:
        return f"{self.precision} build of {self.version}"


class Artifact(TenantOwned):
    """What a build produced: the manifest that becomes its TUF target."""

    build = models.OneToOneField(Build, on_delete=models.CASCADE, related_name="artifact", primary_key=True)
    manifest = models.BinaryField()  # canonical JSON, device_agent.protocol.manifest.Manifest
    manifest_sha256 = models.CharField(max_length=64)
    size_bytes = models.BigIntegerField()
    download_bytes = models.BigIntegerField()
    memory_bytes = models.BigIntegerField()
    latency_p50_ms = models.FloatField()
    created_at = models.DateTimeField(auto_now_add=True)


class TenantBlob(TenantOwned):
    """A tenant's claim on a stored blob: what its devices may download, what may not be collected."""

    sha256 = models.CharField(max_length=64)
    size_bytes = models.BigIntegerField()
    build = models.ForeignKey(Build, on_delete=models.CASCADE, related_name="blobs")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["tenant", "sha256", "build"], name="blob_claim")]


class Tailoring(TenantOwned):
    """A version for one device class: the ordered candidates and how far they have got.

    ``target`` is a snapshot of the class (quantize_worker.contract.Target) with the speed that its
    devices had measured when it was planned; there is no key into fleet. ``history`` lists what
    became of each candidate tried, with figures. ``front`` is drawn soon after planning.
    """

    class State(models.TextChoices):
        BUILDING = "building"
        READY = "ready"
        IMPOSSIBLE = "impossible"  # no candidate left; ``reason`` says why

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="tailorings")
    class_name = models.SlugField(max_length=63)
    target = models.JSONField()
    target_digest = models.CharField(max_length=64)
    candidates = models.JSONField(default=list)  # list of TailorPlan
    position = models.PositiveIntegerField(default=0)
    state = models.CharField(max_length=16, choices=State.choices, default=State.BUILDING)
    reason = models.TextField(blank=True)
    build = models.ForeignKey(Build, null=True, on_delete=models.SET_NULL, related_name="tailorings")
    history = models.JSONField(default=list)
    created_at = models.DateTimeField(auto_now_add=True)
    planned_at = models.DateTimeField(null=True)
    planned_ms = models.FloatField(null=True)  # what planning took
    replans = models.PositiveIntegerField(default=0, db_default=0)  # with measured figures, since planned_at
    learned = models.BooleanField(default=False, db_default=False)  # learned rounding of INT4 weights
    latencies = models.JSONField(null=True)  # ms that devices of the class reported, by build
    nearest = models.JSONField(null=True)  # what would fit, where nothing does
    front = models.JSONField(null=True)  # list of ParetoPoint; null: not drawn yet

    class Meta:
        constraints = [models.UniqueConstraint(fields=["version", "class_name"], name="tailoring_class")]

    @property
    def plan(self) -> dict[str, Any] | None:
        """The candidate that is built or taken, a TailorPlan; None where none is left."""
        return self.candidates[self.position] if self.position < len(self.candidates) else None


class Release(TenantOwned):
    """The signed set of builds of one version, one per class that can carry it."""

    class State(models.TextChoices):
        SIGNING = "signing"
        PUBLISHED = "published"
        FAILED = "failed"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    version = models.ForeignKey(ModelVersion, on_delete=models.CASCADE, related_name="releases")
    number = models.PositiveIntegerField()  # per version
    state = models.CharField(max_length=16, choices=State.choices, default=State.SIGNING)
    error = models.TextField(blank=True)
    created_by = models.CharField(max_length=100, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    published_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["version", "number"], name="release_number")]

    def __str__(self) -> str:
        return f"{self.version} r{self.number}"


class ReleaseEntry(TenantOwned):
    """A class's part in a release: its build, or the reason why it has none."""

    release = models.ForeignKey(Release, on_delete=models.CASCADE, related_name="entries")
    class_name = models.SlugField(max_length=63)
    build = models.ForeignKey(Build, null=True, on_delete=models.PROTECT, related_name="release_entries")
    reason = models.TextField(blank=True)
    target_path = models.CharField(max_length=200, blank=True)
    manifest_sha256 = models.CharField(max_length=64, blank=True)
    manifest_length = models.PositiveIntegerField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["release", "class_name"], name="entry_class")]


class TufMetadata(TenantOwned):
    """A version of a role's signed metadata; published in the transaction that changes it."""

    role = models.CharField(max_length=64)  # root, timestamp, snapshot, targets, bins-00 … bins-ff
    version = models.PositiveIntegerField()
    body = models.BinaryField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["tenant", "role", "version"], name="tuf_version")]


class TufTarget(TenantOwned):
    """A target file's content, served as ``targets/<sha256>.<name>``."""

    path = models.CharField(max_length=200)
    sha256 = models.CharField(max_length=64)
    body = models.BinaryField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["tenant", "path", "sha256"], name="tuf_target")]
