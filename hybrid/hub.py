"""The live connections of this instance and the pump that feeds them.

Theory. `position` is the offset up to which the pump has handed events on. A pass takes the
entries from `position` to the log's head, moves `position` first, and then writes. While it
writes it lets others run every few hundred writes, and new events gather for the next pass: under
load events batch by themselves, at rest each leaves at once.

Invariants:
- a connection is in the index exactly while it is live, and then has been handed everything
  up to `position` or is about to be by the pass under way;
- a connection joins only when it has read exactly up to `position`, and a pass skips all that
  joined after it began (`live_since`, which counts passes): so nothing is missed or repeated at
  the seam;
- heartbeats carry the cursor of `position` and are written between passes, never during one:
  an id on the wire never runs ahead of the events before it;
- a connection leaves the registry once, whoever closes it first.

While the shared log is out of reach there is a second, short log: the ring of provisional events,
which have no cursor. It is handed on like the first, with positions of its own (`heard_at`).
Who has had an event that way (`heard_from < place <= heard_at`) is not sent its stored copy.
A connection whose cursor cannot be judged meanwhile is `pending`: it gets the ring and no log.

The lock guards index and registry and is never held over a write or a pause. Nothing here
knows whether threads are greenlets: the process decides that by patching `threading`.
"""

import logging
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from hybrid.audience import Audience, AudienceIndex
from hybrid.connection import NEVER, Connection, takes_nothing
from hybrid.errors import TooManyConnections
from hybrid.events import Event
from hybrid.histogram import Histogram
from hybrid.log import Entry, Log
from hybrid.wire import COMMENT, chunk, control_frame, gap_frame, heartbeat_frame

logger = logging.getLogger("hybrid")

WRITES_PER_TURN = 256
"""Writes between two pauses: about 2 ms, so that other requests wait no longer than that."""
PASS_EVENTS = 512
PASS_BYTES = 64 * 1024
"""What a pass hands to one connection at most; more would only overrun the socket's buffer."""
CATCH_UP_BYTES = 16 * 1024
"""What a reading connection holds at once: with the log, the whole memory of a slow client."""
RING_PLACES = 20_000
"""Provisional events whose ids are remembered, so that their stored copies are told apart."""
STRETCHES = 20
"""Stretches of provisional events that are remembered for a connection, one an outage."""
SEAL_TURNS = 10_000
"""How often others may run before the ring is sealed in the middle of a pass."""
TICKS = 60
"""Heartbeats are spread over this many moments per interval."""

DONTWAIT = socket.MSG_DONTWAIT


class Batch:
    """Entries that go to the same connections, joined once for each framing."""

    __slots__ = ("_chunked", "_plain", "entries")

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self._plain: bytes | None = None
        self._chunked: bytes | None = None

    @property
    def plain(self) -> bytes:
        if self._plain is None:
            self._plain = b"".join([entry.frame for entry in self.entries])
        return self._plain

    @property
    def chunked(self) -> bytes:
        if self._chunked is None:
            # One chunk an event: a connection cut short then has one frame to finish, which
            # the log shares, and not a whole batch of its own.
            self._chunked = b"".join([entry.chunk for entry in self.entries])
        return self._chunked

    def cut_at(self, sent: int, start: int, *, chunked: bool) -> tuple[int, memoryview | None]:
        """Where a connection stands that took `sent` bytes: its offset, and the frame to finish."""
        offset = start
        for entry in self.entries:
            data = entry.chunk if chunked else entry.frame
            if sent < len(data):
                return (offset, None) if sent == 0 else (entry.offset, memoryview(data)[sent:])
            sent -= len(data)
            offset = entry.offset
        return offset, None


class Hub:
    """See the module's docstring.

    `heartbeat` and `stall` are seconds, `clock` is a monotonic clock in seconds and `wall` one
    in Unix milliseconds, `pause` lets others run, `random` gives a float in [0, 1).
    """

    def __init__(
        self,
        log: Log,
        *,
        heartbeat: float,
        stall: float,
        max_connections: int,
        clock: Callable[[], float],
        wall: Callable[[], int],
        random: Callable[[], float],
        pause: Callable[[], None],
        max_replay: int | None = None,
        writes_per_turn: int = WRITES_PER_TURN,
    ) -> None:
        self.log = log
        self.position = log.last
        self.heartbeat = heartbeat
        self.max_connections = max_connections
        self.max_replay = max_replay
        self.connections: dict[str, Connection] = {}
        self.opened: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        self.gaps: Counter[str] = Counter()
        self.deliveries = 0
        self.delivered_bytes = 0
        self.lags = 0
        self.refused = 0
        self.faults = 0
        self.latency = Histogram()
        self.clock = clock
        self._wall = wall
        self._random = random
        self._pause = pause
        self._writes_per_turn = writes_per_turn
        self._stall = stall
        self._lock = threading.Lock()
        self._doorbell = threading.Event()
        self._index: AudienceIndex[Connection] = AudienceIndex()
        self._passes = 0
        self._pending: AudienceIndex[Connection] = AudienceIndex()
        self._settle_due = False
        self._status = 0
        self._status_frame = b""
        self._status_passed = 0
        self._ring: list[Entry] = []
        self._ring_head = 0
        self._passing_ring = False
        self._ring_pass_start = 0
        self._ring_passed = 0
        self._ring_places: dict[str, int] = {}
        self._early: list[Connection] = []
        self._orphans: deque[Connection] = deque()
        self._wheel: list[set[Connection]] = [set() for _ in range(TICKS)]
        self._ticked = self._tick(clock())
        self._running = False

    # -- the life of a connection

    def open(self, connection: Connection) -> None:
        """Take a slot for it; raises `TooManyConnections` when there is none."""
        self._bury_orphans()
        with self._lock:
            if len(self.connections) >= self.max_connections:
                self.refused += 1
                raise TooManyConnections(f"all {self.max_connections} connections are in use")
            self.connections[connection.id] = connection
            self.opened[connection.transport] += 1
            connection.heard_from = connection.heard_at = self._ring_passed
            connection.told = self._status
            if connection.transport == "sse":
                connection.slot = int(self._random() * TICKS)
                self._wheel[connection.slot].add(connection)

    def join(self, connection: Connection) -> bool:
        """Make it live if it has read all there is; True when it should park now.

        Check and registration are one step: no event can slip in between.
        """
        with self._lock:
            if connection.closed is not None or connection.farewell is not None:
                return False
            if connection.lost is not None or connection.told != self._status:
                return False
            if self._ring and connection.heard_at < self._ring_passed:
                return False
            if connection.pending is not None:
                connection.live_since = self._passes
                self._pending.add(connection)
                return True
            if connection.position > self.position:
                # It starts at an event that the pump has not come to yet; the next pass
                # wakes it.
                self._early.append(connection)
                self._doorbell.set()
                return True
            if connection.position < self.position:
                return False
            connection.live_since = self._passes
            self._index.add(connection)
            return True

    def leave(self, connection: Connection) -> None:
        """Make it a reader again. Only for one without a socket: `position` is right there."""
        with self._lock:
            self._unlive(connection)

    def read(self, connection: Connection) -> bytes | None:
        """The next frames it is to be sent, about 16 KB at most; None when it has them all."""
        if connection.lost is not None:
            return self._tell_gap(connection)
        if connection.told != self._status:
            connection.told = self._status
            return self._status_frame
        if connection.pending is not None:
            return self._read_ring(connection)
        with self._lock:
            log, upto = self.log, self.position
        reading = log.read(
            connection.position,
            upto,
            self._unheard(connection),
            max_events=PASS_EVENTS,
            max_bytes=CATCH_UP_BYTES,
        )
        connection.position = reading.cursor.offset
        if reading.overflow:
            self.gaps["overflow"] += 1
            return gap_frame("overflow", reading.cursor)
        if not reading.entries:
            return self._read_ring(connection)
        frames = b"".join([entry.frame for entry in reading.entries])
        self.deliveries += len(reading.entries)
        self.delivered_bytes += len(frames)
        return frames

    def _tell_gap(self, connection: Connection) -> bytes:
        with self._lock:
            reason, connection.lost = connection.lost or "", None
            cursor = self.log.cursor_at(self.position) or self.log.head
            connection.position = cursor.offset
        self.gaps[reason] += 1
        return gap_frame(reason, cursor)

    def _unheard(self, connection: Connection) -> Callable[[Event], bool]:
        """What the connection sees, but for what it has had as a provisional event."""
        stretches = connection.heard
        if connection.heard_at > connection.heard_from:
            stretches = (*stretches, (connection.heard_from, connection.heard_at))
        if not stretches:
            return connection.sees
        places = self._ring_places

        def sees(event: Event) -> bool:
            place = places.get(event.id)
            had = place is not None and any(low < place <= high for low, high in stretches)
            return not had and connection.sees(event)

        return sees

    def sign_of_life(self, offset: int) -> bytes:
        """A heartbeat for who stands at `offset`.

        Where the log no longer holds that, it is a comment without an id: any other cursor would
        run ahead of events that the client has not been sent.
        """
        cursor = self.log.cursor_at(offset)
        return COMMENT if cursor is None else heartbeat_frame(cursor)

    def sign_of_life_to(self, connection: Connection) -> bytes:
        """A heartbeat for a connection that reads by itself."""
        if connection.pending is not None:
            return COMMENT  # where it stands is not known
        return self.sign_of_life(connection.position)

    def kick(self, user: str, before: int) -> int:
        """End a user's streams that were opened before a time (Unix ms); how many there are."""
        theirs = [
            connection
            for connection in list(self.connections.values())
            if connection.identity.user == user and connection.opened_ms <= before
        ]
        for connection in theirs:
            self.end(connection, "kicked", after=0)
        return len(theirs)

    def control(self, event: Event) -> None:
        """Do what an event of the protocol's own asks for."""
        if event.type == "hybrid.disconnect" and isinstance(event.data, dict):
            self.kick(str(event.data.get("user")), event.at)

    def end(self, connection: Connection, reason: str, *, after: int) -> None:
        """Say `hybrid.bye` and stop; the client comes back `after` milliseconds later."""
        with self._lock:
            if connection.closed is not None or connection.farewell is not None:
                return
            connection.farewell = control_frame("bye", {"reason": reason, "after": after})
            connection.leaving = reason
            self._unlive(connection)
        connection.wake()

    def close(self, connection: Connection, reason: str) -> None:
        """Forget it. May be called twice; the first reason counts."""
        with self._lock:
            if connection.closed is not None:
                return
            connection.closed = reason
            self._unlive(connection)
            self._wheel[connection.slot].discard(connection)
            connection.pending = None
            if self.connections.pop(connection.id, None) is not None:
                self.closed[reason] += 1
        connection.release()
        connection.wake()

    def abandon(self, connection: Connection) -> None:
        """Close it later. For finalizers, which may run in the middle of a locked step."""
        self._orphans.append(connection)

    def held(self) -> int:
        """The slots in use."""
        self._bury_orphans()
        return len(self.connections)

    def topics(self) -> dict[str, int]:
        """Live connections per topic."""
        with self._lock:
            return self._index.topics()

    def _bury_orphans(self) -> None:
        while self._orphans:
            self.close(self._orphans.popleft(), "abandoned")

    def _unlive(self, connection: Connection) -> None:
        connection.live_since = NEVER
        (self._index if connection.pending is None else self._pending).discard(connection)

    # -- what a bus between processes has to say

    def swap(self, log: Log, reason: str) -> None:
        """Go on with another log: what was shared has changed under us, and all are told."""
        with self._lock:
            self.log = log
            self.position = log.last
            for connection in self.connections.values():
                if connection.pending is None:
                    self._note_heard(connection)
                    connection.lost = reason
                    self._unlive(connection)
            woken = list(self.connections.values())
        for connection in woken:
            connection.wake()
        self.ring()

    def provisional(self, event: Event) -> None:
        """Hand an event that is not in the shared log yet to who may see it here."""
        with self._lock:
            self._ring_head += 1
            self._ring.append(Entry(self._ring_head, event))
            self._ring_places[event.id] = self._ring_head
            if len(self._ring_places) > RING_PLACES:
                del self._ring_places[next(iter(self._ring_places))]
        self.ring()

    def provisionals(self, connection: Connection) -> list[Entry]:
        """The provisional events that this connection may see. For polls, which get them all."""
        return [entry for entry in list(self._ring) if connection.sees(entry.event)]

    def seal(self) -> None:
        """No more provisional events; what has not been handed on comes from the log."""
        for _ in range(SEAL_TURNS):
            if not self._ring_busy():
                break
            self.ring()
            self._pause()
        with self._lock:
            for connection in self.connections.values():
                self._note_heard(connection)
            self._ring.clear()
            self._ring_passed = self._ring_head
            for connection in self.connections.values():
                connection.heard_from = connection.heard_at = self._ring_head

    def _note_heard(self, connection: Connection) -> None:
        """Keep what the connection has had of the ring for certain; begin a new stretch."""
        if connection.live_since == NEVER:
            certain = connection.heard_at
        else:
            # In the middle of a pass some have its events and some have not: to be sent one
            # again is better than to miss it.
            certain = self._ring_pass_start if self._passing_ring else self._ring_passed
        if certain > connection.heard_from:
            stretch = (connection.heard_from, certain)
            connection.heard = (*connection.heard[-STRETCHES:], stretch)
        connection.heard_from = connection.heard_at = self._ring_passed

    def _ring_busy(self) -> bool:
        return self._passing_ring or self._ring_passed < self._ring_head

    def announce(self, state: str, since: int) -> None:
        """Tell every stream how the bus is; `since` is Unix milliseconds."""
        with self._lock:
            self._status_frame = control_frame("status", {"bus": state, "since": since})
            self._status += 1
        self.ring()

    def settle(self) -> None:
        """The log can judge every cursor again: let who is pending have its answer."""
        self._settle_due = True
        self.ring()

    # -- the pump

    def ring(self) -> None:
        """There is something new in the log."""
        if not self._doorbell.is_set():
            self._doorbell.set()

    def start(self) -> None:
        """Start the pump in a thread of its own, which under gevent is a greenlet."""
        if not self._running:
            self._running = True
            threading.Thread(target=self._run, name="hybrid-pump", daemon=True).start()

    def stop(self) -> None:
        """Let the pump end after the pass under way."""
        self._running = False
        self._doorbell.set()

    def _run(self) -> None:
        while self._running:
            more = False
            try:
                self._doorbell.clear()
                more = self.step()
                self.beat()
            except Exception:
                # One broken pass must not end live updates for all; the position has moved,
                # so it cannot repeat for ever.
                self.faults += 1
                logger.exception("the pump failed in a pass and goes on")
            if more:
                self._pause()
            else:
                self._doorbell.wait(self.heartbeat / TICKS)

    def step(self) -> bool:
        """One pass: what was appended since the last one, to all who may see it.

        True when there is more to hand on already.
        """
        self._bury_orphans()
        if self._status_passed != self._status:
            self._pass_status()
        if self._settle_due:
            self._pass_settle()
        more_provisional = self._pass_ring()
        with self._lock:
            start = self.position
            end = min(self.log.last, start + PASS_EVENTS)
            if start == end:
                return more_provisional
            entries = self.log.between(start, end)
            early, self._early = self._early, []
            self._passes += 1
            places = self._ring_places
            if entries is None or (places and any(e.event.id in places for e in entries)):
                # The log outran the pump, or some have had these as provisional events.
                # Everybody reads for themselves, and finds the gap, or leaves out what it had.
                self.position = self.log.last
                behind = list(self._index.everyone)
                for connection in behind:
                    connection.position = start
                    connection.heard_at = max(connection.heard_at, self._ring_passed)
                    self._unlive(connection)
                groups = []
                early += behind
            else:
                entries = _up_to_bytes(entries, PASS_BYTES)
                self.position = entries[-1].offset
                groups = self._address(entries, self._index)
        for connection in early:
            connection.wake()
        for batch, readers in groups:
            self._write(batch, readers, start)
        return self.position < self.log.last or more_provisional

    def _address(
        self, entries: Sequence[Entry], index: AudienceIndex[Connection]
    ) -> list[tuple[Batch, list[Connection]]]:
        """Who gets what: connections with the same set of entries share one batch.

        Costs what the readers of these entries cost, however many others are connected.
        """
        audiences: dict[Audience, list[Entry]] = {}
        for entry in entries:
            audiences.setdefault(entry.event.audience, []).append(entry)
        if len(audiences) == 1:
            return [(Batch(entries), list(index.readers(entries[0].event.audience)))]
        # Each audience is a bit; a connection's bits say which entries it gets.
        public = 0
        bits: dict[Connection, int] = {}
        for place, audience in enumerate(audiences):
            if audience.everyone:
                public |= 1 << place
            else:
                for connection in index.readers(audience):
                    bits[connection] = bits.get(connection, 0) | 1 << place
        groups: dict[int, list[Connection]] = {}
        for connection, own in bits.items():
            groups.setdefault(own | public, []).append(connection)
        if public:
            groups.setdefault(public, []).extend(
                connection for connection in index.everyone if connection not in bits
            )
        places = {audience: 1 << place for place, audience in enumerate(audiences)}
        return [
            (Batch([e for e in entries if places[e.event.audience] & key]), readers)
            for key, readers in groups.items()
        ]

    def _pass_ring(self) -> bool:
        """One pass over provisional events; True when there are more."""
        with self._lock:
            start = self._ring_passed
            entries = [e for e in self._ring if e.offset > start][:PASS_EVENTS]
            if not entries:
                return False
            entries = _up_to_bytes(entries, PASS_BYTES)
            self._ring_passed = entries[-1].offset
            self._ring_pass_start = start
            self._passing_ring = True
            self._passes += 1
            fresh = [entry for entry in entries if not self._handed_on(entry, self.position)]
            groups = self._address(fresh, self._index) if fresh else []
            groups += self._address(entries, self._pending)
        for batch, readers in groups:
            self._write(batch, readers, start, ring=True)
        self._passing_ring = False
        return self._ring_passed < self._ring_head

    def _handed_on(self, entry: Entry, position: int) -> bool:
        """Whether who stands at a position of the log has had this event from there.

        It may have been stored although its emit was not told so.
        """
        cursor = self.log.find(entry.event.id)
        return cursor is not None and cursor.offset <= position

    def _read_ring(self, connection: Connection) -> bytes | None:
        with self._lock:
            upto = self._ring_passed
            entries = [
                e
                for e in self._ring
                if connection.heard_at < e.offset <= upto
                and connection.sees(e.event)
                and (connection.pending or not self._handed_on(e, connection.position))
            ]
            if not entries:
                connection.heard_at = max(connection.heard_at, upto)
                return None
            entries = _up_to_bytes(entries, CATCH_UP_BYTES)
            connection.heard_at = entries[-1].offset
        return b"".join([entry.frame for entry in entries])

    def _pass_status(self) -> None:
        """Write the bus' state to all who are live; the others find it when they read."""
        with self._lock:
            version = self._status_passed = self._status
            frame = self._status_frame
            readers = [*self._index.everyone, *self._pending.everyone]
            self._passes += 1
        framed = chunk(frame)
        turn = 0
        for connection in readers:
            if connection.live_since >= self._passes:
                continue
            connection.told = version
            if not self._send_whole(connection, framed if connection.chunked else frame):
                connection.told = version - 1
            turn += 1
            if turn == self._writes_per_turn:
                turn = 0
                self._pause()

    def _send_whole(self, connection: Connection, frame: bytes) -> bool:
        """Send outside of the log's order; False when the socket took nothing of it."""
        try:
            sent = connection.send(frame, DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close(connection, "lost")
            return True
        if sent < len(frame):
            self._fall_behind(connection, memoryview(frame)[sent:] if sent else None)
        return sent > 0

    def _pass_settle(self) -> None:
        """Judge the cursors that could not be judged before."""
        with self._lock:
            self._settle_due = False
            for connection in list(self.connections.values()):
                if connection.pending is None:
                    continue
                since = connection.pending
                if connection.live_since != NEVER:
                    connection.heard_at = max(connection.heard_at, self._ring_passed)
                self._unlive(connection)
                connection.pending = None
                start = self.log.resolve(since, max_replay=self.max_replay)
                if start.gap:
                    connection.lost = start.gap
                else:
                    connection.position = start.cursor.offset
                connection.wake()

    def _write(
        self, batch: Batch, readers: Iterable[Connection], start: int, *, ring: bool = False
    ) -> None:
        """The hot path: one send per connection, nothing else that grows with their number."""
        turn = taken = 0
        this_pass = self._passes
        for connection in readers:
            if connection.live_since >= this_pass:
                continue  # not live any more, or joined after this pass began
            data = batch.chunked if connection.chunked else batch.plain
            try:
                sent = connection.send(data, DONTWAIT)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close(connection, "lost")
                continue
            if sent == len(data):
                taken += 1
            else:
                offset, rest = batch.cut_at(sent, start, chunked=connection.chunked)
                self._fall_behind(connection, rest, **{"heard_at" if ring else "position": offset})
            turn += 1
            if turn == self._writes_per_turn:
                turn = 0
                self._pause()
        if taken:
            self.deliveries += taken * len(batch.entries)
            self.delivered_bytes += taken * len(batch.plain)
            now = self._wall()
            for entry in batch.entries:
                self.latency.observe((now - entry.event.at) / 1000, taken)

    def _fall_behind(
        self,
        connection: Connection,
        rest: memoryview | None,
        *,
        position: int | None = None,
        heard_at: int | None = None,
    ) -> None:
        """Its socket is full (or it has none): it reads by itself from here."""
        connection.rest = rest
        with self._lock:
            if connection.live_since == NEVER:
                return  # swapped away meanwhile: it begins anew
            connection.position = self.position if position is None else position
            connection.heard_at = self._ring_passed if heard_at is None else heard_at
            self._unlive(connection)
        if connection.send is not takes_nothing:
            self.lags += 1
        connection.wake()

    # -- the heartbeat

    def _tick(self, now: float) -> int:
        return int(now * TICKS / self.heartbeat)

    def beat(self) -> None:
        """Give the connections whose turn has come a sign of life, and cut those that hang."""
        now = self.clock()
        tick = self._tick(now)
        first = max(self._ticked + 1, tick - TICKS + 1)
        self._ticked = tick
        for moment in range(first, tick + 1):
            due = list(self._wheel[moment % TICKS])
            frame = self.sign_of_life(self.position)
            framed = chunk(frame)
            for connection in due:
                if connection.pending is not None and connection.live_since != NEVER:
                    self._beat(connection, chunk(COMMENT) if connection.chunked else COMMENT)
                elif connection.live_since != NEVER:
                    self._beat(connection, framed if connection.chunked else frame)
                elif (
                    connection.writing_since is not None
                    and now - connection.writing_since > self._stall
                ):
                    connection.cut()
                    self.close(connection, "slow")

    def _beat(self, connection: Connection, frame: bytes) -> None:
        if not self._send_whole(connection, frame):
            connection.beat_due = True


def _up_to_bytes(entries: list[Entry], limit: int) -> list[Entry]:
    """The first entries whose frames fit the limit together, at least one."""
    size = 0
    for count, entry in enumerate(entries):
        size += len(entry.frame)
        if size > limit and count:
            return entries[:count]
    return entries
