"""Errors of devices, their classes and their identity.

::

    FleetError
    ├── FilterError              400  invalid_filter          with ``column``
    ├── InvalidDeviceClass       400  invalid_device_class    with ``field``
    ├── InvalidCapabilities      400  invalid_capabilities    with ``field``
    ├── EnrolmentRefused         403  nonce_invalid, signature_invalid, provisioning_key_invalid
    ├── DeviceBelongsElsewhere   409  device_belongs_elsewhere
    ├── TokenInvalid             401  token_invalid, token_expired, token_revoked
    ├── DeviceNotAccepted        403  device_pending, device_rejected, device_decommissioned
    └── DeviceStateConflict      409  device_state
"""

from __future__ import annotations

from fleet.errors import NotAllowed, NotAuthenticated, Refused, StateConflict


class FilterError(Refused):
    """A device filter that cannot be used.

    Args:
        detail: what is wrong, and what is possible instead.
        column: where, counted from 1.
    """

    code = "invalid_filter"
    title = "The device filter is not valid"

    def __init__(self, detail: str, *, column: int = 1) -> None:
        super().__init__(f"{detail} (column {column})", column=column)
        self.column = column


class InvalidDeviceClass(Refused):
    code = "invalid_device_class"
    title = "The device class is not valid"


class InvalidCapabilities(Refused):
    code = "invalid_capabilities"
    title = "The capability report is not valid"


class EnrolmentRefused(NotAllowed):
    title = "The device could not prove who it is"


class DeviceBelongsElsewhere(StateConflict):
    code = "device_belongs_elsewhere"
    title = "The device belongs to another tenant"


class TokenInvalid(NotAuthenticated):
    title = "The device's token is not valid"


class DeviceNotAccepted(NotAllowed):
    title = "The device is not accepted"


class DeviceStateConflict(StateConflict):
    code = "device_state"
