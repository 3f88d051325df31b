"""The one greenlet that writes to sockets: events as they come, bites to who is behind, beats.

While it writes it lets others run every few hundred writes, and new events gather for the next
pass: under load events batch by themselves, at rest each leaves at once. It never blocks on a
socket. What a full one does not take stays in the log: the connection falls behind, and has its
bites here too, as far as its socket takes them, until it has caught up.
"""

import logging
import socket
import threading
from collections.abc import Callable

from hybrid.connection import NEVER, Connection
from hybrid.fanout import Batch
from hybrid.hub import Hub
from hybrid.live import Pass
from hybrid.wheel import TICKS
from hybrid.wire import COMMENT, LAST_CHUNK, chunk

logger = logging.getLogger("hybrid")

WRITES_PER_TURN = 256
"""Writes between two pauses: about 2 ms, so that other requests wait no longer than that."""
BITES_PER_STEP = 64
"""Bites between two passes: as long, since reading the log costs more than a write."""
BITES_PER_TURN = 8
"""Between two pauses: a bite may come past hundreds of events that are for others."""

DONTWAIT = socket.MSG_DONTWAIT


class Pump:
    """Hands on what the hub has.

    `stall` is the seconds after which a client that does not take its bite is cut, `max_age` those
    after which a stream is moved on, +-20 % by its moment in the wheel; 0 is never.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        stall: float,
        max_age: float = 0.0,
        writes_per_turn: int = WRITES_PER_TURN,
    ) -> None:
        self.hub = hub
        self._readers = hub.readers
        self._stall = stall
        self._max_age = max_age
        self._writes_per_turn = writes_per_turn
        self._running = False

    def start(self) -> None:
        """Start it in a thread of its own, which under gevent is a greenlet."""
        if not self._running:
            self._running = True
            threading.Thread(target=self._run, name="hybrid-pump", daemon=True).start()

    def stop(self) -> None:
        """Let it end after the pass under way."""
        self._running = False
        self.hub.doorbell.set()

    def _run(self) -> None:
        doorbell = self.hub.doorbell
        while self._running:
            doorbell.clear()
            more = self.step()
            self._attempt(self.beat)
            if more or doorbell.is_set():
                self.hub.pause()
            else:
                doorbell.wait(self.hub.wheel.pace)

    def step(self) -> bool:
        """One pass: what came since the last one, to all who may see it; then bites.

        True when there is more to do already.
        """
        for part in (
            self.hub.bury,
            self._readers.take_notice,
            self.hub.judge_pending,
            self._hand_on_provisional,
            self._hand_on,
            self._wake_early,
            self._feed,
        ):
            self._attempt(part)
        return self.hub.behind

    def _attempt(self, part: Callable[[], object]) -> None:
        """A part that breaks must not keep others from their turn, nor end them for all."""
        try:
            part()
        except Exception:
            self.hub.faults += 1
            logger.exception("the pump failed in a pass and goes on")

    def _failed(self, connection: Connection) -> None:
        """Whatever goes wrong with one connection ends that one, which comes back."""
        self.hub.faults += 1
        logger.exception("a stream failed and is closed")
        self._close(connection, "lost")

    def _close(self, connection: Connection, reason: str) -> None:
        self._attempt(lambda: self.hub.close(connection, reason))

    # -- to the live

    def _hand_on_provisional(self) -> None:
        try:
            if provisional := self._readers.take_provisional():
                self._write(provisional)
        finally:
            self._readers.passed_on()

    def _hand_on(self) -> None:
        try:
            if events := self._readers.take():
                self._write(events)
        finally:
            self._readers.passed_on()

    def _wake_early(self) -> None:
        for connection in self._readers.take_early():
            connection.wake()

    def _write(self, what: Pass) -> None:
        """The hot path: one send per connection, nothing else that grows with their number."""
        left = self._writes_per_turn
        for turns, (batch, readers) in enumerate(what.groups):
            try:
                left = self._write_batch(what, batch, readers, left)
            except Exception:
                for _, others in what.groups[turns + 1 :]:
                    self._leave_out(what, others)
                raise

    def _leave_out(self, what: Pass, readers: list[Connection]) -> None:
        """They got nothing of a pass that broke: they read it from its start."""
        for connection in readers:
            if connection.live_since < what.number:
                self._fall_behind(what, connection, what.start, None)

    def _fall_behind(
        self, what: Pass, connection: Connection, place: int, rest: memoryview | None
    ) -> None:
        which = "heard_at" if what.provisional else "position"
        self.hub.fall_behind(connection, rest, number=what.number, **{which: place})

    def _write_batch(self, what: Pass, batch: Batch, readers: list[Connection], left: int) -> int:
        hub = self.hub
        taken = begin = 0
        try:
            while begin < len(readers):
                turn = readers[begin : begin + left]
                begin += left
                left -= len(turn)
                for chunked in (True, False):
                    taken += self._write_turn(what, batch, turn, chunked=chunked)
                if not left:
                    left = self._writes_per_turn
                    hub.pause()
        except Exception:
            self._leave_out(what, readers[begin:])
            raise
        if taken:
            self._tally(batch, taken)
        return left

    def _write_turn(
        self, what: Pass, batch: Batch, turn: list[Connection], *, chunked: bool
    ) -> int:
        """Those of them with this framing, none of whom a pause comes between; how many had all.

        What there is to look at is looked at before: between two sends, which push everything
        out of the processor's cache, that takes half a microsecond for each.
        """
        number = what.number
        # Not live any more, or joined after this pass began: `live_since` is later.
        theirs = [c for c in turn if c.live_since < number and c.chunked is chunked]
        if not theirs:
            return 0
        data = batch.chunked if chunked else batch.plain
        size, taken = len(data), len(theirs)
        for place, send in enumerate([connection.send for connection in theirs]):
            sent: int | Exception
            try:
                if (sent := send(data, DONTWAIT)) == size:
                    continue
            except Exception as error:
                sent = error
            taken -= 1
            self._fell_short(what, batch, theirs[place], sent)
        return taken

    def _fell_short(
        self, what: Pass, batch: Batch, connection: Connection, sent: int | Exception
    ) -> None:
        """It did not take all: its socket is full, or gone, or something is broken."""
        try:
            match sent:
                case BlockingIOError():
                    sent = 0
                case Exception():
                    raise sent
            if connection.live_since < what.number:  # threads do not wait for a pause
                cut = batch.cut_at(sent, what.start, chunked=connection.chunked)
                self._fall_behind(what, connection, *cut)
        except OSError:
            self._close(connection, "lost")
        except Exception:
            # What it got of this nobody knows: it comes back with its cursor.
            self._failed(connection)

    def _tally(self, batch: Batch, taken: int) -> None:
        """Count a batch that so many connections took whole: once for all of them."""
        hub = self.hub
        hub.deliveries += taken * len(batch.entries)
        hub.delivered_bytes += taken * len(batch.plain)
        now = hub.wall()
        for entry in batch.entries:
            hub.latency.observe((now - entry.event.at) / 1000, taken)

    # -- to those who are behind

    def _feed(self) -> None:
        """A bite each for those whose turn it is."""
        due = self.hub.due
        for turn in range(min(len(due), BITES_PER_STEP)):
            if turn and turn % BITES_PER_TURN == 0:
                self.hub.pause()
            connection = due.popleft()
            connection._awake = False
            if connection.closed is None and connection.live_since == NEVER:
                try:
                    self._bite(connection)
                except OSError:
                    self._close(connection, "lost")
                except Exception:
                    self._failed(connection)

    def _bite(self, connection: Connection) -> None:
        """What is left of the last one, or the next; more when the socket has taken it all.

        The stall is counted from the beginning of a bite: a client that takes a byte now and
        then is as stuck as one that takes none.
        """
        hub = self.hub
        data = connection.rest
        if data is None:
            frames = hub.next(connection)
            if frames is None:
                return
            if connection.chunked:
                frames = chunk(frames) + (LAST_CHUNK if connection.said_bye else b"")
            data = memoryview(frames)
        assert connection.socket is not None, "only what is pushed to is due"
        try:
            sent = connection.socket.send(data, DONTWAIT)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            connection.rest = connection.writing_since = None
            connection.wake()
            return
        connection.rest = data[sent:]
        if connection.writing_since is None:
            connection.writing_since = hub.clock()

    # -- the heartbeat

    def beat(self) -> None:
        """Give the connections whose turn has come a sign of life, and cut those that hang."""
        hub = self.hub
        now = hub.clock()
        self._attempt(self._readers.expire)
        hub.end_waiting(now)
        for due in hub.wheel.due(now):
            frame = self._readers.sign_of_life(hub.position)
            framed = chunk(frame)
            for connection in due:
                try:
                    if self._max_age and now - connection.opened_at > self._age(connection):
                        hub.end(connection, "age", after=0)
                    elif connection.live_since == NEVER:
                        self._watch(connection, now)
                    elif connection.pending is not None:
                        self._beat(connection, chunk(COMMENT) if connection.chunked else COMMENT)
                    else:
                        self._beat(connection, framed if connection.chunked else frame)
                except OSError:
                    self._close(connection, "lost")
                except Exception:
                    self._failed(connection)

    def _age(self, connection: Connection) -> float:
        """Its turn has to come within the 20 % above, so the spread ends a heartbeat earlier."""
        share = connection.slot / TICKS
        spread = max(0.0, 0.4 * self._max_age - self.hub.heartbeat)
        return 0.8 * self._max_age + share * spread

    def _watch(self, connection: Connection, now: float) -> None:
        since = connection.writing_since
        if since is not None and now - since > self._stall:
            if connection.rest is not None:
                # Maybe it was this process that stood still, and the client has read meanwhile:
                # the loop could not yet say that its socket has room.
                self._bite(connection)
                if connection.writing_since is None:
                    return
            connection.cut()
            self._close(connection, "slow")

    def _beat(self, connection: Connection, frame: bytes) -> None:
        # First: one that falls behind by this finds it due as soon as it is woken.
        connection.beat_due = True
        try:
            sent = connection.send(frame, DONTWAIT)
        except BlockingIOError:
            sent = 0
        if sent:
            connection.beat_due = False
        if sent < len(frame):
            rest = memoryview(frame)[sent:] if sent else None
            self.hub.fall_behind(connection, rest)
