"""The body of a stream's response: what a WSGI server iterates over.

A plain generator would not do: closed before its first `next()` it never runs its body, so a
slot taken for it would never be given back. The finalizer is for servers and middleware that
drop a response without closing it.
"""

import weakref
from collections.abc import Iterator

from hybrid.connection import Connection
from hybrid.hub import Hub
from hybrid.log import Start
from hybrid.wire import control_frame, gap_frame, retry_frame

RETRY_MS = 3000
"""How long a native EventSource waits before it reconnects: what Chromium does unasked."""


class Stream(Iterator[bytes]):
    """Yields hello (and the gap, if `start` is one) at once, then what the connection is to be
    sent, until it ends.

    `close()` gives the connection's slot back; it may be called at any time and twice.
    """

    def __init__(self, hub: Hub, connection: Connection, start: Start, bus: str = "ok") -> None:
        self.connection = connection
        self._hub = hub
        self._opening: bytes | None = _opening(hub, connection, start, bus)
        self._said_bye = False
        self._finalizer = weakref.finalize(self, hub.abandon, connection)
        self._finalizer.atexit = False

    def __next__(self) -> bytes:
        connection = self.connection
        connection.writing_since = None
        try:
            frames = self._next()
        except OSError:
            self.close("lost")
            raise StopIteration from None
        except BaseException:
            # StopIteration as well as GreenletExit and SystemExit, which are no Exceptions
            self.close()
            raise
        connection.writing_since = self._hub.clock()
        return frames

    def _next(self) -> bytes:
        hub, connection = self._hub, self.connection
        if self._opening is not None:
            # Before anything can block: Firefox resolves fetch() only at the first byte, and
            # the headers leave with it.
            frames, self._opening = self._opening, None
            return frames
        while connection.closed is None:
            if connection.rest is not None:
                connection.writing_since = hub.clock()
                connection.write_rest()
                connection.writing_since = None
            if connection.farewell is not None:
                if self._said_bye:
                    hub.close(connection, connection.leaving)
                    break
                # The slot stays taken until the server asks for more: a client that does not
                # even read its goodbye is then still found and cut.
                self._said_bye = True
                return connection.farewell
            caught_up = hub.read(connection)
            if caught_up is not None:
                return caught_up
            if connection.beat_due:
                connection.beat_due = False
                return hub.sign_of_life_to(connection)
            if hub.join(connection):
                # Not a method of this object: the event loop would keep the stream alive, and
                # the finalizer could never run.
                connection.watch(lambda: hub.close(connection, "client"))
                connection.park()
        raise StopIteration

    def close(self, reason: str = "client") -> None:
        self._finalizer.detach()
        self._hub.close(self.connection, reason)


def _opening(hub: Hub, connection: Connection, start: Start, bus: str) -> bytes:
    """The first bytes: retry, hello, and the gap if there is one."""
    cursor = start.cursor
    certain = start.gap is None and connection.pending is None
    hello = {
        "protocol": 1,
        "client": connection.id,
        # With a gap to come, the position is the gap's to give: a connection cut between the
        # two would otherwise leave the client at the new position, never told what it missed.
        "cursor": str(cursor) if certain else None,
        "heartbeat": round(hub.heartbeat * 1000),
        "resumed": None if connection.pending is not None else start.resumed,
        "bus": bus,
    }
    opening = retry_frame(RETRY_MS) + control_frame("hello", hello, cursor if certain else None)
    if start.gap:
        hub.gaps[start.gap] += 1
        opening += gap_frame(start.gap, cursor)
    return opening
