"""This process's copy of the shared log: the one place that appends to it.

The stream in Redis is the truth; a published message is a doorbell that happens to carry the
event. It is taken only if it is the next one: offset one higher, and the mark that it names as its
predecessor's is the newest one here. Anything else means reading the stream.
"""

import logging
import threading
from collections.abc import Callable

import redis

from hybrid.bus import Local
from hybrid.bus.store import Store, Stored, before, decode, following
from hybrid.errors import InvalidEvent
from hybrid.events import CONTROL, Cursor, Event, check_id
from hybrid.log import Log

logger = logging.getLogger("hybrid")

_OLDER = "it was restored from an older copy, or a replica without the last events took over"
ANOTHER = {"epoch": "it was emptied, or is a new Redis", "rollback": _OLDER, "forked": _OLDER}
"""What has become of a log that is another one now, by the reason that clients are told."""


def place(log: Log, stored: Stored) -> str:
    """What a stored event is to this log: `next`, a `repeat`, or a reason to `sync`."""
    head, cursor = log.head, stored.cursor
    if cursor.epoch == head.epoch and cursor.offset == head.offset + 1:
        return "next" if stored.prev == head.mark else "sync"
    return "repeat" if log.cursor_at(cursor.offset) == cursor else "sync"


class Copy:
    """See the module's docstring.

    `make_log` gives an empty log that begins after a cursor; `clock` is Unix milliseconds
    and `monotonic` seconds. What raises does it as `Store` does.
    """

    def __init__(
        self,
        store: Store,
        local: Local,
        lock: "threading.RLock",
        *,
        log: Log,
        make_log: Callable[[Cursor], Log],
        clock: Callable[[], int],
        monotonic: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self.log = log
        self.known = False
        """Whether it is one of the shared log yet."""
        self.malformed = 0
        """Messages of the channel that nobody of ours has said."""
        self._store = store
        self._local = local
        self._lock = lock
        self._make_log = make_log
        self._clock = clock
        self._monotonic = monotonic
        self._new_id = new_id
        self.read_at = 0.0
        """When the last reading began that has come to the end."""
        self._reading = threading.RLock()
        self._another = ""
        """Why the log is another one now, until that is logged."""

    def take(self, stored: Stored, event: Event) -> str:
        """Append a stored event if it is the next one. Anything else the doorbell brings."""
        with self._lock:
            what = place(self.log, stored)
            if what == "next":
                self._append(self.log, event)
        if what == "next":
            if event.type.startswith(CONTROL):
                self._local.control(event)
            self._local.ring()
        return what

    def hear(self, message: str) -> None:
        """An event's message of the channel, without the letter that says so."""
        try:
            epoch, offset, prev, id, text = message.split(" ", 4)
            stored = following(epoch, int(offset), prev, check_id(id))
        except (ValueError, InvalidEvent):
            self.malformed += 1  # a doorbell, whatever it says: the stream is the truth
            self.catch_up()
            return
        if self.take(stored, decode(id, text, self._clock())) == "sync":
            self.catch_up()

    def catch_up(self) -> None:
        """Read the stream from where we are to its end, or begin anew where it has changed."""
        try:
            with self._reading:
                began = self._monotonic()
                self._read_on()
                self.read_at = began
        finally:
            reason, self._another = self._another, ""
        if reason:
            logger.warning(
                "the log in Redis is another one than before (%s): %s. Every client is told `gap`"
                " with this reason, and loads anew. Fix: let Redis keep its data (appendonly yes),"
                " and let a failover wait for its replica",
                reason,
                ANOTHER[reason],
            )

    def _append(self, log: Log, event: Event) -> None:
        # The clocks of other hosts may be wrong: an event is not to expire as it arrives.
        log.append(event, min(event.at, self._clock()))

    def _read_on(self) -> None:
        while True:
            begun_at = self.log.head
            page = self._store.read(begun_at if self.known else None)
            if page.verdict != "ok" or not self.known:
                reason = "epoch" if page.verdict in ("ok", "empty") else page.verdict
                if self._begin_anew(reason, begun_at):
                    return
                continue
            for stored, event in page.entries:
                self.take(stored, event)
            if page.head is None or self.log.last >= page.head.offset:
                return

    def _begin_anew(self, reason: str, begun_at: Cursor) -> bool:
        """Take up the log that Redis has now; `reason` is what its clients are told.

        False where ours has gone on from `begun_at` meanwhile, by what was stored here: what was
        read is older then, and to take it up would be to go back.
        """
        page = self._store.read(None)
        if page.head is None:
            self._store.found(self._new_id())
            page = self._store.read(None)
        if page.head is None:
            raise redis.RedisError("the log disappears as soon as it is made")
        start = page.head
        if page.entries:
            start = before(page.entries[0][0])
        log = self._make_log(start)
        controls: list[Event] = []
        while page.verdict == "ok" and log.last < page.head.offset:
            for stored, event in page.entries:
                if stored.cursor.offset > log.last + 1:
                    # Somebody took an entry out of the middle: what can be proved begins after it.
                    log = self._make_log(before(stored))
                if place(log, stored) == "next":
                    self._append(log, event)
                    if event.type.startswith(CONTROL):
                        controls.append(event)
            if not page.entries:
                log = self._make_log(page.head)  # the newest was taken out
                break
            page = self._store.read(log.head)
            if page.verdict == "expired":
                page = self._store.read(Cursor("", log.last, ""))
            if page.head is None or page.head.epoch != log.epoch:
                raise redis.RedisError(f"the log changed while it was read ({page.verdict})")
        if page.verdict != "ok":
            raise redis.RedisError(f"the log changed while it was read ({page.verdict})")
        with self._lock:
            if self.known and self.log.head != begun_at:
                return False
            if self.known and reason in ANOTHER:
                self._another = reason
            self.log = log
            self.known = True
            # What the worker itself missed is lost for its clients like anything that is
            # dropped too early.
            self._local.swap(log, "overflow" if reason == "expired" else reason)
        for event in controls:
            self._local.control(event)
        return True
