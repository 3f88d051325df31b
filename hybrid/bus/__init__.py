"""How an event gets its place in the log and reaches every instance.

A bus owns positions: it alone appends to the log, and it rings the hub's doorbell when it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from hybrid.events import Cursor, Event
from hybrid.log import Log, Start


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of an emit: `stored` is `log` (with its cursor) or `outbox` (without)."""

    id: str
    stored: Literal["log", "outbox"]
    cursor: Cursor | None


class Local(Protocol):
    """What a bus asks of the instance that it serves: the hub."""

    def ring(self) -> None:
        """There is something new in the log."""

    def swap(self, log: Log, reason: str) -> None:
        """The shared log is another one now; `reason` is what connections are told."""

    def provisional(self, event: Event) -> None:
        """Hand out an event that could not be stored yet."""

    def seal(self) -> None:
        """What is provisional is about to be stored: no more of it comes."""

    def settle(self) -> None:
        """The log can judge every cursor again."""

    def announce(self, state: str, since: int) -> None:
        """Tell clients how the bus is; `since` is Unix milliseconds."""

    def control(self, event: Event) -> None:
        """Do what one of the protocol's own events asks for."""


class Bus(Protocol):
    """What the rest of the package asks of a bus."""

    log: Log
    trouble: str
    """Why it is degraded; empty while it is ok."""
    deaf: bool
    """Whether what is published does not arrive here."""

    @property
    def waiting(self) -> int:
        """Events that are kept until they can be stored."""
        ...

    def start(self, patience: float) -> None:
        """Begin; returns when the log is here, after `patience` seconds at the latest."""

    def stop(self) -> None:
        """End what `start` began."""

    @property
    def state(self) -> Literal["ok", "degraded"]:
        """Whether the shared log is in reach."""
        ...

    def publish(self, events: Sequence[Event]) -> list[Receipt]:
        """Store the events, all or none, or say that they could not be.

        An event whose id the log holds already stays as it is. Raises `OutboxFull` when it can
        be neither stored nor kept.
        """
        ...


def begin(bus: Bus, since: str | None, *, max_replay: int | None) -> tuple[Start, str | None]:
    """Where a client begins, and its cursor again if that cannot be judged now.

    While the shared log is out of reach, a cursor that is not in this process's copy may well be
    in the log: another process may have seen more of it. What follows for the client is decided
    when the log is back.
    """
    start = bus.log.resolve(since, max_replay=max_replay)
    if bus.state == "degraded" and start.gap in ("epoch", "rollback", "forked"):
        return Start(bus.log.head), since
    return start, None
