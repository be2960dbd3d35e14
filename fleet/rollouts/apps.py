"""Rollouts follow what happens to devices: a change of class changes what is desired."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig


class RolloutsConfig(AppConfig):
    name = "fleet.rollouts"

    def ready(self) -> None:
        from fleet.devices.signals import devices_changed

        devices_changed.connect(_devices_changed, dispatch_uid="rollouts.generation")


def _devices_changed(*, tenant: Any, **_: Any) -> None:
    from fleet.rollouts.services import bump_generation

    bump_generation(tenant)
