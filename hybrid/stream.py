"""The body of a response that is held open: what a WSGI server iterates over.

Under gunicorn's gevent worker that ends with the first bytes. A live stream needs no greenlet
and no WSGI environment, so the hub takes the connection over, on a duplicate of its socket, and
the request ends (docs/decisions/0005-the-request-ends.md). Everywhere else the server's
greenlet or thread stays, and is parked while the connection is live.

A plain generator would not do: closed before its first `next()` it never runs its body, so a
slot taken for it would never be given back. The finalizer is for servers and middleware that
drop a response without closing it.
"""

import errno
import sys
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from hybrid.connection import Connection
from hybrid.hub import Hub
from hybrid.log import Start
from hybrid.sockets import is_gunicorns
from hybrid.wire import chunk, control_frame, gap_frame, retry_frame

RETRY_MS = 3000
"""How long a native EventSource waits before it reconnects: what Chromium does unasked."""


class Stream(Iterator[bytes]):
    """Yields `opening` at once, then what the connection is to be sent, until it ends.

    `close()` gives the connection's slot back; it may be called at any time and twice.
    """

    def __init__(self, hub: Hub, connection: Connection, opening: bytes) -> None:
        self.connection = connection
        self._hub = hub
        self._opening: bytes | None = opening
        self._outermost = False
        self._response: Any = None
        self._finalizer = weakref.finalize(self, hub.abandon, connection)
        self._finalizer.atexit = False

    def __eq__(self, other: object) -> bool:
        """gunicorn asks what it got from the application whether it is its "already handled".

        That it asks this very object shows that no middleware has wrapped the body: nobody
        else is to see its bytes, and nobody else learns how the request ends.
        """
        server = sys.modules.get("gunicorn.workers.base_async")
        if server is not None and other is getattr(server, "ALREADY_HANDLED", None):
            self._outermost = True
        return self is other

    __hash__ = object.__hash__

    def attach(self, environ: Mapping[str, Any]) -> None:
        """Look at what the server gives of its socket."""
        self._hub.sockets.attach(self.connection, environ)

    def begin(self, start_response: object) -> None:
        """The response's head has been given to this, and waits for the first bytes of the body."""
        response = self._hub.sockets.end_with(self.connection, start_response)
        # Of another's `start_response` only gunicorn knows the head that came of it.
        self._response = response if is_gunicorns(start_response) else None

    def __next__(self) -> bytes:
        hub, connection = self._hub, self.connection
        connection.writing_since = None
        if self._outermost and self._hand_over():
            self._finalizer.detach()
            # To gunicorn the client is gone: it writes its line into the access log, closes
            # its socket without a last chunk, and reads no next request from it.
            raise BrokenPipeError(errno.EPIPE, "the hub has taken this connection over")
        if self._opening is not None:
            # Before anything can block: Firefox resolves fetch() only at the first byte, and
            # the headers leave with it.
            frames, self._opening = self._opening, None
        else:
            frames = self._await_frames()
        connection.writing_since = hub.clock()
        return frames

    def _hand_over(self) -> bool:
        """Let the hub have the connection, if it can: at once, or else behind the first bytes.

        Head and opening in one write of ours, where gunicorn makes two, are 40 µs of a connect.
        """
        response, self._response = self._response, None
        if self._opening is None:
            return self._hub.take_over(self.connection)
        if response is None or response.headers_sent:
            return False
        opening = chunk(self._opening) if self.connection.chunked else self._opening
        return self._hub.take_over(self.connection, self._hub.sockets.head(response) + opening)

    def _await_frames(self) -> bytes:
        hub, connection = self._hub, self.connection
        try:
            while connection.closed is None:
                frames = hub.next(connection)
                if frames is not None:
                    return frames
                # What is watched is the connection: of this object the event loop may know
                # nothing, or the finalizer could never run.
                hub.sockets.watch(connection)
                if connection.closed is None:
                    connection.park()
            raise StopIteration
        except BaseException:
            # StopIteration as well as GreenletExit and SystemExit, which are no Exceptions
            self.close()
            raise

    def close(self, reason: str = "client") -> None:
        if self.connection.summon is None:
            self._finalizer.detach()
            self._hub.close(self.connection, reason)


def greeting(hub: Hub, connection: Connection, start: Start, bus: str = "ok") -> bytes:
    """The first bytes of a stream of events: retry, hello, and the gap if `start` is one."""
    cursor = start.cursor
    certain = start.gap is None and not start.pending
    hello = {
        "protocol": 1,
        "client": connection.id,
        # With a gap to come, the position is the gap's to give: a connection cut between the
        # two would otherwise leave the client at the new position, never told what it missed.
        "cursor": str(cursor) if certain else None,
        "heartbeat": round(hub.heartbeat * 1000),
        "resumed": None if start.pending else start.resumed,
        "bus": bus,
    }
    opening = retry_frame(RETRY_MS) + control_frame("hello", hello, cursor if certain else None)
    if start.resumed and certain:
        hub.resumes["full"] += 1
    if start.gap:
        hub.resumes["gap"] += 1
        hub.count_gap(start.gap, connection)
        opening += gap_frame(start.gap, cursor)
    return opening
