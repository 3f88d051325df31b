"""One client: who it is, where it stands in the log, and how to write to it.

A connection is in one of four conditions:

    reading  its own greenlet (or thread) reads the log from `position` and hands frames to
             the server
    live     it has seen everything up to the hub's position; the pump writes to it, its own
             greenlet is parked, and `position` is not kept up
    ending   `farewell` is set; its greenlet says it and stops
    closed   `closed` names the reason; nothing is written any more

Only one side ever writes: the pump while live, the greenlet otherwise. Where the server gives
no socket the connection has one that never takes a byte: then every wake-up of the pump makes
it a reader again, and no second path is needed.
"""

import socket
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal

from hybrid.audience import Identity, visible
from hybrid.events import Event

NEVER = sys.maxsize
"""`live_since` of a connection that is not live: after every pass there can be."""

Transport = Literal["sse", "polling"]


def takes_nothing(_data: bytes, _flags: int) -> int:
    """Stands in for `socket.send` where there is no socket to write to."""
    return 0


class Connection:
    """See the module's docstring. The hub owns all fields but the greenlet's own gate."""

    __slots__ = (
        "__weakref__",
        "_awake",
        "_gate",
        "_hangup",
        "_socket",
        "beat_due",
        "chunked",
        "closed",
        "farewell",
        "heard",
        "heard_at",
        "heard_from",
        "id",
        "identity",
        "leaving",
        "live_since",
        "lost",
        "opened_at",
        "opened_ms",
        "pending",
        "position",
        "rest",
        "send",
        "slot",
        "told",
        "topics",
        "transport",
        "writing_since",
    )

    def __init__(
        self,
        id: str,
        identity: Identity,
        topics: frozenset[str],
        *,
        position: int,
        transport: Transport,
        opened_at: float,
        opened_ms: int = 0,
        pending: str | None = None,
    ) -> None:
        self.id = id
        self.identity = identity
        self.topics = topics
        self.transport = transport
        self.opened_at = opened_at
        self.opened_ms = opened_ms
        self.position = position
        self.live_since = NEVER
        self.lost: str | None = None
        """Why its position means nothing any more: what it is to be told as a gap."""
        self.pending = pending
        """The cursor it came with, while nobody can judge that."""
        self.heard: tuple[tuple[int, int], ...] = ()
        self.heard_from = self.heard_at = 0
        self.told = 0
        self.send: Callable[[bytes, int], int] = takes_nothing
        self.chunked = False
        self.rest: memoryview | None = None
        """What is left of a frame that the socket took only in part."""
        self.beat_due = False
        self.writing_since: float | None = None
        self.farewell: bytes | None = None
        self.leaving = ""
        self.closed: str | None = None
        self.slot = 0
        self._socket: Any = None
        self._hangup: Any = None
        # A lock as a gate: a tenth of the memory of threading.Event, for every stream held.
        self._gate = threading.Lock()
        self._gate.acquire()
        self._awake = False

    def sees(self, event: Event) -> bool:
        return visible(event, self.identity, self.topics)

    # -- parking: the greenlet sleeps until the connection needs it

    def park(self, timeout: float | None = None) -> bool:
        """Sleep until woken and no longer live; False when `timeout` seconds passed first."""
        while self._gate.acquire(timeout=-1 if timeout is None else timeout):
            self._awake = False
            if self.live_since == NEVER:
                return True
        return False

    def wake(self) -> None:
        if not self._awake:
            self._awake = True
            try:
                self._gate.release()
            except RuntimeError:
                pass  # two threads woke it at once: it is awake

    # -- the server's socket, where there is one that can be written to directly

    def attach(self, environ: Mapping[str, Any]) -> None:
        """Let the pump write to the server's own socket, if that is safe.

        It is with a plain TCP or Unix socket of gevent and a response framed by HTTP/1.x:
        then the bytes on the wire are known. TLS, HTTP/2 and other servers keep the iterator.
        """
        sock: Any = environ.get("gunicorn.socket")
        if not type(sock).__module__.startswith("gevent._socket"):
            return
        protocol = environ.get("SERVER_PROTOCOL")
        # The native socket below gevent's: its send() never switches greenlets, and after
        # gunicorn closes the socket it fails, where a bare fd could be somebody else's by then.
        native = getattr(sock, "_sock", None)
        if native is None or protocol not in ("HTTP/1.1", "HTTP/1.0"):
            return
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self.chunked = protocol == "HTTP/1.1"
        self.send = native.send

    def write_rest(self) -> None:
        """Finish the frame that the pump had to leave half written. Blocks this greenlet only."""
        if self.rest is not None:
            rest, self.rest = self.rest, None
            self._socket.sendall(rest)

    def watch(self, on_hangup: Callable[[], None]) -> None:
        """Call `on_hangup` once when the client closes its side. Needs a socket and gevent."""
        if self._socket is None or self._hangup is not None:
            return
        import gevent

        native = self._socket._sock
        watcher = gevent.get_hub().loop.io(native.fileno(), 1)

        def readable() -> None:
            try:
                gone = native.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
            except BlockingIOError:
                return
            except OSError:
                gone = True
            # Bytes that a client pipelined stay readable for ever: stop looking, the
            # heartbeat finds out.
            watcher.stop()
            if gone:
                on_hangup()

        watcher.start(readable)
        self._hangup = watcher

    def cut(self) -> None:
        """Break the transport under a writer that is stuck in it.

        After a shutdown the blocked write fails with EPIPE, which servers take as a client
        gone; closing the socket under it would be an error in their log.
        """
        if self._socket is not None:
            try:
                self._socket._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the client was faster

    def release(self) -> None:
        """Let go of the socket; may be called twice."""
        self.send = takes_nothing
        if self._hangup is not None:
            self._hangup.stop()
            self._hangup.close()
            self._hangup = None
