"""Errors of telemetry.

::

    FleetError
    └── InvalidReport   400  invalid_report   with ``event``, the index in the batch
"""

from __future__ import annotations

from fleet.errors import Refused


class InvalidReport(Refused):
    code = "invalid_report"
    title = "The report is not valid"
