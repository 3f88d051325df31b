"""The bounded, ordered history of events, and what a cursor into it means.

Invariants:
- offsets are contiguous: the log holds exactly the offsets `anchor.offset + 1 .. last`;
- `anchor` is the position just before the oldest event held: of what was dropped, its last
  cursor stays, so that a client that had seen everything resumes even when age has emptied
  the log;
- an entry never changes, and its frames are encoded at most once, however many read them.

Pure: time is an argument. The bus alone appends, and knows in which order; anybody may let it
expire. The lock is between these two: readers need none, since one that finds an offset missing
takes it as dropped.
"""

import math
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hybrid.events import ORIGIN, Cursor, Event
from hybrid.wire import chunk, event_frame, poll_item

UNSEEN = 500
"""Entries for others that one reading passes over: a third of a millisecond."""
ENVELOPE = 700
"""Bytes of an entry beside its texts, measured: the objects, their ids, two places in tables."""
NAME = 120
"""Bytes of one name in an audience, with its place in a set."""


class Entry:
    """An event in the log with its encodings, each made when first needed and then shared.

    `latest` is the newest time (Unix ms) of all events up to this one.
    """

    __slots__ = ("_chunk", "_poll_item", "event", "frame", "latest", "offset")

    def __init__(self, offset: int, event: Event, latest: int = 0) -> None:
        self.offset = offset
        self.event = event
        self.latest = latest
        self.frame = event_frame(event)
        self._chunk: bytes | None = None
        self._poll_item: str | None = None

    @property
    def chunk(self) -> bytes:
        if self._chunk is None:
            self._chunk = chunk(self.frame)
        return self._chunk

    @property
    def poll_item(self) -> str:
        if self._poll_item is None:
            self._poll_item = poll_item(self.event)
        return self._poll_item

    @property
    def weight(self) -> int:
        """Bytes of memory that it takes with all encodings, those too that are not made yet."""
        audience = self.event.audience
        names = len(audience.users) + len(audience.roles) + len(audience.topics)
        return ENVELOPE + sys.getsizeof(self.event.body) + 3 * len(self.frame) + NAME * names


UNHEARD = frozenset({"epoch", "rollback", "forked"})
"""Gaps of a log that may merely not have heard yet of what another process has."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a client says it has read: a cursor, a time, or None for a new client.

    `certain`: the log has been brought up to date since, so that its word on `since` is final.
    """

    since: str | None
    certain: bool = True


@dataclass(frozen=True, slots=True)
class Start:
    """Where a client begins: `gap` names why what it asked for cannot be replayed in full.

    `pending`: nobody can say yet; the cursor is as good as any.
    """

    cursor: Cursor
    resumed: bool = False
    gap: str | None = None
    pending: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader got and how far it looked; `overflow` if what it stood at was dropped.

    `paused`: it came past many that are for others, and is to let others run before it goes on.
    """

    entries: Sequence[Entry]
    cursor: Cursor
    overflow: bool = False
    paused: bool = False


class Log:
    """See the module's docstring.

    `epoch` names this unbroken life of the log. It keeps at most `max_events` events, none
    older than `max_seconds`, and of these as many as fit `max_bytes` of memory, but always the
    newest. `start` is the cursor that a log taken up in mid-life begins after.
    """

    def __init__(
        self,
        epoch: str,
        *,
        max_events: int,
        max_seconds: float,
        max_bytes: float = math.inf,
        start: Cursor | None = None,
    ) -> None:
        self.epoch = epoch
        self.bytes = 0
        """What it takes of memory."""
        self.anchor = start or Cursor(epoch, 0, ORIGIN)
        self.head = self.anchor
        self._dropped_at = -1
        self._max_events = max_events
        self._max_ms = int(max_seconds * 1000)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._latest = 0
        self._entries: dict[int, Entry] = {}
        self._cursors: dict[str, Cursor] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def last(self) -> int:
        """The newest offset; that of the anchor when nothing is held."""
        return self.head.offset

    def append(self, event: Event, now: int) -> Entry:
        """Give the event the next offset. `now` is Unix milliseconds and drives expiry."""
        with self._lock:
            cursor = self.head.next(event.id)
            offset = cursor.offset
            self._latest = max(self._latest, event.at)
            entry = Entry(offset, event.at_cursor(cursor), self._latest)
            self._entries[offset] = entry
            self._cursors[event.id] = cursor
            self.bytes += entry.weight
            self.head = cursor
            self._trim(now, offset)
        return entry

    def expire(self, now: int, upto: int | None = None) -> None:
        """Drop what is too old at `now` (Unix milliseconds), and no later than offset `upto`."""
        oldest = self._entries.get(self.anchor.offset + 1)
        if oldest is not None and oldest.event.at < now - self._max_ms:
            with self._lock:
                self._trim(now, self.last if upto is None else upto)

    def _trim(self, now: int, upto: int) -> None:
        while self._entries:
            oldest = self._entries[self.anchor.offset + 1]
            held = len(self._entries)
            too_much = held > self._max_events or (self.bytes > self._max_bytes and held > 1)
            too_old = oldest.event.at < now - self._max_ms and oldest.offset <= upto
            if not too_much and not too_old:
                return
            # The anchor moves first: a reader in another thread then sees "dropped", never
            # an offset that ought to be there and is not.
            assert oldest.event.cursor is not None
            self.anchor = oldest.event.cursor
            self._dropped_at = max(self._dropped_at, oldest.event.at)
            self.bytes -= oldest.weight
            del self._entries[oldest.offset]
            if self._cursors.get(oldest.event.id) is oldest.event.cursor:
                del self._cursors[oldest.event.id]  # else it was stored once more since

    def find(self, id: str) -> Cursor | None:
        """The cursor of the event with this id; None where it is not held (any more)."""
        return self._cursors.get(id)

    def event_at(self, cursor: Cursor) -> Event | None:
        """The event at a cursor; None where it is not held."""
        entry = self._entries.get(cursor.offset)
        return entry.event if entry is not None and entry.event.cursor == cursor else None

    def cursor_at(self, offset: int) -> Cursor | None:
        """The cursor at an offset; None where it is not held (any more)."""
        entry = self._entries.get(offset)
        if entry is not None:
            return entry.event.cursor
        anchor = self.anchor
        return anchor if anchor.offset == offset else None

    def resolve(self, since: str | None, *, max_replay: int | None = None) -> Start:
        """What a client that asks for `since` gets: the decision between resume and gap.

        None starts at the head. Digits alone are Unix milliseconds: every held event emitted
        later is replayed (0: from the oldest). Anything else must be a cursor of this
        log. Never raises.
        """
        if since is None:
            return Start(self.head)
        if since.isascii() and since.isdigit():
            return self._resolve_time(int(since[:20]), max_replay)
        cursor = Cursor.parse(since)
        if cursor is None:
            return self._gap("invalid")
        if cursor.epoch != self.epoch:
            return self._gap("epoch")
        if cursor.offset > self.last:
            return self._gap("rollback")
        if cursor.offset < self.anchor.offset:
            return self._gap("expired")
        if self.cursor_at(cursor.offset) != cursor:
            return self._gap("forked")
        return self._replay(cursor, max_replay)

    def _resolve_time(self, since: int, max_replay: int | None) -> Start:
        if 0 < since < self._dropped_at:
            return self._gap("expired")
        # The first event later than that. `at` comes from clocks that can be set back, so it is
        # not sorted; the latest time so far is.
        low, high = self.anchor.offset + 1, self.last + 1
        while since and low < high:
            middle = (low + high) // 2
            entry = self._entries.get(middle)
            if entry is None or entry.latest <= since:
                low = middle + 1  # what is dropped meanwhile is before the first that is held
            else:
                high = middle
        before = self.cursor_at(low - 1)
        return self._gap("expired") if before is None else self._replay(before, max_replay)

    def _replay(self, cursor: Cursor, max_replay: int | None) -> Start:
        if max_replay is not None and self.last - cursor.offset > max_replay:
            return self._gap("too_far")
        return Start(cursor, resumed=True)

    def _gap(self, reason: str) -> Start:
        return Start(self.head, gap=reason)

    def read(
        self,
        after: int,
        upto: int,
        sees: Callable[[Event], bool],
        *,
        max_events: int,
        max_bytes: int,
    ) -> Reading:
        """The events in (after, upto] that the reader sees, in order, within the bounds.

        At least one event is returned if there is one, whatever its size. With `overflow`,
        `after` is no longer in the log: the reader missed events, must be told, and goes on at
        `cursor`. One that is `paused` has more to read, even if it got nothing.
        """
        cursor = self.cursor_at(after)
        if cursor is None:
            return self._overflow(upto)
        found: list[Entry] = []
        size = unseen = 0
        for offset in range(after + 1, upto + 1):
            entry = self._entries.get(offset)
            if entry is None or entry.event.cursor is None:
                return self._overflow(upto)
            if sees(entry.event):
                if found and size + len(entry.frame) > max_bytes:
                    break
                found.append(entry)
                size += len(entry.frame)
            else:
                unseen += 1
            cursor = entry.event.cursor
            if len(found) >= max_events or unseen >= UNSEEN:
                break
        return Reading(found, cursor, paused=unseen >= UNSEEN and cursor.offset < upto)

    def _overflow(self, upto: int) -> Reading:
        return Reading((), self.cursor_at(upto) or self.head, overflow=True)

    def between(self, after: int, upto: int) -> list[Entry] | None:
        """All entries in (after, upto]; None if some of them have been dropped."""
        held = [self._entries.get(offset) for offset in range(after + 1, upto + 1)]
        entries = [entry for entry in held if entry is not None]
        return entries if len(entries) == len(held) else None
