"""One client: who it is, where it stands in the log, and how to write to it.

A connection is in one of four conditions:

    reading  it is behind: what it is to be sent is read from the log at `position`, bite by bite
    live     it has seen everything up to the readers' position, the pump writes to it, and
             `position` is not kept up
    ending   `farewell` is set; that is said, and nothing after it
    closed   `closed` names the reason; nothing is written any more

Its bytes go one of two ways, and never both:

    pushed   the hub owns the socket, the request is over, and the pump writes in every condition
    pulled   the server's greenlet or thread asks for frames and writes them; it is parked while
             the connection is live. `send` takes nothing, so every event makes it a reader again
"""

import socket
import sys
import threading
from _socket import socket as Socket
from collections.abc import Callable
from typing import Literal

from hybrid.audience import NOBODY, Identity, visible
from hybrid.events import Event

NEVER = sys.maxsize
"""`live_since` of a connection that is not live: after every pass there can be."""

Transport = Literal["sse", "polling"]


def takes_nothing(_data: bytes | memoryview, _flags: int) -> int:
    """Stands in for `socket.send` where somebody else writes to the socket."""
    return 0


class Connection:
    """See the module's docstring. The hub and its readers own all fields but the
    greenlet's own gate."""

    __slots__ = (
        "_awake",
        "_gate",
        "address",
        "answer",
        "asked_at",
        "beat_due",
        "chunked",
        "closed",
        "credentials",
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
        "pushable",
        "rest",
        "said_bye",
        "send",
        "slot",
        "socket",
        "summon",
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
        credentials: str = "",
        address: str = "",
    ) -> None:
        self.id = id
        self.credentials = credentials
        """What of its request says who it is; enough to ask again (see `recheck`)."""
        self.address = address
        self.identity = identity
        self.topics = topics or NOBODY  # one empty set for all
        self.transport = transport
        self.opened_at = opened_at
        self.opened_ms = opened_ms
        self.asked_at = opened_at
        """When its request came, in seconds of the hub's clock: before who it is was looked up."""
        self.position = position
        self.live_since = NEVER
        self.lost: str | None = None
        """Why its position means nothing any more: what it is to be told as a gap."""
        self.pending = pending
        """The cursor it came with, while nobody can judge that."""
        self.heard: tuple[tuple[int, int], ...] = ()
        self.heard_from = self.heard_at = 0
        self.told = 0
        self.beat_due = False
        self.writing_since: float | None = None
        """Since when the bite under way waits for the client to take it."""
        self.answer: Callable[[Connection, bool], bytes | None] | None = None
        """Makes a long poll's answer: None as long as there is none, unless it is called with
        True. What has one is sent that, and nothing else."""
        self.farewell: bytes | None = None
        self.said_bye = False
        self.leaving = ""
        self.closed: str | None = None
        self.slot = 0
        self.socket: Socket | None = None
        """Our own duplicate of the server's, where it gives one: to watch it, to cut it."""
        self.pushable = False
        """Whether that socket could be written to: the framing is known, nothing encrypts."""
        self.chunked = False
        self.send: Callable[[bytes | memoryview, int], int] = takes_nothing
        self.rest: memoryview | None = None
        """What is left of a frame that the socket took only in part."""
        self.summon: Callable[[Connection], None] | None = None
        """Tells the pump that it has something to do here. Only if pushed."""
        # A lock as a gate: a tenth of the memory of threading.Event, for every stream held.
        self._gate: threading.Lock | None = threading.Lock()
        self._gate.acquire()
        self._awake = False

    def sees(self, event: Event) -> bool:
        return visible(event, self.identity, self.topics)

    # -- waiting until the connection needs something

    def park(self, timeout: float | None = None) -> bool:
        """Sleep until woken and no longer live; False when `timeout` seconds passed first."""
        assert self._gate is not None, "the pump writes to this one: nobody waits here"
        while self._gate.acquire(timeout=-1 if timeout is None else timeout):
            self._awake = False
            if self.live_since == NEVER:
                return True
        return False

    def wake(self) -> None:
        """It has something to read, to say or to leave. Callable from everywhere."""
        if self.summon is not None:
            self.summon(self)
        elif not self._awake and self._gate is not None:
            self._awake = True
            try:
                self._gate.release()
            except RuntimeError:
                pass  # two threads woke it at once: it is awake

    # -- the socket

    def push(self, summon: Callable[["Connection"], None]) -> None:
        """From now on the pump writes, and nobody else; `summon` calls it."""
        assert self.socket is not None
        if self.answer is None:
            self.send = self.socket.send
        self.summon = summon
        self._gate = None

    def put(self, data: bytes) -> memoryview | None:
        """Send what the socket takes now; what it does not. Raises `OSError` for a client gone."""
        assert self.socket is not None
        try:
            sent = self.socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        return memoryview(data)[sent:] if sent < len(data) else None

    def cut(self) -> None:
        """Break the transport under a writer that is stuck in it.

        After a shutdown the blocked write fails with EPIPE, which servers take as a client
        gone; closing the socket under it would be an error in their log.
        """
        if self.socket is not None:
            try:
                self.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the client was faster

    def release(self) -> None:
        """Let go of the socket; may be called twice.

        What was sent still arrives. A server that answers by itself has a descriptor of its own,
        and closes the client's connection behind the response.
        """
        if self.summon is not None:
            self.cut()
            self.summon = None
        self.send = takes_nothing
        sock, self.socket = self.socket, None
        if sock is not None:
            sock.close()
