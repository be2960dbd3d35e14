"""The generation of a tenant's desired state: devices look again when it has risen."""

from __future__ import annotations

from django.db.models import F

from fleet.rollouts.models import DesiredGeneration
from tenancy.models import Tenant


def bump_generation(tenant: Tenant) -> None:
    """Raise the generation. Called in the transaction of the change; locks it until commit."""
    DesiredGeneration.objects.bulk_create([DesiredGeneration(tenant=tenant)], ignore_conflicts=True)
    DesiredGeneration.objects.filter(tenant=tenant).update(generation=F("generation") + 1)
