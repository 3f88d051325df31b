"""The bus of many processes: one shared log in Redis, a copy of its end in each process.

The stream in Redis is the truth; a published message is a doorbell that happens to carry the
event. A process takes a message only if it is the next one: offset one higher, and the id that
it names as its predecessor is the newest one here. Anything else means reading the stream.

The bus is `ok` or `degraded`. It is ok exactly while this process has heard a message of its
own through Redis, has read the stream since, and no command has failed after that. Degraded, an
emit goes into the outbox, in order and with a bound, and to this process's clients without a
cursor: cursors always belong to the shared log. The way back is always the same: subscribe, hear
oneself, read what others stored, store the outbox with the same event ids (those that Redis
has already stay as they are), and say so.

One thread (a greenlet under gevent) does all of it; emits only store, and say when that failed.
"""

import itertools
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import redis

from hybrid.bus import Local, Receipt
from hybrid.bus.store import TIMEOUT, Store, Stored, decode
from hybrid.errors import OutboxFull
from hybrid.events import CONTROL, Cursor, Event, random_id
from hybrid.log import Log

logger = logging.getLogger("hybrid")

Failure = (redis.RedisError, OSError)
BATCH = 50
"""Events of the outbox in one call."""
LISTEN = 0.5
"""Seconds until the listener looks whether an emit has failed meanwhile."""
RETRY_BASE, RETRY_CAP = 0.2, 5.0
STEADY = 5.0
"""Seconds that a connection has to last until the delay before the next one is short again."""


class Deaf(redis.RedisError):
    """Redis answers commands, but what is published does not arrive here."""


def place(log: Log, epoch: str, offset: int, prev: str, id: str) -> str:
    """What a stored event is to this log: `next`, a `repeat`, or a reason to `sync`."""
    head = log.head
    if epoch != head.epoch:
        return "sync"
    if offset == head.offset + 1:
        return "next" if prev == head.id else "sync"
    known = log.cursor_at(offset)
    return "repeat" if known is not None and known.id == id else "sync"


class RedisBus:
    """See the module's docstring.

    `make_log` gives an empty log that begins after a cursor. `clock` is Unix milliseconds.
    `outbox` is the most events kept while Redis is away; `probe` the seconds of silence after
    which the subscription is tried. `monotonic` is a clock in seconds.
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
        monotonic: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
        new_id: Callable[[], str] = random_id,
    ) -> None:
        self.log = log
        self.state: Literal["ok", "degraded"] = "degraded"
        self.since = clock()
        self.trouble = "not connected yet"
        self.deaf = False
        self.syncs = 0
        self.degradations = 0
        self._store = store
        self._local = local
        self._make_log = make_log
        self._clock = clock
        self._probe_after = probe
        self._monotonic = monotonic
        self._random = random
        self._new_id = new_id
        self._outbox: deque[Event] = deque()
        self._outbox_bound = outbox
        self._flushing = False
        self._lock = threading.RLock()
        self._known = False
        self._ear = f"{store.channel}:{new_id()}"
        self._token = itertools.count()
        self._running = False
        self._wake = threading.Event()
        self._settled = threading.Event()

    @property
    def waiting(self) -> int:
        """Events in the outbox."""
        return len(self._outbox)

    def start(self, patience: float) -> None:
        """Begin to listen; returns when the log is here, after `patience` seconds at most."""
        self._running = True
        threading.Thread(target=self._run, name="hybrid-bus", daemon=True).start()
        self._settled.wait(patience)

    def stop(self) -> None:
        """Let the listener end soon."""
        self._running = False
        self._wake.set()

    # -- emitting

    def publish(self, events: Sequence[Event]) -> list[Receipt]:
        """Store the events, all or none; while Redis is away, keep them. Raises `OutboxFull`."""
        tried = False
        if self.state == "ok":
            try:
                places = self._store.publish(events, new_epoch=self._new_id())
            except Failure as error:
                tried = True
                self._fail(error)
            else:
                for place, event in zip(places, events, strict=True):
                    self._take(place, event)
                return [
                    Receipt(event.id, "log", Cursor(place.epoch, place.offset, event.id))
                    for place, event in zip(places, events, strict=True)
                ]
        with self._lock:
            # An event that was tried may be in the log: to refuse it could be a lie. There are
            # no more of these than emits were under way when Redis went.
            if len(self._outbox) + len(events) > self._outbox_bound and not tried:
                raise OutboxFull(
                    f"Redis is away; {len(self._outbox)} events wait for it, and no more than"
                    f" {self._outbox_bound} may"
                )
            return [self._keep(event) for event in events]

    def _keep(self, event: Event) -> Receipt:
        # A reply that was lost says nothing about the event: it may have come back already.
        heard = self.log.find(event.id)
        if heard is not None:
            return Receipt(event.id, "log", heard)
        if any(kept.id == event.id for kept in self._outbox):
            return Receipt(event.id, "outbox", None)
        self._outbox.append(event)
        if not self._flushing:
            self._local.provisional(event)
        if self.state == "ok":
            # The way back was finished between the failure and now: there is nobody else to
            # store what is left here.
            self._degrade("an event was left in the outbox")
        return Receipt(event.id, "outbox", None)

    # -- taking in

    def _take(self, stored: Stored, event: Event) -> str:
        """Append a stored event if it is the next one. Anything else the doorbell brings."""
        with self._lock:
            what = place(self.log, stored.epoch, stored.offset, stored.prev or "", event.id)
            if what == "next":
                self._append(self.log, event)
        if what == "next":
            if event.type.startswith(CONTROL):
                self._local.control(event)
            self._local.ring()
        return what

    def _append(self, log: Log, event: Event) -> None:
        # The clocks of other hosts may be wrong: an event is not to expire as it arrives.
        log.append(event, min(event.at, self._clock()))

    def _hear(self, message: str) -> None:
        """A message of the channel."""
        kind, _, rest = message.partition(" ")
        if kind != "e":
            return  # of a later version
        epoch, offset, prev, id, text = rest.split(" ", 4)
        event = decode(id, text, self._clock())
        if self._take(Stored(epoch, int(offset), prev), event) == "sync":
            self._catch_up()

    def _catch_up(self) -> None:
        """Read the stream from where we are to its end, or begin anew where it has changed."""
        self.syncs += 1
        while True:
            page = self._store.read(self.log.head if self._known else None)
            if page.verdict != "ok" or not self._known:
                self._begin_anew("epoch" if page.verdict in ("ok", "empty") else page.verdict)
                return
            for offset, prev, event in page.entries:
                self._take(Stored(self.log.epoch, offset, prev), event)
            if page.head is None or self.log.last >= page.head.offset:
                return

    def _begin_anew(self, reason: str) -> None:
        """Take up the log that Redis has now; `reason` is what its clients are told."""
        page = self._store.read(None)
        if page.head is None:
            self._store.found(self._new_id())
            page = self._store.read(None)
        if page.head is None:
            raise redis.RedisError("the log disappears as soon as it is made")
        start = page.head
        if page.entries:
            offset, prev, _ = page.entries[0]
            start = Cursor(page.head.epoch, offset - 1, prev)
        log = self._make_log(start)
        controls: list[Event] = []
        while page.verdict == "ok" and page.entries:
            for offset, prev, event in page.entries:
                if place(log, log.epoch, offset, prev, event.id) == "next":
                    self._append(log, event)
                    if event.type.startswith(CONTROL):
                        controls.append(event)
            page = self._store.read(log.head)
        if page.verdict != "ok":
            raise redis.RedisError(f"the log changed while it was read ({page.verdict})")
        with self._lock:
            self.log = log
            self._known = True
            # What the worker itself missed is lost for its clients like anything that is
            # dropped too early.
            self._local.swap(log, "overflow" if reason == "expired" else reason)
        for event in controls:
            self._local.control(event)

    # -- the listener

    def _run(self) -> None:
        delay = RETRY_BASE
        while self._running:
            began = self._monotonic()
            try:
                self._attend()
            except Failure as error:
                self._fail(error)
            except Exception as error:
                logger.exception("the listener failed and goes on")
                self._fail(error)
            if self._monotonic() - began > STEADY:
                delay = RETRY_BASE
            # Half of it is chance: the processes of a deployment lose Redis together.
            self._rest(delay * (0.5 + self._random()))
            delay = min(RETRY_CAP, delay * 2)

    def _rest(self, seconds: float) -> None:
        self._wake.wait(seconds)

    def _attend(self) -> None:
        """One life of the subscription; ends by an exception or by `stop`."""
        subscription = self._store.subscribe(self._ear)
        try:
            self._await(subscription, "subscribe", 2)
            self._probe(subscription)
            self._catch_up()
            self._recover()
            quiet_since = self._monotonic()
            while self._running:
                message = subscription.get_message(timeout=LISTEN)
                now = self._monotonic()
                if message is not None:
                    quiet_since = now
                    if message["type"] == "subscribe":
                        # redis-py reconnected by itself: what was said meanwhile is lost.
                        self._catch_up()
                    elif message["type"] == "message" and message["channel"] != self._ear:
                        self._hear(message["data"])
                elif now - quiet_since >= self._probe_after:
                    self._probe(subscription)
                    quiet_since = self._monotonic()
                if self.state == "degraded":
                    # An emit failed, though we heard nothing of it.
                    self._probe(subscription)
                    self._catch_up()
                    self._recover()
        finally:
            subscription.close()

    def _await(self, subscription: "redis.client.PubSub", type: str, count: int) -> None:
        deadline = self._monotonic() + 2 * TIMEOUT
        while count:
            message = subscription.get_message(timeout=max(0.0, deadline - self._monotonic()))
            if message is None:
                if self._monotonic() >= deadline:
                    raise Deaf("Redis does not confirm the subscription")
            elif message["type"] == type:
                count -= 1

    def _probe(self, subscription: "redis.client.PubSub") -> None:
        """Ring the own bell and hear it, with everything that was said before; find the head."""
        token = str(next(self._token))
        head = self._store.probe(self._ear, token)
        deadline = self._monotonic() + 2 * TIMEOUT
        while True:
            message = subscription.get_message(timeout=max(0.0, deadline - self._monotonic()))
            if message is None:
                if self._monotonic() < deadline:
                    continue
                self.deaf = True
                raise Deaf("Redis answers, but messages do not arrive")
            if message["type"] != "message":
                continue
            if message["channel"] != self._ear:
                if self._known:
                    self._hear(message["data"])
            elif message["data"] == token:
                break
        self.deaf = False
        # Whatever was stored before the probe has been heard by now, if all is well.
        if self._known and (head is None or self.log.cursor_at(head.offset) != head):
            self._catch_up()

    # -- away and back

    def _fail(self, error: BaseException) -> None:
        self._degrade(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        self._settled.set()

    def _degrade(self, trouble: str) -> None:
        with self._lock:
            self.trouble = trouble
            if self.state == "degraded" and self.degradations:
                return
            self.state = "degraded"
            self.since = self._clock()
            self.degradations += 1
            self._local.announce("degraded", self.since)
        advice = (
            " Is the password right?"
            if "Authentication" in trouble or "NOAUTH" in trouble or "WRONGPASS" in trouble
            else ""
        )
        logger.warning(
            "Redis is out of reach (%s).%s Events are kept in the outbox and reach the clients of"
            " this process alone until it is back",
            trouble,
            advice,
        )

    def _recover(self) -> None:
        """Store the outbox, then be ok. The shared log is known here up to its end."""
        stored_from_outbox = 0
        with self._lock:
            self._flushing = True
        self._local.seal()
        try:
            while True:
                with self._lock:
                    batch: Sequence[Event] = list(itertools.islice(self._outbox, BATCH))
                    if not batch:
                        self._be_ok(stored_from_outbox)
                        return
                places = self._store.publish(batch, new_epoch=self._new_id())
                stored_from_outbox += len(batch)
                in_order = [self._take(at, event) for at, event in zip(places, batch, strict=True)]
                with self._lock:
                    for _ in batch:
                        self._outbox.popleft()
                if "sync" in in_order:
                    self._catch_up()
        finally:
            with self._lock:
                self._flushing = False

    def _be_ok(self, stored: int) -> None:
        was = self.state
        self.state = "ok"
        self.trouble = ""
        self._settled.set()
        if was == "ok":
            return
        away = (self._clock() - self.since) / 1000
        self.since = self._clock()
        self._local.settle()
        if self.degradations:
            self._local.announce("ok", self.since)
            logger.warning("Redis is back after %.1f s; %d events stored", away, stored)
