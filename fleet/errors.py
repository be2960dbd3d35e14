"""The control plane's own error tree.

::

    tenancy.errors.ProblemError
    └── FleetError                500  internal
        ├── Refused               400  refused            the request's content is at fault
        ├── NotAuthenticated      401  token_invalid
        ├── NotAllowed            403  not_allowed
        ├── Missing               404  not_found
        ├── WrongMethod           405  method_not_allowed
        ├── StateConflict         409  state_conflict     not in this state; the state is named
        ├── TooLarge              413  body_too_large
        └── ProtocolUnsupported   426  protocol_unsupported

``fleet.devices.errors`` and ``fleet.rollouts.errors`` grow their own from these. Every detail
says what to do next.
"""

from __future__ import annotations

from tenancy.errors import ProblemError


class FleetError(ProblemError):
    """Base of the control plane's errors."""


class Refused(FleetError):
    code = "refused"
    title = "The request cannot be used as it is"
    status = 400


class NotAuthenticated(FleetError):
    code = "token_invalid"
    title = "The device is not authenticated"
    status = 401


class NotAllowed(FleetError):
    code = "not_allowed"
    title = "Not allowed"
    status = 403


class Missing(FleetError):
    code = "not_found"
    title = "Not found"
    status = 404


class WrongMethod(FleetError):
    code = "method_not_allowed"
    title = "Method not allowed"
    status = 405


class StateConflict(FleetError):
    code = "state_conflict"
    title = "Not possible in the current state"
    status = 409


class TooLarge(FleetError):
    code = "body_too_large"
    title = "The body is too large"
    status = 413


class ProtocolUnsupported(FleetError):
    code = "protocol_unsupported"
    title = "Protocol version not supported"
    status = 426
