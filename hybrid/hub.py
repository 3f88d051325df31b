"""The live connections of this instance and the pump that feeds them.

Theory. `position` is the offset up to which the pump has handed events on. A pass takes the
entries from `position` to the log's head, moves `position` first, and then writes. While it
writes it lets others run every few hundred writes, and new events gather for the next pass: under
load events batch by themselves, at rest each leaves at once.

Invariants:
- a connection is in the index exactly while it is live, and then has been handed everything
  up to `position` or is about to be by the pass under way;
- a connection joins only when it has read exactly up to `position`, and a pass skips all that
  joined after it began (`live_since > start`): so nothing is missed or repeated at the seam;
- heartbeats carry the cursor of `position` and are written between passes, never during one:
  an id on the wire never runs ahead of the events before it;
- a connection leaves the registry once, whoever closes it first.

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
        writes_per_turn: int = WRITES_PER_TURN,
    ) -> None:
        self.log = log
        self.position = log.last
        self.heartbeat = heartbeat
        self.max_connections = max_connections
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
            if connection.position > self.position:
                # It starts at an event that the pump has not come to yet; the next pass
                # wakes it.
                self._early.append(connection)
                self._doorbell.set()
                return True
            if connection.position < self.position:
                return False
            connection.live_since = self.position
            self._index.add(connection)
            return True

    def leave(self, connection: Connection) -> None:
        """Make it a reader again. Only for one without a socket: `position` is right there."""
        with self._lock:
            self._unlive(connection)

    def read(self, connection: Connection) -> bytes | None:
        """The next frames it is to be sent, about 16 KB at most; None when it has them all."""
        reading = self.log.read(
            connection.position,
            self.position,
            connection.sees,
            max_events=PASS_EVENTS,
            max_bytes=CATCH_UP_BYTES,
        )
        connection.position = reading.cursor.offset
        if reading.overflow:
            self.gaps["overflow"] += 1
            return gap_frame("overflow", reading.cursor)
        if not reading.entries:
            return None
        frames = b"".join([entry.frame for entry in reading.entries])
        self.deliveries += len(reading.entries)
        self.delivered_bytes += len(frames)
        return frames

    def sign_of_life(self, offset: int) -> bytes:
        """A heartbeat for who stands at `offset`.

        Where the log no longer holds that, it is a comment without an id: any other cursor would
        run ahead of events that the client has not been sent.
        """
        cursor = self.log.cursor_at(offset)
        return COMMENT if cursor is None else heartbeat_frame(cursor)

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
        self._index.discard(connection)

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
        with self._lock:
            start = self.position
            end = min(self.log.last, start + PASS_EVENTS)
            if start == end:
                return False
            entries = self.log.between(start, end)
            early, self._early = self._early, []
            if entries is None:
                # The log outran the pump. Everybody reads for themselves, and finds the gap.
                self.position = self.log.last
                behind = list(self._index.everyone)
                for connection in behind:
                    connection.position = start
                    self._unlive(connection)
                groups = []
                early += behind
            else:
                entries = _up_to_bytes(entries, PASS_BYTES)
                self.position = entries[-1].offset
                groups = self._address(entries)
        for connection in early:
            connection.wake()
        for batch, readers in groups:
            self._write(batch, readers, start)
        return self.position < self.log.last

    def _address(self, entries: Sequence[Entry]) -> list[tuple[Batch, list[Connection]]]:
        """Who gets what: connections with the same set of entries share one batch.

        Costs what the readers of these entries cost, however many others are connected.
        """
        audiences: dict[Audience, list[Entry]] = {}
        for entry in entries:
            audiences.setdefault(entry.event.audience, []).append(entry)
        if len(audiences) == 1:
            return [(Batch(entries), list(self._index.readers(entries[0].event.audience)))]
        # Each audience is a bit; a connection's bits say which entries it gets.
        public = 0
        bits: dict[Connection, int] = {}
        for place, audience in enumerate(audiences):
            if audience.everyone:
                public |= 1 << place
            else:
                for connection in self._index.readers(audience):
                    bits[connection] = bits.get(connection, 0) | 1 << place
        groups: dict[int, list[Connection]] = {}
        for connection, own in bits.items():
            groups.setdefault(own | public, []).append(connection)
        if public:
            groups.setdefault(public, []).extend(
                connection for connection in self._index.everyone if connection not in bits
            )
        places = {audience: 1 << place for place, audience in enumerate(audiences)}
        return [
            (Batch([e for e in entries if places[e.event.audience] & key]), readers)
            for key, readers in groups.items()
        ]

    def _write(self, batch: Batch, readers: Iterable[Connection], start: int) -> None:
        """The hot path: one send per connection, nothing else that grows with their number."""
        turn = taken = 0
        for connection in readers:
            if connection.live_since > start:
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
                self._fall_behind(connection, offset, rest)
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

    def _fall_behind(self, connection: Connection, offset: int, rest: memoryview | None) -> None:
        """Its socket is full (or it has none): it reads the log by itself from here."""
        connection.position = offset
        connection.rest = rest
        with self._lock:
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
                if connection.live_since <= self.position:
                    self._beat(connection, framed if connection.chunked else frame)
                elif (
                    connection.writing_since is not None
                    and now - connection.writing_since > self._stall
                ):
                    connection.cut()
                    self.close(connection, "slow")

    def _beat(self, connection: Connection, frame: bytes) -> None:
        try:
            sent = connection.send(frame, DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close(connection, "lost")
            return
        if sent < len(frame):
            connection.beat_due = sent == 0
            self._fall_behind(connection, self.position, memoryview(frame)[sent:] if sent else None)


def _up_to_bytes(entries: list[Entry], limit: int) -> list[Entry]:
    """The first entries whose frames fit the limit together, at least one."""
    size = 0
    for count, entry in enumerate(entries):
        size += len(entry.frame)
        if size > limit and count:
            return entries[:count]
    return entries
