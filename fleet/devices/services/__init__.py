"""The only writers of devices: enrolment, inventory, classes and provisioning keys."""

from fleet.devices.services.classes import (
    delete_device_class,
    draft_device_class,
    reclassify,
    save_device_class,
)
from fleet.devices.services.enrolment import enroll, issue_nonce, issue_token
from fleet.devices.services.inventory import (
    accept_device,
    declare_figure,
    decommission_device,
    note_seen,
    reject_device,
    store_capabilities,
)
from fleet.devices.services.keys import create_provisioning_key, revoke_provisioning_key

__all__ = [
    "accept_device",
    "create_provisioning_key",
    "declare_figure",
    "decommission_device",
    "delete_device_class",
    "draft_device_class",
    "enroll",
    "issue_nonce",
    "issue_token",
    "note_seen",
    "reclassify",
    "reject_device",
    "revoke_provisioning_key",
    "save_device_class",
    "store_capabilities",
]
