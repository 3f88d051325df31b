"""Who is live, as the pump is to see them: by what admits them, and since which pass.

A connection is in an index exactly while `live_since` is the number of a pass. It is that of the
last one that was begun when it joined: a pass skips all that joined after it began, since they had
read for themselves what it brings. One whose cursor nobody can judge is in an index of its own.

Not locked: `Readers` calls it in locked steps of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hybrid.audience import AudienceIndex, Identity
from hybrid.connection import NEVER, Connection
from hybrid.fanout import Batch, address
from hybrid.log import Entry

Index = AudienceIndex[Connection]


@dataclass(frozen=True, slots=True)
class Pass:
    """What the pump is to write in one pass, taken in one locked step.

    A connection with `live_since >= number` has left or joined since and is skipped. `start` is
    the place before the first entry, in the ring or in the log.
    """

    number: int
    start: int
    groups: list[tuple[Batch, list[Connection]]]
    provisional: bool = False


class Live:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.known: Index = AudienceIndex()
        """Those that get the log."""
        self.pending: Index = AudienceIndex()
        """Those that get what is provisional alone."""
        self.early: list[Connection] = []
        """To be woken behind the next pass: they read for themselves."""
        self._passes = 0

    def add(self, connection: Connection) -> None:
        connection.live_since = self._passes
        self._index(connection).add(connection)

    def discard(self, connection: Connection) -> None:
        """Harmless when it is not there."""
        connection.live_since = NEVER
        self._index(connection).discard(connection)

    def change(self, connection: Connection, identity: Identity) -> None:
        """It is somebody with other roles now, live or not."""
        index = self._index(connection)
        live = connection in index.everyone
        index.discard(connection)
        connection.identity = identity
        if live:
            index.add(connection)

    def begin(
        self,
        start: int,
        entries: Sequence[Entry],
        pending: Sequence[Entry] = (),
        *,
        provisional: bool = False,
    ) -> Pass:
        """The next pass: entries of the log, or of the ring, where those who are pending get all.

        Whatever raises: it has begun, and who joins from now on is not of it.
        """
        self._passes += 1
        groups = address(entries, self.known) if entries else []
        groups += address(pending, self.pending) if pending else []
        return Pass(self._passes, start, groups, provisional)

    def send_to_read(self, index: Index, position: int, heard_at: int) -> None:
        """All of an index read for themselves, from a place in the log and in the ring."""
        for connection in list(index.everyone):
            connection.position = position
            connection.heard_at = max(connection.heard_at, heard_at)
            self.discard(connection)
            self.early.append(connection)

    def _index(self, connection: Connection) -> Index:
        return self.known if connection.pending is None else self.pending
