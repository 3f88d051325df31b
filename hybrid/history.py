"""What an identity may still read of the log: for pages rendered with the events behind them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import overload

from hybrid.audience import Identity
from hybrid.bus import begin
from hybrid.events import Event
from hybrid.instance import Instance
from hybrid.log import Reading

MAX_HISTORY = 1000
HISTORY_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class History(Sequence[Event]):
    """Events as `events_for` found them, oldest first, with the position they lead to.

    `gap` names the reason when `since` could not be replayed in full; `more` says that the
    limit cut the list, and that `cursor` is where to go on.
    """

    events: tuple[Event, ...]
    cursor: str
    gap: str | None = None
    more: bool = False

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | Sequence[Event]:
        return self.events[index]

    def __len__(self) -> int:
        return len(self.events)


def read_history(
    instance: Instance,
    identity: Identity,
    since: str | None,
    topics: Collection[str],
    limit: int,
) -> History:
    """See `Hybrid.events_for`."""
    instance.hub.readers.expire()
    start, pending = begin(instance.bus, "0" if since is None else since, max_replay=None)
    if pending is not None:
        return History((), pending, None, False)  # until somebody can say what has followed
    log = instance.log
    granted, limit, size = frozenset(topics), max(1, limit), 0
    found: list[Event] = []
    reading = Reading((), start.cursor, paused=True)
    while reading.paused and len(found) < limit and size < HISTORY_BYTES:
        if found or reading.cursor is not start.cursor:
            instance.hub.pause()
        reading = log.read(
            reading.cursor.offset,
            log.last,
            lambda event: event.audience.admits(identity, granted),
            max_events=limit - len(found),
            max_bytes=HISTORY_BYTES - size,
        )
        found += [entry.event for entry in reading.entries]
        size += sum(len(entry.frame) for entry in reading.entries)
    return History(
        tuple(found),
        str(reading.cursor),
        "overflow" if reading.overflow else start.gap,
        reading.cursor.offset < log.last,
    )
