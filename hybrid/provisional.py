"""The second, short log: events that are handed out while the shared log is out of reach.

A provisional event has no cursor. The ring gives it a place of its own, and the pump hands the
ring on like the log: `passed` is the place up to which it has come.

A connection has had, of what it may see, the places in

    (heard_from, heard_at]  while it reads
    (heard_from, passed]    while it is live (but see `note` for the middle of a pass)
    heard                   stretches of earlier outages

and what it has had that way it is not sent again as a stored copy (`unheard`).

Not locked: `Readers` calls it in locked steps of its own. `seen_by` alone may be called at any
time.
"""

from collections.abc import Callable, Iterable
from itertools import islice

from hybrid.connection import NEVER, Connection
from hybrid.events import Event
from hybrid.fanout import up_to_bytes
from hybrid.log import Entry

REMEMBERED = 20_000
"""Provisional events whose ids are remembered, so that their stored copies are told apart."""
LOOKED_AT = 2_000
"""Provisional events that a poll looks at: a full outbox, unless that is set higher."""
STRETCHES = 20
"""Stretches of provisional events that are remembered for a connection, one an outage."""


class Ring:
    """See the module's docstring. It holds only what the bus keeps, and is bounded by that."""

    def __init__(self) -> None:
        self.passed = 0
        self._entries: list[Entry] = []
        self._head = 0
        self._pass_from: int | None = None
        """While a pass is under way: the place before its first entry."""
        self._places: dict[str, int] = {}

    def append(self, event: Event) -> None:
        self._head += 1
        self._entries.append(Entry(self._head, event))
        self._places[event.id] = self._head
        if len(self._places) > REMEMBERED:
            del self._places[next(iter(self._places))]

    def seal(self, connections: Iterable[Connection]) -> None:
        """Empty it: what has not been handed on comes from the log."""
        for connection in connections:
            self.note(connection)
            connection.heard_from = connection.heard_at = self._head
        self._entries.clear()
        self.passed = self._head

    @property
    def newest(self) -> int:
        """The place of the newest event there has been."""
        return self._head

    @property
    def busy(self) -> bool:
        """Whether there is something to hand on, or a pass is under way."""
        return self._pass_from is not None or self.passed < self._head

    def knows(self, entries: Iterable[Entry]) -> bool:
        """Whether some of these events of the log have been handed on from here."""
        return bool(self._places) and any(e.event.id in self._places for e in entries)

    # -- a pass

    def begin_pass(self, max_events: int, max_bytes: int) -> list[Entry]:
        """The entries to hand on next; `end_pass` must follow, unless there are none."""
        start = self.passed
        begin = self._after(start)
        entries = self._entries[begin : begin + max_events]
        if entries:
            entries = up_to_bytes(entries, max_bytes)
            self.passed = entries[-1].offset
            self._pass_from = start
        return entries

    def end_pass(self) -> None:
        self._pass_from = None

    # -- a connection

    def greet(self, connection: Connection) -> None:
        """It begins here: what was handed on before is not for it."""
        connection.heard_from = connection.heard_at = self.passed

    def exhausted(self, connection: Connection) -> bool:
        """Whether it has had all that was handed on."""
        return not self._entries or connection.heard_at >= self.passed

    def heard_all(self, connection: Connection) -> None:
        """It was live and has had what was handed on."""
        connection.heard_at = max(connection.heard_at, self.passed)

    def read(
        self, connection: Connection, handed_on: Callable[[Entry], bool], max_bytes: int
    ) -> list[Entry]:
        """What it is to be sent next; `handed_on` says what it has had from the log."""
        entries = [
            entry
            for entry in self._entries[self._after(connection.heard_at) : self._after(self.passed)]
            if connection.sees(entry.event) and not handed_on(entry)
        ]
        if not entries:
            self.heard_all(connection)
            return []
        entries = up_to_bytes(entries, max_bytes)
        connection.heard_at = entries[-1].offset
        return entries

    def unheard(self, connection: Connection) -> Callable[[Event], bool]:
        """What the connection sees, but for what it has had from here."""
        stretches = connection.heard
        if connection.heard_at > connection.heard_from:
            stretches = (*stretches, (connection.heard_from, connection.heard_at))
        if not stretches:
            return connection.sees
        places = self._places

        def sees(event: Event) -> bool:
            place = places.get(event.id)
            had = place is not None and any(low < place <= high for low, high in stretches)
            return not had and connection.sees(event)

        return sees

    def note(self, connection: Connection) -> None:
        """Keep what it has had for certain; begin a new stretch."""
        if connection.live_since == NEVER:
            certain = connection.heard_at
        else:
            # In the middle of a pass some have its events and some have not: to be sent one
            # again is better than to miss it.
            certain = self.passed if self._pass_from is None else self._pass_from
        if certain > connection.heard_from:
            stretch = (connection.heard_from, certain)
            connection.heard = (*connection.heard[-STRETCHES:], stretch)
        connection.heard_from = connection.heard_at = self.passed

    def seen_by(
        self, connection: Connection, after: int, max_events: int, max_bytes: int
    ) -> list[Entry]:
        """The newest after a place that it may see, in order, at least one if there is one.

        For polls, which get them each time. It looks at no more than the last `LOOKED_AT`.
        """
        found: list[Entry] = []
        for entry in islice(reversed(self._entries), LOOKED_AT):
            if entry.offset <= after or len(found) >= max_events:
                break
            if connection.sees(entry.event):
                max_bytes -= len(entry.frame)
                if found and max_bytes < 0:
                    break
                found.append(entry)
        return found[::-1]

    def _after(self, place: int) -> int:
        """Where in the list the entries after a place begin."""
        return max(0, place + 1 - self._entries[0].offset) if self._entries else 0
