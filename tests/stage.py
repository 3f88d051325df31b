"""A stage on which the hub, its pump and its clients are stepped by hand.

The hub and the streams are the real ones. What would be greenlets of gevent are greenlets that
give control back to the stage wherever they would block or pause, so that the stage decides who
runs next: at random, from a seed, or as a test says. The clock is the stage's; the sockets are
bounded buffers with a client at the other end that reads when it is told to.
"""

import random
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet

from hybrid.audience import Audience, Identity
from hybrid.bus import Bus, begin
from hybrid.bus.memory import MemoryBus
from hybrid.connection import NEVER, Connection
from hybrid.events import ORIGIN, Cursor, Event, make_event
from hybrid.hub import WRITES_PER_TURN, Hub
from hybrid.log import Log
from hybrid.stream import Stream
from hybrid.wire import chunk, to_json
from whatwg import Block, Parser


class Pipe:
    """A socket's two buffers as one: what the server sent and the client has not read."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.buffer = bytearray()
        self.broken = False
        self.sent = 0

    def send(self, data: bytes, _flags: int = 0) -> int:
        if self.broken:
            raise BrokenPipeError
        free = self.room - len(self.buffer)
        if free <= 0:
            raise BlockingIOError
        self.buffer += memoryview(data)[:free]
        self.sent += min(free, len(data))
        return min(free, len(data))

    def sendall(self, data: bytes | memoryview) -> None:
        """Blocks as a server's greenlet would: it comes back when there is room."""
        while data:
            try:
                data = data[self.send(bytes(data)) :]
            except BlockingIOError:
                _give_way()

    def shutdown(self, _how: int) -> None:
        self.broken = True

    @property
    def _sock(self) -> "Pipe":
        return self  # what gevent's sockets keep their native one in


def _give_way() -> None:
    parent = getcurrent().parent
    if parent is not None:
        parent.switch()


class StagedConnection(Connection):
    """A connection whose greenlet gives way to the stage where it would park."""

    woken = False

    def park(self, timeout: float | None = None) -> bool:
        while True:
            while not self.woken:
                _give_way()
            self.woken = False
            if self.live_since == NEVER:
                return True

    def wake(self) -> None:
        self.woken = True

    def watch(self, on_hangup: Callable[[], None]) -> None:
        self.on_hangup = on_hangup


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
        data = bytes(self.pipe.buffer[:most])
        del self.pipe.buffer[:most]
        body = self._unframe(data)
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
        heartbeat: float = 15.0,
        stall: float = 30.0,
        max_connections: int = 100_000,
        writes_per_turn: int = WRITES_PER_TURN,
        make_bus: Callable[["Stage", Log], Bus] | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.history = history
        log = self.make_log(Cursor("stage", 0, ORIGIN))
        self.hub = Hub(
            log,
            heartbeat=heartbeat,
            stall=stall,
            max_connections=max_connections,
            clock=lambda: self.now,
            wall=self.wall,
            random=self.random.random,
            pause=_give_way,
            writes_per_turn=writes_per_turn,
        )
        self.bus: Bus = (
            make_bus(self, log) if make_bus else MemoryBus(log, self.hub, clock=self.wall)
        )
        self.pump = greenlet(self._pump)
        self.servers: dict[Client, greenlet] = {}
        self.streams: dict[Client, Stream] = {}
        self.connected = 0
        self.emitted = 0

    # -- what the stage can do

    @property
    def log(self) -> Log:
        return self.bus.log

    def make_log(self, start: Cursor) -> Log:
        return Log(start.epoch, max_events=self.history, max_seconds=1e9, start=start)

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
        """Open a stream for the client from its cursor, as the endpoint does."""
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
            pending=pending,
        )
        self.hub.open(connection)
        stream = Stream(self.hub, connection, start, self.bus.state)
        client.pipe = pipe = Pipe(room)
        client.chunked = chunked
        client.raw.clear()
        client.parser = Parser()
        if direct:
            connection.send = pipe.send
            connection.chunked = chunked
            connection._socket = pipe
        self.streams[client] = stream
        self.servers[client] = greenlet(lambda: self._serve(stream, pipe, chunked))
        return connection

    def hang_up(self, client: Client) -> None:
        """The client vanishes; the server learns it from its socket."""
        assert client.pipe is not None
        client.pipe.broken = True
        connection = self.streams[client].connection
        if isinstance(connection, StagedConnection) and hasattr(connection, "on_hangup"):
            connection.on_hangup()

    def step_server(self, client: Client) -> None:
        """Let the greenlet that serves the client run until it would block."""
        server = self.servers.get(client)
        if server is not None:
            server.switch()
            if server.dead:
                del self.servers[client]

    def step_pump(self) -> None:
        """Let the pump run until its next pause."""
        self.pump.switch()

    def settle(self, clients: list[Client]) -> None:
        """Run everything until nothing moves any more; clients read all there is."""
        before = None
        while (now := self._moved(clients)) != before or self.hub.position < self.log.last:
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
            self.hub.step()
            self.hub.beat()
            _give_way()

    def _serve(self, stream: Stream, pipe: Pipe, chunked: bool) -> None:
        """What a WSGI server does with the stream."""
        try:
            for frames in stream:
                pipe.sendall(chunk(frames) if chunked else frames)
        except BrokenPipeError:
            pass
        finally:
            stream.close()
            pipe.broken = True
