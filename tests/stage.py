"""A stage on which the hub, its pump and its clients are stepped by hand.

The hub and the streams are the real ones. What would be greenlets of gevent are greenlets that
give control back to the stage wherever they would block or pause, so that the stage decides who
runs next: at random, from a seed, or as a test says. The clock is the stage's; the sockets are
bounded buffers with a client at the other end that reads when it is told to.
"""

import math
import random
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet

from hybrid.audience import Audience, Identity
from hybrid.bus import Bus, begin, settle_late
from hybrid.bus.memory import MemoryBus
from hybrid.connection import NEVER, Connection
from hybrid.events import ORIGIN, Cursor, Event, make_event
from hybrid.hub import Hub
from hybrid.log import Claim, Log
from hybrid.pump import WRITES_PER_TURN, Pump
from hybrid.sockets import Sockets
from hybrid.stream import Stream, greeting
from hybrid.wire import LAST_CHUNK, chunk, to_json
from whatwg import Block, Parser


class Pipe:
    """A socket's two buffers as one: what the server sent and the client has not read."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.buffer = bytearray()
        self.broken = False
        self.sent = 0
        self.on_room: Callable[[], None] | None = None
        """Called once when there is room again after a send that found too little."""
        self._found_too_little = False

    def send(self, data: bytes | memoryview, _flags: int = 0) -> int:
        if self.broken:
            raise BrokenPipeError
        free = self.room - len(self.buffer)
        self._found_too_little = free < len(data)
        if free <= 0:
            raise BlockingIOError
        self.buffer += memoryview(data)[:free]
        self.sent += min(free, len(data))
        return min(free, len(data))

    def take(self, most: int) -> bytes:
        """What the client reads."""
        data = bytes(self.buffer[:most])
        del self.buffer[:most]
        if data and self._found_too_little and self.on_room is not None:
            self._found_too_little = False
            self.on_room()
        return data

    def sendall(self, data: bytes | memoryview) -> None:
        """Blocks as a server's greenlet would: it comes back when there is room."""
        while data:
            try:
                data = data[self.send(bytes(data)) :]
            except BlockingIOError:
                _give_way()

    def shutdown(self, _how: int) -> None:
        self.broken = True

    def close(self) -> None:
        pass  # a duplicate of the server's: that one is still open

    def fileno(self) -> int:
        return -1


def _give_way() -> None:
    parent = getcurrent().parent
    if parent is not None:
        parent.switch()


class StagedConnection(Connection):
    """A connection whose greenlet gives way to the stage where it would park."""

    woken = False

    def park(self, timeout: float | None = None) -> bool:
        assert self.summon is None
        while True:
            while not self.woken:
                _give_way()
            self.woken = False
            if self.live_since == NEVER:
                return True

    def wake(self) -> None:
        self.woken = True
        if self.summon is not None:
            super().wake()


class Unwatched(Sockets):
    """No event loop here: the stage itself says who has gone and where there is room."""

    def watch(self, connection: Connection) -> None:
        pass


class Client:
    """A browser: reads its pipe, keeps its cursor, remembers what it was told."""

    def __init__(self, identity: Identity, topics: frozenset[str] = frozenset()) -> None:
        self.identity = identity
        self.topics = topics
        self.cursor: str | None = None
        self.told: list[Block] = []
        self.beats: list[tuple[int, str]] = []
        """Heartbeats that moved the cursor: how many blocks came before each, and its id."""
        self.pipe: Pipe | None = None
        self.chunked = False
        self.raw = bytearray()
        self.parser = Parser()

    def receive(self, most: int) -> None:
        """Read up to `most` bytes from the network and understand the complete blocks."""
        assert self.pipe is not None
        body = self._unframe(self.pipe.take(most))
        while body:
            # block by block, so that an id-only one (a heartbeat) is seen as well
            end = body.find(b"\n\n")
            head, body = (body, b"") if end < 0 else (body[: end + 2], body[end + 2 :])
            before = self.parser.last_event_id
            blocks = self.parser.feed(head)
            self.told += blocks
            if self.parser.last_event_id != before:
                self.cursor = self.parser.last_event_id
                if not blocks:
                    self.beats.append((len(self.told), self.cursor))

    def _unframe(self, data: bytes) -> bytes:
        if not self.chunked:
            return data
        self.raw += data
        body = b""
        while (end := self.raw.find(b"\r\n")) >= 0:
            size = int(bytes(self.raw[:end]), 16)
            if len(self.raw) < end + 2 + size + 2:
                break
            body += self.raw[end + 2 : end + 2 + size]
            assert self.raw[end + 2 + size : end + 4 + size] == b"\r\n"
            del self.raw[: end + 4 + size]
        return body


class Stage:
    """One instance, its pump and its clients; `step_*` moves one of them a little."""

    def __init__(
        self,
        seed: int = 0,
        *,
        history: int = 10_000,
        history_seconds: float = 1e9,
        history_bytes: float = math.inf,
        heartbeat: float = 15.0,
        stall: float = 30.0,
        max_connections: int = 100_000,
        writes_per_turn: int = WRITES_PER_TURN,
        make_bus: Callable[["Stage", Log], Bus] | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.history = history
        self.history_seconds = history_seconds
        self.history_bytes = history_bytes
        log = self.make_log(Cursor("stage", 0, ORIGIN))
        self.hub = Hub(
            log,
            heartbeat=heartbeat,
            max_connections=max_connections,
            clock=lambda: self.now,
            wall=self.wall,
            random=self.random.random,
            pause=_give_way,
        )
        self.hub.sockets = Unwatched(self.hub.hung_up, self.hub._summon)
        self.pump = Pump(
            self.hub,
            stall=stall,
            writes_per_turn=writes_per_turn,
        )
        self.bus: Bus = (
            make_bus(self, log) if make_bus else MemoryBus(log, self.hub, clock=self.wall)
        )
        self.pumping = greenlet(self._pump)
        self.servers: dict[Client, greenlet] = {}
        self.streams: dict[Client, Stream] = {}
        self.connected = 0
        self.emitted = 0

    # -- what the stage can do

    @property
    def log(self) -> Log:
        return self.bus.log

    def make_log(self, start: Cursor) -> Log:
        return Log(
            start.epoch,
            max_events=self.history,
            max_seconds=self.history_seconds,
            max_bytes=self.history_bytes,
            start=start,
        )

    def wall(self) -> int:
        return int(self.now * 1000)

    def emit(self, audience: Audience, data: Any = None, pad: int = 0) -> Event:
        self.emitted += 1
        event = make_event(
            "tick",
            [self.emitted, "x" * pad] if data is None else data,
            audience,
            text=None,
            at=self.wall(),
            max_bytes=1 << 20,
            encode=to_json,
        )
        self.bus.publish([event])
        return event

    def connect(
        self, client: Client, *, room: int = 1 << 20, direct: bool = True, chunked: bool = True
    ) -> Connection:
        """Open a stream for the client from its cursor, as the endpoint does.

        `direct`: the hub takes it over after the first bytes, as under gunicorn with gevent.
        """
        start, pending = begin(self.bus, client.cursor, max_replay=None)
        self.connected += 1
        connection = StagedConnection(
            f"c{self.connected}",
            client.identity,
            client.topics,
            position=start.cursor.offset,
            transport="sse",
            opened_at=self.now,
            opened_ms=self.wall(),
        )
        self.meanwhile()
        start = self.hub.open(connection, Claim(client.cursor, certain=pending is None))
        stream = Stream(self.hub, connection, greeting(self.hub, connection, start, self.bus.state))
        settle_late(self.bus, self.hub, start)
        client.pipe = pipe = Pipe(room)
        client.chunked = chunked
        client.raw.clear()
        client.parser = Parser()
        if direct:
            connection.chunked = chunked
            connection.pushable = stream._outermost = True
            connection.socket = pipe  # type: ignore[assignment]  # as much of one as is needed
            pipe.on_room = lambda: self.hub._summon(connection)
        self.streams[client] = stream
        self.servers[client] = greenlet(lambda: self._serve(stream, pipe, chunked))
        return connection

    def meanwhile(self) -> None:
        """What others do while a client's slot is asked for, which is a call to Redis."""

    def hang_up(self, client: Client) -> None:
        """The client vanishes; the server learns it from its socket."""
        assert client.pipe is not None
        client.pipe.broken = True
        self.hub.hung_up(self.streams[client].connection)

    def step_server(self, client: Client) -> None:
        """Let the greenlet that serves the client, if it has one still, run until it would block.

        `servers` keeps it until the stream has ended, whoever writes to it.
        """
        server = self.servers.get(client)
        if server is None:
            return
        if not server.dead:
            server.switch()
        connection = self.streams[client].connection
        if server.dead and (connection.summon is None or connection.closed is not None):
            del self.servers[client]

    def step_pump(self) -> None:
        """Let the pump run until its next pause."""
        self.pumping.switch()

    def settle(self, clients: list[Client]) -> None:
        """Run everything until nothing moves any more; clients read all there is."""
        before = None
        while (now := self._moved(clients)) != before or self.hub.behind:
            before = now
            for client in clients:
                self.step_server(client)
                if client.pipe is not None:
                    client.receive(1 << 30)
            self.step_pump()

    def _moved(self, clients: list[Client]) -> list[int]:
        pipes = [client.pipe for client in clients if client.pipe is not None]
        return [self.hub.position, len(self.servers)] + [
            number for pipe in pipes for number in (pipe.sent, len(pipe.buffer))
        ]

    # -- the greenlets

    def _pump(self) -> None:
        while True:
            self.pump.step()
            self.pump.beat()
            _give_way()

    def _serve(self, stream: Stream, pipe: Pipe, chunked: bool) -> None:
        """What a WSGI server does with the stream."""
        try:
            for frames in stream:
                pipe.sendall(chunk(frames) if chunked else frames)
            if chunked:
                pipe.sendall(LAST_CHUNK)
        except BrokenPipeError:
            pass
        finally:
            stream.close()
            if stream.connection.summon is None:
                pipe.broken = True
