"""How far each connection has read, and what is handed on next.

Theory. `position` is the offset up to which the pump has handed events on. A pass takes the
entries from `position` to the log's head and moves `position` first; then the pump writes them.
What comes meanwhile waits for the next pass.

Invariants:
- who is live (`live.py`) has been handed everything up to `position`, or is about to be by the
  pass under way;
- a connection joins only when it has read exactly up to `position`, and a pass skips all that
  joined after it began: so nothing is missed or repeated at the seam;
- heartbeats carry the cursor of `position` and are written between passes, never during one:
  an id on the wire never runs ahead of the events before it;
- where a pass cannot be made, everybody reads for themselves from where it would have begun.

While the shared log is out of reach there is a second, short log: the ring of provisional events
(`provisional.py`). A connection whose cursor cannot be judged meanwhile is `pending`: it gets the
ring and no log.

The lock guards everything here and is never held over a write or a pause. Nothing here knows
whether threads are greenlets: the process decides that by patching `threading`.
"""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from hybrid.audience import Identity
from hybrid.bulletin import Bulletin
from hybrid.connection import NEVER, Connection
from hybrid.errors import TooManyConnections
from hybrid.events import Event
from hybrid.fanout import up_to_bytes
from hybrid.live import Live, Pass
from hybrid.log import UNHEARD, Claim, Entry, Log, Start
from hybrid.provisional import Ring
from hybrid.wire import COMMENT, gap_frame, heartbeat_frame

PASS_EVENTS = 512
PASS_BYTES = 64 * 1024
"""What a pass hands to one connection at most; more would only overrun the socket's buffer."""
CATCH_UP_BYTES = 16 * 1024
"""What a reading connection holds at once: with the log, the whole memory of a slow client."""
RING_BYTES = 256 * 1024
"""What a poll is told of the ring, each time; the rest comes when it is stored."""


@dataclass(frozen=True, slots=True)
class Bite:
    """What one connection is to be sent next: so many events of the log, or that some are gone.

    Without frames, all that it came past was for others, and there is more to look at.
    """

    frames: bytes
    events: int = 0
    gap: str = ""


class Readers:
    """See the module's docstring. `wall` is Unix milliseconds, `news` rings the pump's bell."""

    def __init__(
        self,
        log: Log,
        *,
        wall: Callable[[], int],
        news: Callable[[], None],
        max_replay: int | None = None,
    ) -> None:
        self.log = log
        self.position = log.last
        self.all: dict[str, Connection] = {}
        self.opened: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        self._wall = wall
        self._news = news
        self._max_replay = max_replay
        self._lock = threading.Lock()
        self._live = Live()
        self._ring = Ring()
        self._bulletin = Bulletin()
        self._announced = 0
        self._settle_due = False
        self._handed_on = self.position
        """Up to where all that are live have been handed everything: between passes `position`."""

    # -- who comes and goes

    def enter(self, connection: Connection, claim: Claim | None, room: int) -> Start:
        """Take it in where fewer than `room` are here, else raise `TooManyConnections`.

        Returns where it begins. A claim is judged in the same step as the connection is taken
        in: by another log it would be judged too early or too late, since the bus may exchange
        the log, or settle who is pending, while a slot is asked for. Without a claim it begins
        at its own `position`.
        """
        self.expire()
        with self._lock:
            if len(self.all) >= room:
                raise TooManyConnections(f"all {room} connections are in use")
            self.all[connection.id] = connection
            self.opened[connection.transport] += 1
            self._ring.greet(connection)
            connection.told = self._bulletin.version
            return self._place(connection, claim)

    def _place(self, connection: Connection, claim: Claim | None) -> Start:
        if claim is None:
            return Start(self.log.cursor_at(connection.position) or self.log.head)
        start = self.log.resolve(claim.since, max_replay=self._max_replay)
        connection.pending = None
        if start.gap in UNHEARD and not claim.certain:
            connection.pending = claim.since
            start = Start(start.cursor, pending=True)
        connection.position = start.cursor.offset
        return start

    def forget(self, connection: Connection, reason: str) -> bool:
        """It is closed from now on. True once, if it was here: the first reason counts."""
        with self._lock:
            if connection.closed is not None:
                return False
            connection.closed = reason
            self._live.discard(connection)
            connection.pending = connection.rest = None
            if self.all.pop(connection.id, None) is None:
                return False
            self.closed[reason] += 1
            return True

    def dismiss(self, connection: Connection, farewell: bytes, reason: str) -> bool:
        """It is to be said farewell and nothing else; False if it is closed or was told before."""
        with self._lock:
            if connection.closed is not None or connection.farewell is not None:
                return False
            connection.farewell = farewell
            connection.leaving = reason
            if connection.live_since != NEVER:
                # For a poll, whose answer says where it stands. It has had nothing of this pass:
                # that would have made it a reader.
                connection.position = self._handed_on
            self._live.discard(connection)
            return True

    def push(self, connection: Connection, summon: Callable[[Connection], None]) -> bool:
        """From now on the pump writes to it; False where that cannot be, or it is closed."""
        with self._lock:
            if not connection.pushable or connection.closed is not None:
                return False
            connection.push(summon)
            return True

    def change(self, connection: Connection, identity: Identity) -> None:
        """From now on the connection is somebody with other roles."""
        with self._lock:
            self._live.change(connection, identity)

    def topics(self) -> dict[str, int]:
        """Live connections per topic."""
        with self._lock:
            return self._live.known.topics()

    # -- from reading to live and back

    def join(self, connection: Connection) -> bool:
        """Make it live if it has read all there is; True when there is nothing to do until woken.

        Check and registration are one step: no event can slip in between.
        """
        with self._lock:
            if connection.closed is not None or connection.farewell is not None:
                return False
            if connection.lost is not None or self._bulletin.is_news(connection):
                return False
            if not self._ring.exhausted(connection):
                return False
            if connection.pending is not None:
                self._live.add(connection)
                return True
            if connection.position > self.position:
                # It starts at an event that the pump has not come to yet.
                self._live.early.append(connection)
                self._news()
                return True
            if connection.position < self.position:
                return False
            self._live.add(connection)
            return True

    def fall_behind(
        self,
        connection: Connection,
        *,
        number: int = NEVER,
        position: int | None = None,
        heard_at: int | None = None,
    ) -> bool:
        """It reads from here; False if it does already, by somebody else's doing.

        `position` and `heard_at` say where it stands, if not at the end of what was handed on,
        after the pass with a number. Who has joined after that began stands elsewhere.
        """
        with self._lock:
            if connection.live_since >= number:
                return False
            connection.position = self.position if position is None else position
            connection.heard_at = self._ring.passed if heard_at is None else heard_at
            self._live.discard(connection)
            return True

    # -- what a reader is sent

    def has_news(self, connection: Connection) -> bool:
        """Whether something else than an event is to be said."""
        if connection.farewell is not None:
            return True
        with self._lock:
            # That the log is back is said together with what it says of a cursor.
            about_to_be_judged = self._settle_due and connection.pending is not None
            return self._bulletin.is_news(connection) and not about_to_be_judged

    def read(self, connection: Connection) -> Bite | None:
        """What it is to be sent next, some 16 KB at most; None when it has had it all."""
        if connection.lost is not None:
            return self._tell_gap(connection)
        if self._bulletin.is_news(connection):
            return Bite(self._bulletin.tell(connection))
        if connection.pending is not None:
            return self._read_ring(connection)
        with self._lock:
            log, upto = self.log, self.position
        reading = log.read(
            connection.position,
            upto,
            self._ring.unheard(connection),
            max_events=PASS_EVENTS,
            max_bytes=CATCH_UP_BYTES,
        )
        connection.position = reading.cursor.offset
        if reading.overflow:
            return Bite(gap_frame("overflow", reading.cursor), gap="overflow")
        if not reading.entries and not reading.paused:
            return self._read_ring(connection)
        return Bite(b"".join([entry.frame for entry in reading.entries]), len(reading.entries))

    def _tell_gap(self, connection: Connection) -> Bite:
        with self._lock:
            reason, connection.lost = connection.lost or "", None
            cursor = self.log.cursor_at(self.position) or self.log.head
            connection.position = cursor.offset
        return Bite(gap_frame(reason, cursor), gap=reason)

    def _read_ring(self, connection: Connection) -> Bite | None:
        with self._lock:

            def handed_on(entry: Entry) -> bool:
                return connection.pending is None and self._stored(entry, connection.position)

            entries = self._ring.read(connection, handed_on, CATCH_UP_BYTES)
        return Bite(b"".join([entry.frame for entry in entries])) if entries else None

    def _stored(self, entry: Entry, position: int) -> bool:
        """Whether who stands at a position of the log has had this event from there.

        It may have been stored although its emit was not told so.
        """
        cursor = self.log.find(entry.event.id)
        return cursor is not None and cursor.offset <= position

    def sign_of_life(self, offset: int) -> bytes:
        """A heartbeat for who stands at `offset`.

        Where the log no longer holds that, it is a comment without an id: any other cursor would
        run ahead of events that the client has not been sent.
        """
        cursor = self.log.cursor_at(offset)
        return COMMENT if cursor is None else heartbeat_frame(cursor)

    def sign_of_life_to(self, connection: Connection) -> bytes:
        """The same for a reader; a comment where nobody can say where it stands."""
        return COMMENT if connection.pending else self.sign_of_life(connection.position)

    # -- what changes for all: each returns whom to wake, outside of the lock

    def swap(self, log: Log, reason: str) -> list[Connection]:
        """Go on with another log: what was shared has changed under us, and all are told."""
        with self._lock:
            self.log = log
            self.position = self._handed_on = log.last
            for connection in self.all.values():
                if connection.pending is None:
                    self._ring.note(connection)
                    connection.lost = reason
                    self._live.discard(connection)
            return list(self.all.values())

    def judge_pending(self) -> list[tuple[Connection, str | None]]:
        """Where it is time to: judge the cursors that could not be judged before.

        Each with its gap, if it is one.
        """
        if not self._settle_due:
            return []
        judged = []
        with self._lock:
            self._settle_due = False
            for connection in self.all.values():
                if connection.pending is None:
                    continue
                since = connection.pending
                if connection.live_since != NEVER:
                    self._ring.heard_all(connection)
                self._live.discard(connection)
                connection.pending = None
                start = self.log.resolve(since, max_replay=self._max_replay)
                if start.gap:
                    connection.lost = start.gap
                else:
                    connection.position = start.cursor.offset
                judged.append((connection, start.gap))
        return judged

    def settle(self) -> None:
        """The log can judge every cursor again: the pump is to do so."""
        self._settle_due = True

    def announce(self, state: str, since: int) -> None:
        """Every stream is told how the bus is; `since` is Unix milliseconds."""
        with self._lock:
            self._bulletin.post(state, since)
            if state == "degraded":
                # Who comes from now on has a cursor that the log may not know: that judging, had
                # it come so far, would have been for those before.
                self._settle_due = False

    def provisional(self, event: Event) -> None:
        """Hand an event that is not in the shared log yet to who may see it here."""
        with self._lock:
            self._ring.append(event)

    @property
    def newest_provisional(self) -> int:
        """The place of the newest provisional event."""
        return self._ring.newest

    def provisionals(
        self, connection: Connection, *, max_events: int, after: int = 0
    ) -> list[Entry]:
        """The newest provisional events that it may see. For polls, which get them each time."""
        return self._ring.seen_by(connection, after, max_events, RING_BYTES)

    def heard_all(self, connection: Connection) -> None:
        """Of what is provisional, nothing is for it that was handed on."""
        self._ring.heard_all(connection)

    @property
    def sealable(self) -> bool:
        """Whether all that is provisional has been handed on."""
        return not self._ring.busy

    def seal(self) -> None:
        """No more provisional events; what has not been handed on comes from the log."""
        with self._lock:
            self._ring.seal(self.all.values())

    def expire(self) -> None:
        """Let the log drop what is too old, but nothing that is still to be handed on.

        An event that comes from a host whose clock is late is old as it arrives.
        """
        self.log.expire(self._wall(), self.position)

    # -- what the pump takes: each a locked step of its own

    @property
    def behind(self) -> bool:
        """Whether there is more to hand on."""
        return self.position < self.log.last or self._ring.busy

    def take_notice(self) -> None:
        """Where there is news that is no event: everybody reads it for themselves.

        Between two passes, when who is live has had all up to `position`.
        """
        if self._announced == self._bulletin.version:
            return
        with self._lock:
            self._announced = self._bulletin.version
            for index in (self._live.known, self._live.pending):
                self._live.send_to_read(index, self.position, self._ring.passed)

    def take_provisional(self) -> Pass | None:
        """The next of the ring; `passed_on` must follow."""
        with self._lock:
            start = self._ring.passed
            entries = self._ring.begin_pass(PASS_EVENTS, PASS_BYTES)
            if not entries:
                return None
            try:
                fresh = [entry for entry in entries if not self._stored(entry, self.position)]
                return self._live.begin(start, fresh, entries, provisional=True)
            except Exception:
                for index in (self._live.known, self._live.pending):
                    self._live.send_to_read(index, self.position, start)
                raise

    def passed_on(self) -> None:
        """What was taken has been written."""
        with self._lock:
            self._ring.end_pass()
            self._handed_on = self.position

    def take(self) -> Pass | None:
        """What came into the log since the last pass, and to whom it goes; `passed_on` follows."""
        with self._lock:
            start = self.position
            end = min(self.log.last, start + PASS_EVENTS)
            if start == end:
                return None
            heard_at = self._ring.passed
            entries = self.log.between(start, end)
            if entries is None or self._ring.knows(entries):
                # The log outran the pump, or some have had these as provisional events.
                # Everybody reads for themselves, and finds the gap, or leaves out what it had.
                self.position = self.log.last
                self._live.send_to_read(self._live.known, start, heard_at)
                return self._live.begin(start, ())
            entries = up_to_bytes(entries, PASS_BYTES)
            self.position = entries[-1].offset
            try:
                return self._live.begin(start, entries)
            except Exception:
                self._live.send_to_read(self._live.known, start, heard_at)
                raise

    def take_early(self) -> list[Connection]:
        """Those that read for themselves since the last pass, or came before it."""
        if not self._live.early:
            return []
        with self._lock:
            early, self._live.early = self._live.early, []
            return early
