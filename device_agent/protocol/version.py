"""Protocol version and the rule for working together across versions."""

PROTOCOL_VERSION = 1
PROTOCOL_HEADER = "Pocketfleet-Protocol"


def compatible(*, own: int, peer: int) -> bool:
    """Whether two sides may talk: their versions differ by at most one.

    Args:
        own: this side's protocol version.
        peer: the version named in the other side's ``Pocketfleet-Protocol`` header.
    """
    return abs(own - peer) <= 1
