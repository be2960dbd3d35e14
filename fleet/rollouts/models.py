"""Rollouts, their groups and tracks, and what each device was assigned."""

from __future__ import annotations

import uuid

from django.db import models

from fleet.devices.models import Device
from models_registry.models import Build, ModelVersion, Release
from tenancy.models import Tenant, TenantOwned


class Rollout(TenantOwned):
    """A release to devices that match a filter, under a policy. Transitions: ``lifecycle``."""

    class State(models.TextChoices):
        DRAFT = "draft"
        RUNNING = "running"
        PAUSED = "paused"
        FINISHED = "finished"
        ROLLED_BACK = "rolled_back"
        CANCELLED = "cancelled"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=100)
    release = models.ForeignKey(Release, on_delete=models.PROTECT, related_name="rollouts")
    model_name = models.SlugField(max_length=63)  # of the release's model
    filter = models.TextField(blank=True)  # "" = every accepted device
    policy = models.JSONField()  # fleet.rollouts.decision.Policy
    salt = models.CharField(max_length=32)
    state = models.CharField(max_length=16, choices=State.choices, default=State.DRAFT)
    reason = models.TextField(blank=True)
    order = models.PositiveIntegerField(default=0)  # per tenant, rising; the newest wins per model
    created_by = models.CharField(max_length=100, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [models.Index(fields=["tenant", "state"], name="rollout_state")]

    def __str__(self) -> str:
        return self.name


class RolloutGroup(TenantOwned):
    """A step of the rollout: the share of each class's devices that may have the release."""

    rollout = models.ForeignKey(Rollout, on_delete=models.CASCADE, related_name="groups")
    index = models.PositiveIntegerField()
    share = models.FloatField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["rollout", "index"], name="group_index")]


class RolloutTrack(TenantOwned):
    """One class's way through a rollout: only the class that is bad pauses.

    A device is in when its cohort value (a hash of salt and device, in [0, 1)) is below
    ``threshold``: a rule, not rows, so that opening a group is one UPDATE.
    """

    class State(models.TextChoices):
        WAITING = "waiting"
        RUNNING = "running"
        SOAKING = "soaking"
        PAUSED = "paused"
        ROLLED_BACK = "rolled_back"
        FINISHED = "finished"

    rollout = models.ForeignKey(Rollout, on_delete=models.CASCADE, related_name="tracks")
    class_name = models.SlugField(max_length=63)
    build = models.ForeignKey(Build, on_delete=models.PROTECT, related_name="+")
    state = models.CharField(max_length=16, choices=State.choices, default=State.WAITING)
    group_index = models.IntegerField(default=-1)  # -1: no group open yet
    threshold = models.FloatField(default=0.0)
    group_opened_at = models.DateTimeField(null=True)
    soaking_since = models.DateTimeField(null=True)
    reason = models.TextField(blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["rollout", "class_name"], name="track_class")]


class Assignment(TenantOwned):
    """A device's part in a rollout; the row appears when the device acts."""

    class State(models.TextChoices):
        OFFERED = "offered"
        DOWNLOADING = "downloading"
        VERIFYING = "verifying"
        STAGED = "staged"
        TESTING = "testing"
        ACTIVE = "active"
        FAILED = "failed"
        ROLLED_BACK = "rolled_back"
        EXPIRED = "expired"

    device = models.ForeignKey(Device, on_delete=models.CASCADE, related_name="assignments")
    rollout = models.ForeignKey(Rollout, on_delete=models.CASCADE, related_name="assignments")
    class_name = models.SlugField(max_length=63)
    version = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="+")
    build = models.ForeignKey(Build, on_delete=models.PROTECT, related_name="assignments")
    state = models.CharField(max_length=16, choices=State.choices, default=State.OFFERED)
    waiting = models.CharField(max_length=16, blank=True)  # why not yet
    failure = models.CharField(max_length=32, blank=True)
    self_test = models.JSONField(null=True)
    downloaded_bytes = models.BigIntegerField(default=0)
    reused_bytes = models.BigIntegerField(default=0)
    offered_at = models.DateTimeField(auto_now_add=True)
    changed_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["device", "rollout"], name="assignment_device")]
        indexes = [
            models.Index(fields=["rollout", "class_name", "state"], name="assignment_counts"),
        ]


class AssignmentEvent(TenantOwned):
    """A state that an assignment reached: a row per event, counts are derived."""

    assignment = models.ForeignKey(Assignment, on_delete=models.CASCADE, related_name="events")
    state = models.CharField(max_length=16)
    waiting = models.CharField(max_length=16, blank=True)
    failure = models.CharField(max_length=32, blank=True)
    at = models.DateTimeField()


class RolloutDecision(TenantOwned):
    """What was decided for a track, with the reason in words and the evidence it rests on."""

    rollout = models.ForeignKey(Rollout, on_delete=models.CASCADE, related_name="decisions")
    class_name = models.SlugField(max_length=63)
    action = models.CharField(max_length=16)
    reason = models.TextField()
    evidence = models.JSONField()
    at = models.DateTimeField(auto_now_add=True)


class DesiredGeneration(models.Model):
    """The number that rises whenever anything changes what devices of a tenant should run."""

    tenant = models.OneToOneField(Tenant, on_delete=models.CASCADE, primary_key=True, related_name="+")
    generation = models.PositiveBigIntegerField(default=1)


class SignedAssignment(TenantOwned):
    """A device's current signed assignment; signed anew only when its content changes."""

    device = models.OneToOneField(
        Device, on_delete=models.CASCADE, primary_key=True, related_name="signed_assignment"
    )
    sequence = models.PositiveBigIntegerField()
    content_digest = models.CharField(max_length=64)
    envelope = models.BinaryField()
    expires_at = models.DateTimeField()
