"""The bus of many processes: one shared log in Redis, a copy of its end in each process.

The bus is `ok` or `degraded`. It is ok exactly while this process has heard a message of its
own through Redis, has read the stream since, and no command has failed after that. Then emits
queue up and are stored together, one call after the other (`courier.py`), and each waits for its
place in the log, but no longer than `PATIENCE`.

Degraded, an emit goes into the outbox, in order and with a bound, and to this process's clients
without a cursor: cursors always belong to the shared log. On the way back (`listener.py`) the
outbox is stored with the same event ids; those that Redis has already stay as they are. That is
why an emit whose answer is late may go there too: it is stored once, and never in another's place.

Who owns what: the copy owns the log, health the state, the courier who waits, the outbox what was
kept. One lock is theirs together, since an event passes from one to the next: whoever holds it
sees each event in exactly one place. It is held for no call to Redis.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import redis

from hybrid.bus import Local, Receipt
from hybrid.bus.copy import Copy
from hybrid.bus.courier import Courier, Errand, Gate
from hybrid.bus.health import Health
from hybrid.bus.listener import Listener
from hybrid.bus.outbox import Outbox, load
from hybrid.bus.store import FAILURE, Store
from hybrid.events import Cursor, Event, random_id
from hybrid.log import Log

logger = logging.getLogger("hybrid")

PATIENCE = 0.9
"""Seconds that an emit waits for Redis; with the rest of its work it stays below one."""
JOIN = 1.0
"""Seconds that `stop` waits for each thread, which may be in the middle of a call."""
LOOK = 0.01
"""Seconds between two looks of who waits until everything is stored."""
REFRESH = 0.05
"""Seconds between two readings that clients cause: cursors that lead nowhere are for the asking."""


def _all(asked: Iterable[object]) -> int:
    return sum(1 for _ in asked)


class RedisBus:
    """See the module's docstring.

    `make_log` gives an empty log that begins after a cursor. `clock` is Unix milliseconds.
    `outbox` is the most events kept while Redis is away, `outbox_bytes` the memory that they may
    take; `probe` the seconds of silence after which the subscription is tried. `monotonic` is a
    clock in seconds.
    """

    def __init__(
        self,
        store: Store,
        local: Local,
        *,
        make_log: Callable[[Cursor], Log],
        log: Log,
        clock: Callable[[], int],
        outbox: int,
        probe: float,
        outbox_bytes: int = 64 * 1024 * 1024,
        monotonic: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
        new_id: Callable[[], str] = random_id,
        make_gate: Callable[[], Gate] = Gate,
    ) -> None:
        self.dropped = 0
        """Events that Redis refused for good."""
        self.on_aside: Callable[[str], object] = lambda _: None
        """Called with what processes tell each other besides events (`a …` on the channel)."""
        self.on_lost: Callable[[BaseException], object] = lambda _: None
        """Called with the reason when Redis is out of reach from now on, with the lock held: it
        may neither block nor log."""
        self.on_renew: Callable[[], object] = lambda: None
        """Called when all connections to Redis are given up, since one of them has failed."""
        self._store = store
        self._local = local
        self._monotonic = monotonic
        self._new_id = new_id
        self._lock = threading.RLock()
        self._outbox = Outbox(outbox, outbox_bytes)
        self._sealed = False
        """Whether what is kept now is about to be stored, and not handed out before."""
        self._running = True
        self._wake = threading.Event()
        self._health = Health(
            self._lock, clock=clock, announce=local.announce, on_lost=self._keep_all
        )
        self._copy = Copy(
            store,
            local,
            self._lock,
            log=log,
            make_log=make_log,
            clock=clock,
            monotonic=monotonic,
            new_id=new_id,
        )
        self._storing = Courier[Sequence[Event], list[Receipt]](
            self._store_lists, load=load, lock=self._lock, name="hybrid-store", make_gate=make_gate
        )
        self._reading = Courier[float, None](
            self._read_for_all, load=_all, lock=self._lock, name="hybrid-read", make_gate=make_gate
        )
        self._counting = Courier[int, int](
            self._count_copies, load=_all, lock=self._lock, name="hybrid-ack", make_gate=make_gate
        )
        self._listener = Listener(
            store,
            self._copy,
            self._health,
            recover=self._recover,
            renew=self._renew,
            on_aside=lambda text: self.on_aside(text),
            probe=probe,
            monotonic=monotonic,
            random=random,
            rest=self._rest,
            new_id=new_id,
        )

    @property
    def log(self) -> Log:
        return self._copy.log

    @property
    def state(self) -> Literal["ok", "degraded"]:
        return self._health.state

    @property
    def trouble(self) -> str:
        return self._health.trouble

    @property
    def headline(self) -> str:
        return self._health.headline

    @property
    def deaf(self) -> bool:
        return self._health.deaf

    @property
    def waiting(self) -> int:
        """Events in the outbox."""
        return len(self._outbox)

    def start(self, patience: float) -> None:
        """Begin to listen; returns when the log is here, after `patience` seconds at most."""
        self._storing.start()
        self._reading.start()
        self._listener.start()
        self._health.known.wait(patience)

    def stop(self) -> None:
        """End the threads; returns when they have ended, within a few seconds at most."""
        self._running = False
        self._listener.stop()
        self._wake.set()
        for courier in (self._storing, self._reading, self._counting):
            courier.stop(JOIN)
        self._listener.join(JOIN)
        self._store.close()

    def flush(self, timeout: float) -> int:
        """Have everything stored that waits; returns after `timeout` seconds at the latest.

        While Redis is away it is tried more often than usual. How many events are left.
        """
        end = self._monotonic() + timeout
        self._listener.hurried = True
        self._wake.set()
        try:
            while self._outbox or self._storing.busy:
                if self._monotonic() >= end:
                    break
                time.sleep(LOOK)
        finally:
            self._listener.hurried = False
        return len(self._outbox)

    def lost(self, error: Exception) -> None:
        """Somebody else has waited for Redis in vain: no emit is to find that out again."""
        self._health.lost(error)

    def refresh(self) -> bool:
        """Have the stream read, if nobody has after this call began; as patient as an emit."""
        with self._lock:
            if self.state == "degraded":
                return False
            errand = self._reading.ask(self._monotonic())
        if not errand.wait(PATIENCE):
            self._health.lost(redis.TimeoutError(f"no answer within {PATIENCE} s"))
        return self.state == "ok"

    def _read_for_all(self, asked: Sequence[float]) -> list[None]:
        if self._copy.read_at <= asked[-1]:
            self._rest(max(0.0, self._copy.read_at + REFRESH - self._monotonic()))
            try:
                self._copy.catch_up()
            except FAILURE as error:
                self._health.lost(error)
        return [None] * len(asked)

    def held(self, id: str) -> Event | None:
        """The event with this id, of the log or of the outbox."""
        log = self.log
        cursor = log.find(id)
        return (log.event_at(cursor) if cursor else None) or self._outbox.get(id)

    def _rest(self, seconds: float) -> None:
        if self._wake.wait(seconds) and self._running:
            self._wake.clear()

    def _renew(self) -> None:
        self._store.renew()
        self.on_renew()

    # -- emitting

    def publish(self, events: Sequence[Event], *, replicas: int = 0) -> list[Receipt]:
        """Store the events, all or none; while Redis is away, keep them. Raises `OutboxFull`."""
        end = self._monotonic() + PATIENCE
        with self._lock:
            if self.state == "degraded":
                self._outbox.require_room(events)
                return [self._keep(event) for event in events]
            errand = self._storing.ask(events)
        if not errand.wait(end - self._monotonic()):
            self._health.lost(redis.TimeoutError(f"no answer within {PATIENCE} s"))
        if errand.error is not None:
            raise errand.error
        receipts = errand.answer
        assert receipts is not None
        if replicas and all(receipt.stored == "log" for receipt in receipts):
            copies = self._copies(replicas, end)
            return [Receipt(each.id, "log", each.cursor, copies) for each in receipts]
        return receipts

    def _store_lists(self, lists: Sequence[Sequence[Event]]) -> list[list[Receipt]]:
        """What the courier does: all in one call."""
        events = [event for each in lists for event in each]
        try:
            receipts = iter(self._store_events(events))
        except FAILURE as error:
            self._health.lost(error)
            raise  # to nobody: whoever was waiting has been told that it is kept
        return [[next(receipts) for _ in each] for each in lists]

    def _store_events(self, events: Sequence[Event]) -> list[Receipt]:
        """Store them in one call, and take them in."""
        places = self._store.publish(events, new_epoch=self._new_id())
        for place, event in zip(places, events, strict=True):
            self._copy.take(place, event)
        with self._lock:
            self._outbox.drop(events)  # who waits may have given up, and has kept them
        return [
            Receipt(event.id, "log", place.cursor)
            for place, event in zip(places, events, strict=True)
        ]

    def _keep_all(self, error: BaseException) -> None:
        """It is degraded now: what waits for a place is kept, in order, and its emits are told.

        There is room for them: that is no more than emits were under way. And one that was tried
        may be in the log, so that to refuse it could be a lie.
        """
        self.on_lost(error)  # first: who is told below goes on to ask elsewhere
        for errand in self._storing.withdraw_all():
            errand.settle([self._keep(event) for event in errand.what])

    def _keep(self, event: Event) -> Receipt:
        # An answer that was lost says nothing about the event: it may have come back already.
        heard = self.log.find(event.id)
        if heard is not None:
            return Receipt(event.id, "log", heard)
        if event.id not in self._outbox:
            self._outbox.add(event, shown=not self._sealed)
            if not self._sealed:
                self._local.provisional(event)
        return Receipt(event.id, "outbox", None)

    def _copies(self, wanted: int, end: float) -> int:
        """How many replicas have what was stored by now; 0 where nobody says so in time."""
        self._counting.start()
        errand: Errand[int, int] = self._counting.ask(wanted)
        if not errand.wait(end - self._monotonic()):
            self._counting.withdraw(errand)
        return errand.answer or 0

    def _count_copies(self, wanted: Sequence[int]) -> list[int]:
        return [self._store.copies(max(wanted))] * len(wanted)

    # -- the way back

    def _recover(self) -> None:
        """Store the outbox, then be ok. The shared log is known here up to its end."""
        if self.state == "ok":
            return
        stored = self._store_outbox()
        # Once more: who came meanwhile, with a cursor that another process has given meanwhile,
        # is judged by what the log has now. Who comes from here on is judged at once.
        self._copy.catch_up()
        with self._lock:
            if self._health.state == "ok":  # and not lost again meanwhile
                self._local.settle()
        self._health.tell(stored)
        self._health.known.set()

    def _store_outbox(self) -> int:
        """How many events it had."""
        stored = 0
        with self._lock:
            self._sealed = True
        self._local.seal()
        try:
            # Also where there is nothing to store: that Redis can be read does not say that it
            # can be written.
            self._store.found(self._new_id())
            while True:
                with self._lock:
                    rest = self._outbox.rest()
                    if rest is not None:
                        # What came since is stored like what comes from here on: to wait until
                        # there is nothing would be to wait for ever, with Redis far away.
                        self._outbox.drop(rest)
                        self._health.back()
                        if rest:
                            self._storing.ask(rest)
                        break
                    batch = self._outbox.batch()
                try:
                    self._store_events(batch)
                except (redis.TimeoutError, redis.ResponseError) as error:
                    # Too much for the line, or one of them for Redis: less until all is stored.
                    self._outbox.take_less(batch)
                    if len(batch) > 1:
                        continue
                    if not self._is_refused(batch[0], error):
                        raise
                    with self._lock:
                        self._outbox.drop(batch)
                    continue
                stored += len(batch)
                self._outbox.take_more()
        finally:
            with self._lock:
                self._sealed = False
        return stored

    def _is_refused(self, event: Event, error: Exception) -> bool:
        """Whether Redis takes everything but this event, which is dropped then.

        No list of errors tells that; but the script without an event fails where the trouble is
        Redis' own, and the second time with it shows that the trouble has not just passed.
        """
        if not isinstance(error, redis.ResponseError):
            return False
        self._store.found(self._new_id())
        try:
            self._store.publish([event], new_epoch=self._new_id())
        except redis.ResponseError as again:
            self.dropped += 1
            logger.error("Redis refuses the event %s, which is dropped: %s", event.id, again)
            return True
        return False  # stored after all: the next try finds it there
