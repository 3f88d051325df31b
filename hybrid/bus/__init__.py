"""How an event gets its place in the log and reaches every instance.

A bus owns positions: it alone appends to the log, and it rings the hub's doorbell when it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from hybrid.events import Cursor, Event
from hybrid.log import UNHEARD, Log, Start


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of an emit: `stored` is `log` (with its cursor) or `outbox` (without).

    `replicas` is how many copies of the log had it a moment later, where that was asked.
    """

    id: str
    stored: Literal["log", "outbox"]
    cursor: Cursor | None
    replicas: int | None = None


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

    @property
    def log(self) -> Log:
        """This process's copy of the log, or the log itself."""
        ...

    @property
    def trouble(self) -> str:
        """Why it is degraded, and what to do about it; empty while it is ok."""
        ...

    @property
    def headline(self) -> str:
        """Why it is degraded, in words that anybody may read: not where Redis is."""
        ...

    @property
    def deaf(self) -> bool:
        """Whether what is published does not arrive here."""
        ...

    @property
    def waiting(self) -> int:
        """Events that are kept until they can be stored."""
        ...

    def start(self, patience: float) -> None:
        """Begin; returns when the log is here, after `patience` seconds at the latest."""

    def stop(self) -> None:
        """End what `start` began; returns when it has ended, or after a few seconds."""

    @property
    def state(self) -> Literal["ok", "degraded"]:
        """Whether the shared log is in reach."""
        ...

    def refresh(self) -> bool:
        """See to it that `log` has all that was stored before this call; False if it cannot."""
        ...

    def held(self, id: str) -> Event | None:
        """The event with this id, where it is in this process's log or waits to be stored."""
        ...

    def flush(self, timeout: float) -> int:
        """Have everything stored that waits; returns after `timeout` seconds at the latest.

        How many events are left.
        """
        ...

    def publish(self, events: Sequence[Event], *, replicas: int = 0) -> list[Receipt]:
        """Store the events, all or none, or say that they could not be.

        With `replicas`, wait a moment for so many copies of the log to have them, and say how
        many do: fewer is no failure.
        An event whose id the log holds already stays as it is. Raises `OutboxFull` when it can
        be neither stored nor kept.
        """
        ...


def begin(bus: Bus, since: str | None, *, max_replay: int | None) -> tuple[Start, str | None]:
    """Where a client begins, and its cursor again if that cannot be judged now.

    A cursor that is not in this process's copy of the log may well be in the log itself: another
    process was a moment faster. So the log is asked; and while that is out of reach, what
    follows for the client is decided when it is back.
    """
    start = bus.log.resolve(since, max_replay=max_replay)
    if start.gap not in UNHEARD:
        return start, None
    if bus.refresh():
        return bus.log.resolve(since, max_replay=max_replay), None
    return Start(bus.log.head), since


def settle_late(bus: Bus, local: Local, start: Start) -> None:
    """For a client that has just been taken in: the way back may have ended a moment before.

    Who comes earlier, or later, is settled with all others.
    """
    if start.pending and bus.state == "ok" and bus.refresh():
        local.settle()
