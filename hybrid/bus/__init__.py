"""How an event gets its place in the log and reaches every instance.

A bus owns positions: it alone appends to the log, and it rings the hub's doorbell when it has.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from hybrid.events import Cursor, Event
from hybrid.log import Log


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of an emit: `stored` is `log` (with its cursor) or `outbox` (without)."""

    id: str
    stored: Literal["log", "outbox"]
    cursor: Cursor | None


class Bus(Protocol):
    """What the rest of the package asks of a bus."""

    log: Log

    @property
    def state(self) -> Literal["ok", "degraded"]:
        """Whether the shared log is in reach."""
        ...

    def publish(self, event: Event) -> Receipt:
        """Store the event, or say that it could not be: never a success for what is lost."""
        ...
