"""The body of a stream's response: what a WSGI server iterates over.

A plain generator would not do: closed before its first `next()` it never runs its body, so a
slot taken for it would never be given back. The finalizer is for servers and middleware that
drop a response without closing it.
"""

import weakref
from collections.abc import Iterator

from hybrid.connection import Connection
from hybrid.hub import Hub
from hybrid.wire import heartbeat_frame


class Stream(Iterator[bytes]):
    """Yields `opening` at once, then what the connection is to be sent, until it ends.

    `close()` gives the connection's slot back; it may be called at any time and twice.
    """

    def __init__(self, hub: Hub, connection: Connection, opening: bytes) -> None:
        self.connection = connection
        self._hub = hub
        self._opening: bytes | None = opening
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
                return heartbeat_frame(hub.log.cursor_at(connection.position))
            if hub.join(connection):
                # Not a method of this object: the event loop would keep the stream alive, and
                # the finalizer could never run.
                connection.watch(lambda: hub.close(connection, "client"))
                connection.park()
        raise StopIteration

    def close(self, reason: str = "client") -> None:
        self._finalizer.detach()
        self._hub.close(self.connection, reason)
