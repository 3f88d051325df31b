"""The live connections of this instance: who is here, from the slot to the goodbye.

How far each has read is the readers' to know (`readers.py`), who may come at all is the shut-outs'
(`shutout.py`). The hub gives out slots, wakes whom it is time to wake, ends, and forgets: a
connection leaves once, whoever closes it first.

It stands between three: requests, which open connections and ask what comes `next`; the pump, which
does both for sockets of its own; and the bus, which says what has changed for all.
"""

import heapq
import math
import threading
from collections import Counter, deque
from collections.abc import Callable

from hybrid.connection import NEVER, Connection, takes_nothing
from hybrid.errors import Draining, TooManyConnections
from hybrid.events import Event
from hybrid.histogram import Histogram
from hybrid.log import Claim, Log, Start
from hybrid.readers import Readers
from hybrid.shutout import ShutOut
from hybrid.sockets import Sockets
from hybrid.wheel import Wheel
from hybrid.wire import control_frame

SEAL_TURNS = 10_000
"""How often others may run before the ring is sealed in the middle of a pass."""
MOMENTS = 20
"""In a second, for who waits until a time: a poll is answered up to so much of one later."""
KICKED_MS = 1_000
"""When who was ended may come back. Not at once: should it be ended again, that is no storm."""


class Hub:
    """See the module's docstring.

    `heartbeat` is seconds, `clock` is a monotonic clock in seconds and `wall` one in Unix
    milliseconds, `pause` lets others run, `random` gives a float in [0, 1).
    """

    def __init__(
        self,
        log: Log,
        *,
        heartbeat: float,
        max_connections: int,
        clock: Callable[[], float],
        wall: Callable[[], int],
        random: Callable[[], float],
        pause: Callable[[], None],
        max_replay: int | None = None,
        on_close: Callable[[Connection], None] = lambda _: None,
        on_gap: Callable[[Connection | None, str], None] = lambda _, __: None,
    ) -> None:
        self.heartbeat = heartbeat
        self.max_connections = max_connections
        self.doorbell = threading.Event()
        """Something is to be handed on: what the pump waits for."""
        self.readers = Readers(log, wall=wall, news=self.ring, max_replay=max_replay)
        self.connections = self.readers.all
        self.opened, self.closed = self.readers.opened, self.readers.closed
        self.shut_out = ShutOut(clock, wall)
        self.wheel = Wheel(heartbeat, clock(), random)
        self.sockets = Sockets(self.hung_up, self._summon)
        self.due: deque[Connection] = deque()
        """Pushed connections that read, say goodbye, or had a full socket and have room now."""
        self.gaps: Counter[str] = Counter()
        self.resumes: Counter[str] = Counter()
        """Streams that came with a cursor: `full` if all that followed was there, else `gap`."""
        self.deliveries = 0
        self.delivered_bytes = 0
        self.lags = 0
        self.refused = 0
        self.draining = False
        """Whether the process is about to go: nobody new is taken."""
        self.faults = 0
        self.latency = Histogram()
        self.clock = clock
        self.wall = wall
        self.pause = pause
        self._on_close = on_close
        self._on_gap = on_gap
        self._waiting: dict[int, list[str]] = {}
        self._moments: list[int] = []
        self._waiting_lock = threading.Lock()
        self._left: deque[tuple[Connection, str]] = deque()

    @property
    def log(self) -> Log:
        return self.readers.log

    @property
    def position(self) -> int:
        """The offset up to which events have been handed on."""
        return self.readers.position

    # -- the life of a connection

    def open(self, connection: Connection, claim: Claim | None = None) -> Start:
        """Take a slot for it; raises `TooManyConnections` (`Draining`) when there is none.

        Returns where it begins, judged as it is taken in (`Readers.enter`).
        """
        self.bury()
        if self.draining:
            raise Draining("this instance is being stopped; come again")
        connection.asked_at = self.shut_out.when(connection.opened_ms)
        self.wheel.add(connection)
        try:
            start = self.readers.enter(connection, claim, self.max_connections)
        except TooManyConnections:
            self.wheel.discard(connection)
            self.refused += 1
            raise
        # Its user may have been shut out between the look at who it is and now.
        reason = self.shut_out.reason(connection.identity.user, connection.asked_at)
        if reason is not None:
            self.end(connection, reason, after=KICKED_MS)
        return start

    def wait(self, connection: Connection, until: float) -> None:
        """Wake it, whatever comes, at a time of the monotonic clock or a moment later."""
        moment = math.ceil(until * MOMENTS)
        with self._waiting_lock:
            # One entry for all of a moment: one for each would be 64 bytes of a poll's memory.
            if moment not in self._waiting:
                self._waiting[moment] = []
                heapq.heappush(self._moments, moment)
            self._waiting[moment].append(connection.id)

    def end_waiting(self, now: float) -> None:
        """Wake those whose time has come."""
        over: list[str] = []
        while self._moments and self._moments[0] <= now * MOMENTS:
            with self._waiting_lock:
                over += self._waiting.pop(heapq.heappop(self._moments))
        for id in over:
            connection = self.connections.get(id)
            if connection is not None:
                self.readers.fall_behind(connection)
                connection.wake()

    def take_over(self, connection: Connection, first: bytes = b"") -> bool:
        """Write to its socket from now on; False where that cannot be, or it is closed already.

        `first` leaves at once: nobody writes to it before.
        """
        self.sockets.watch(connection)
        if not self.readers.push(connection, self._summon):
            return False
        try:
            connection.rest = connection.put(first) if first else None
        except OSError:
            self.close(connection, "lost")
            return True
        # Most have nothing to read, and need no turn of the pump to find that out.
        if connection.answer is not None or connection.rest or not self.readers.join(connection):
            connection.wake()
        return True

    def next(self, connection: Connection) -> bytes | None:
        """The next bytes that it is to be sent, some 16 KB at most; it is a reader until then.

        None: there is nothing to send until it is woken, or it is closed, or it has woken itself.
        """
        readers = self.readers
        while connection.closed is None:
            if connection.answer is not None:
                # Whatever is news is told: an event, a gap, the bus' state, or that all end.
                answer = connection.answer(connection, readers.has_news(connection))
                if answer is not None:
                    connection.answer, connection.farewell = None, answer
                    connection.said_bye, connection.leaving = True, "polled"
                    return answer
                readers.heard_all(connection)  # and nothing of it was for this one
            elif connection.farewell is not None:
                if connection.said_bye:
                    self.close(connection, connection.leaving)
                    break
                # The slot stays taken until the goodbye is out: a client that does not even
                # read that is then still found and cut.
                connection.said_bye = True
                return connection.farewell
            elif bite := readers.read(connection):
                if bite.gap:
                    self.count_gap(bite.gap, connection)
                if bite.frames:
                    self.deliveries += bite.events
                    self.delivered_bytes += len(bite.frames) if bite.events else 0
                    return bite.frames
            elif connection.beat_due:
                connection.beat_due = False
                return readers.sign_of_life_to(connection)
            if readers.join(connection):
                break
            # It has more to look at, and what it came past was for others: they run first. The
            # pump may not wait here, and comes back to it.
            if connection.summon is not None:
                connection.wake()
                break
            self.pause()
        return None

    def fall_behind(
        self,
        connection: Connection,
        rest: memoryview | None,
        *,
        number: int = NEVER,
        position: int | None = None,
        heard_at: int | None = None,
    ) -> None:
        """Its socket is full (or not ours to write to): it reads from here.

        `rest` is what is left of a frame; for the others see `Readers.fall_behind`.
        """
        connection.rest = rest
        if not self.readers.fall_behind(
            connection, number=number, position=position, heard_at=heard_at
        ):
            return  # swapped away meanwhile: it begins anew
        if connection.send is not takes_nothing:
            self.lags += 1
        connection.wake()

    def end(self, connection: Connection, reason: str, *, after: int) -> None:
        """Say `hybrid.bye` and stop; the client comes back `after` milliseconds later."""
        farewell = control_frame("bye", {"reason": reason, "after": after})
        if self.readers.dismiss(connection, farewell, reason):
            connection.wake()

    def kick(self, user: str, before: int, reason: str = "kicked") -> int:
        """End a user's streams that were opened before a time (Unix ms); how many there are."""
        # First who is about to open: who that is was looked up before.
        moment = self.shut_out.note(user, before, reason)
        theirs = [
            connection
            for connection in list(self.connections.values())
            if connection.identity.user == user and connection.asked_at <= moment
        ]
        for connection in theirs:
            self.end(connection, reason, after=KICKED_MS)
        return len(theirs)

    def close(self, connection: Connection, reason: str) -> None:
        """Forget it. May be called twice; the first reason counts."""
        held = self.readers.forget(connection, reason)
        self.wheel.discard(connection)
        try:
            if held:
                self._on_close(connection)
        finally:
            self.sockets.forget(connection)
            connection.release()
            connection.wake()

    def hung_up(self, connection: Connection) -> None:
        """The client is gone. For the event loop, which may not wait for a lock."""
        self._left.append((connection, "client"))
        self.doorbell.set()

    def abandon(self, connection: Connection) -> None:
        """Close it later. For finalizers, which may run in the middle of a locked step."""
        self._left.append((connection, "abandoned"))

    def bury(self) -> None:
        """Close those who left where nobody could wait for the lock."""
        while self._left:
            self.close(*self._left.popleft())

    def held(self) -> int:
        """The slots in use."""
        self.bury()
        return len(self.connections)

    def count_gap(self, reason: str, connection: Connection | None) -> None:
        """A client is told that it missed events."""
        self.gaps[reason] += 1
        self._on_gap(connection, reason)

    def _summon(self, connection: Connection) -> None:
        if not connection._awake:
            connection._awake = True
            self.due.append(connection)
            self.doorbell.set()

    # -- what a bus has to say

    def ring(self) -> None:
        """There is something new in the log."""
        if not self.doorbell.is_set():
            self.doorbell.set()

    def swap(self, log: Log, reason: str) -> None:
        """Go on with another log: what was shared has changed under us, and all are told."""
        for connection in self.readers.swap(log, reason):
            connection.wake()
        self.ring()

    def provisional(self, event: Event) -> None:
        """Hand an event that is not in the shared log yet to who may see it here."""
        self.readers.provisional(event)
        self.ring()

    def seal(self) -> None:
        """No more provisional events; what has not been handed on comes from the log."""
        for _ in range(SEAL_TURNS):
            if self.readers.sealable:
                break
            self.ring()
            self.pause()
        self.readers.seal()

    def announce(self, state: str, since: int) -> None:
        """Tell every stream how the bus is; `since` is Unix milliseconds."""
        self.readers.announce(state, since)
        self.ring()

    def settle(self) -> None:
        """The log can judge every cursor again: let who is pending have its answer."""
        self.readers.settle()
        self.ring()

    def control(self, event: Event) -> None:
        """Do what an event of the protocol's own asks for."""
        if order := self.shut_out.ordered(event):
            self.kick(*order)

    # -- what the pump does between passes

    def judge_pending(self) -> None:
        """Where it is time to: judge the cursors that could not be judged before."""
        for connection, gap in self.readers.judge_pending():
            if connection.transport == "sse":
                self.resumes["gap" if gap else "full"] += 1
            connection.wake()

    @property
    def behind(self) -> bool:
        """Whether there is more to hand on."""
        return self.readers.behind or bool(self.due)
