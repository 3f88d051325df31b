"""What waits for Redis while it is away: events in order, by id, bounded by count and by bytes.

So is what of them is provisional: clients are given no event that is not kept here.
"""

import itertools
import sys
from collections.abc import Iterable, Sequence

from hybrid.errors import OutboxFull
from hybrid.events import CONTROL, Event

BATCH = 200
"""Events in one call, which occupies Redis for some milliseconds then."""
BATCH_BYTES = 1 << 16
"""Bytes in one call, which has to be through a thin line within the timeout."""
ENVELOPE = 200
"""About what an event takes beside its body."""
CONTROL_ROOM = 1000
"""Places behind a full outbox for the protocol's own events: a logout has to come through."""


def size(events: Iterable[Event]) -> int:
    """About how many bytes a call with these events has."""
    return sum(len(event.body) + ENVELOPE for event in events)


def load(lists: Iterable[Sequence[Event]], room: int = BATCH_BYTES) -> int:
    """How many of these lists go into one call: one at least."""
    count = events = 0
    for each in lists:
        events += len(each)
        room -= size(each)
        if count and (events > BATCH or room < 0):
            break
        count += 1
    return count


def weight(event: Event) -> int:
    """About how many bytes of memory it takes: as it is, and as each transport sends it."""
    return ENVELOPE + sys.getsizeof(event.body) + 3 * len(event.body.encode())


class Outbox:
    """See the module's docstring. Not locked: the bus' lock guards it."""

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._bytes = 0
        self._events: dict[str, Event] = {}
        self._shown: set[str] = set()
        """Ids of those that clients have had already."""
        self._room = BATCH_BYTES

    def __len__(self) -> int:
        return len(self._events)

    def __contains__(self, id: str) -> bool:
        return id in self._events

    def get(self, id: str) -> Event | None:
        """The event with this id, if it waits."""
        return self._events.get(id)

    def require_room(self, events: Sequence[Event]) -> None:
        """Raise `OutboxFull` where there is none for these."""
        room, max_bytes = self._max_events, self._max_bytes
        if all(event.type.startswith(CONTROL) for event in events):
            # They are short: their number is bound enough.
            room, max_bytes = room + CONTROL_ROOM, sys.maxsize
        if len(self._events) + len(events) > room:
            raise OutboxFull(
                f"Redis is away; {len(self._events)} events wait for it, and no more than"
                f" {room} may"
            )
        if self._bytes + sum(map(weight, events)) > max_bytes:
            raise OutboxFull(
                f"Redis is away; events of {self._bytes} bytes wait for it, and no more than"
                f" {max_bytes} may"
            )

    def add(self, event: Event, *, shown: bool) -> None:
        """`shown`: clients are given it before it is stored."""
        self._events[event.id] = event
        self._bytes += weight(event)
        if shown:
            self._shown.add(event.id)

    def drop(self, events: Iterable[Event]) -> None:
        """They are stored, or never will be."""
        for event in events:
            kept = self._events.pop(event.id, None)
            if kept is not None:
                self._bytes -= weight(kept)
            self._shown.discard(event.id)

    def rest(self) -> list[Event] | None:
        """All that is left, where no client has had any of it and one call takes it; else None."""
        batch = self.batch()
        return batch if not self._shown and len(batch) == len(self._events) else None

    def batch(self) -> list[Event]:
        """The oldest: as many as one call takes."""
        oldest = itertools.islice(self._events.values(), BATCH)
        count = load(([event] for event in oldest), self._room)
        return list(itertools.islice(self._events.values(), count))

    def take_less(self, batch: Sequence[Event]) -> None:
        """This was too much for the line, or one of them for Redis."""
        self._room = max(1, size(batch) // 2)

    def take_more(self) -> None:
        """That came through: what was a moment's trouble is not to make the way back a long one."""
        self._room = min(BATCH_BYTES, 2 * self._room)
