"""The bounded, ordered history of events, and what a cursor into it means.

Invariants:
- offsets are contiguous: the log holds exactly the offsets `anchor.offset + 1 .. last`;
- `anchor` is the position just before the oldest event held: of what was dropped, its last
  cursor stays, so that a client that had seen everything resumes even when age has emptied
  the log;
- an entry never changes, and its frames are encoded at most once, however many read them.

Pure: time is an argument. Not locked: the bus is its one writer. Readers in other threads are
safe, since a reader that finds an offset missing takes it as dropped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hybrid.events import ORIGIN, Cursor, Event
from hybrid.wire import chunk, event_frame, poll_item


class Entry:
    """An event in the log with its encodings, each made when first needed and then shared."""

    __slots__ = ("_chunk", "_poll_item", "event", "frame", "offset")

    def __init__(self, offset: int, event: Event) -> None:
        self.offset = offset
        self.event = event
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


@dataclass(frozen=True, slots=True)
class Start:
    """Where a client begins: `gap` names why what it asked for cannot be replayed in full."""

    cursor: Cursor
    resumed: bool = False
    gap: str | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader got and how far it looked; `overflow` if what it stood at was dropped."""

    entries: Sequence[Entry]
    cursor: Cursor
    overflow: bool = False


class Log:
    """See the module's docstring.

    `epoch` names this unbroken life of the log. It keeps at most `max_events` events, none
    older than `max_seconds`. `start` is the cursor that a log taken up in mid-life begins
    after.
    """

    def __init__(
        self, epoch: str, *, max_events: int, max_seconds: float, start: Cursor | None = None
    ) -> None:
        self.epoch = epoch
        self.anchor = start or Cursor(epoch, 0, ORIGIN)
        self.head = self.anchor
        self._dropped_at = -1
        self._max_events = max_events
        self._max_ms = int(max_seconds * 1000)
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
        offset = self.head.offset + 1
        cursor = Cursor(self.epoch, offset, event.id)
        entry = Entry(offset, event.at_cursor(cursor))
        self._entries[offset] = entry
        self._cursors[event.id] = cursor
        self.head = cursor
        self.expire(now)
        return entry

    def expire(self, now: int) -> None:
        """Drop what is too many or too old at `now` (Unix milliseconds)."""
        while self._entries:
            oldest = self._entries[self.anchor.offset + 1]
            too_old = oldest.event.at < now - self._max_ms
            if len(self._entries) <= self._max_events and not too_old:
                return
            # The anchor moves first: a reader in another thread then sees "dropped", never
            # an offset that ought to be there and is not.
            assert oldest.event.cursor is not None
            self.anchor = oldest.event.cursor
            self._dropped_at = max(self._dropped_at, oldest.event.at)
            del self._entries[oldest.offset]
            self._cursors.pop(oldest.event.id, None)

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
        later is replayed (0: from the oldest). Anything else must be a cursor whose event id
        the log holds at that offset. Never raises.
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
        # A linear scan: `at` comes from clocks that can be set back, so it is not sorted.
        if 0 < since < self._dropped_at:
            return self._gap("expired")
        before = self.anchor
        for entry in list(self._entries.values()):
            if entry.event.at > since:
                break
            assert entry.event.cursor is not None
            before = entry.event.cursor
        return self._replay(before, max_replay)

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
        `cursor`.
        """
        cursor = self.cursor_at(after)
        if cursor is None:
            return self._overflow(upto)
        found: list[Entry] = []
        size = 0
        for offset in range(after + 1, upto + 1):
            entry = self._entries.get(offset)
            if entry is None or entry.event.cursor is None:
                return self._overflow(upto)
            if sees(entry.event):
                if found and size + len(entry.frame) > max_bytes:
                    break
                found.append(entry)
                size += len(entry.frame)
            cursor = entry.event.cursor
            if len(found) >= max_events:
                break
        return Reading(found, cursor)

    def _overflow(self, upto: int) -> Reading:
        return Reading((), self.cursor_at(upto) or self.head, overflow=True)

    def between(self, after: int, upto: int) -> list[Entry] | None:
        """All entries in (after, upto]; None if some of them have been dropped."""
        held = [self._entries.get(offset) for offset in range(after + 1, upto + 1)]
        entries = [entry for entry in held if entry is not None]
        return entries if len(entries) == len(held) else None
