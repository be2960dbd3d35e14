"""What happens to devices, for the layers above that this one may not import."""

from __future__ import annotations

from django.dispatch import Signal

# Sent with ``tenant`` inside the transaction that moved devices to another class or state.
devices_changed = Signal()
