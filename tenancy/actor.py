"""Who acts: recorded in the audit log beside everything that a service changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ActorKind = Literal["user", "token", "device", "system"]


@dataclass(frozen=True, slots=True)
class Actor:
    """A user, an API token, a device or the system itself.

    Args:
        kind: what acts.
        name: user name, token prefix, device id or part of the system; at most 100 characters.
        label: what people read instead of the name, where that says little.
    """

    kind: ActorKind
    name: str
    label: str = ""

    @property
    def shown(self) -> str:
        return self.label or self.name

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


SYSTEM = Actor(kind="system", name="pocketfleet")
