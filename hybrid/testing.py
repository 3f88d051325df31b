"""For the tests of applications: what was emitted, what arrived, and how it goes wrong.

    with capture_events(app) as events:
        client.post("/reports/17/approve")
    assert [event.type for event in events] == ["report.approved"]

docs/testing.md shows the rest. Nothing here needs a server, Redis or gevent; everything waits with
a deadline, so that a test that would hang fails and says what had come.
"""

import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from flask import Flask
from flask.testing import FlaskClient

from hybrid import signals
from hybrid.application import AppState
from hybrid.bus import Receipt
from hybrid.bus.memory import MemoryBus
from hybrid.connection import Connection
from hybrid.events import CONTROL, Event
from hybrid.eventsource import Message, Parser
from hybrid.hub import Hub
from hybrid.log import Log

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from werkzeug.test import TestResponse

DEADLINE = 5.0
"""Seconds that a client waits for what it was told to expect."""
MARK = "test.mark"


class TooLate(AssertionError):
    """What a test waited for did not come in time."""


@contextmanager
def capture_events(app: Flask) -> Iterator[list[Event]]:
    """The events that the app emits meanwhile, in order, whoever may see them.

    They have `type`, `data`, `audience` (with `users`, `roles`, `topics`) and `id`, and are sent as
    always.
    """
    captured: list[Event] = []

    def take(_app: Flask, event: Event, **_: Any) -> None:
        captured.append(event)

    with signals.emitted.connected_to(take, sender=app):
        yield captured


class SSEClient:
    """A stream, opened with Flask's test client and read in the background.

    Use it in a `with`: leaving closes the stream. The client's cookies decide who it is. With any
    `status` but 200 there is no stream, and `problem` says why. What waits raises `TooLate` after
    `deadline` seconds.
    """

    def __init__(
        self,
        client: FlaskClient,
        *,
        since: str | None = None,
        topics: Collection[str] = (),
        headers: Mapping[str, str] | None = None,
        deadline: float = DEADLINE,
    ) -> None:
        self._client = client
        self._app = client.application
        self._state: AppState = self._app.extensions["hybrid"]
        self._query = {"topic": list(topics), **({"since": since} if since else {})}
        self._headers = {"Accept": "text/event-stream, application/problem+json", **(headers or {})}
        self._deadline = deadline
        self._arriving: queue.Queue[Message | None] = queue.Queue()
        self._answered = threading.Event()
        self._answer: TestResponse | None = None
        self._connection: Connection | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="hybrid-sse-client", daemon=True)
        self.seen: list[Message] = []
        """All that was read so far, control events and heartbeats included."""
        self.cursor: str | None = None
        """Where the client stands: what it would resume from."""
        self.ended = False

    def __enter__(self) -> "SSEClient":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._state.instance().hub.close(self._connection, "client")
        self._thread.join(self._deadline)

    @property
    def answer(self) -> "TestResponse":
        """The answer, as soon as its first byte is there."""
        if not self._answered.wait(self._deadline):
            raise TooLate(f"no answer within {self._deadline:g} s")
        if self._answer is None:
            raise AssertionError("the request failed") from self._error
        return self._answer

    @property
    def status(self) -> int:
        """The answer's HTTP status."""
        return self.answer.status_code

    @property
    def problem(self) -> Any:
        """Why there is no stream: the problem details of an answer that is not 200."""
        return None if self.status == 200 else self.answer.get_json(silent=True)

    def next(self, type: str | None = None) -> Message:
        """The next event, of a type or of any but the protocol's own. Raises `TooLate`."""
        end = time.monotonic() + self._deadline
        while True:
            message = self._next(end, f"an event {type}" if type else "an event")
            if message.type == type:
                return message
            if type is None and message.text is not None and not message.type.startswith(CONTROL):
                return message

    def take(self, count: int, type: str | None = None) -> list[Message]:
        """The next `count` events. Raises `TooLate`."""
        return [self.next(type) for _ in range(count)]

    def so_far(self) -> list[Message]:
        """The events that have been emitted up to now and are for this client; may be none.

        It emits a mark to everyone and reads up to that. So it can show that something did not
        arrive, without a pause that is either too long or too short.
        """
        with self._client.application.app_context():
            mark = self._state.hybrid.emit(MARK)
        found = []
        while True:
            message = self.next()
            if message.type != MARK:
                found.append(message)
            elif mark in (message.fields.get("eid"), *(message.id or "").split(".")[2:3]):
                return found

    def wait_until_ended(self) -> None:
        """Read to the end of the stream. Raises `TooLate` if it goes on."""
        end = time.monotonic() + self._deadline
        while not self.ended:
            try:
                self._next(end, "the end of the stream")
            except TooLate:
                if not self.ended:
                    raise

    def _next(self, end: float, what: str) -> Message:
        try:
            message = self._arriving.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            message = None
        else:
            self.ended = message is None
        if message is None:
            why = "the stream ended" if self.ended else f"{self._deadline:g} s passed"
            if self._answered.is_set() and self.status != 200:
                why = f"the answer was {self.status}, {self.problem}"
            raise TooLate(f"waited for {what}, but {why}; came so far: {self.seen}")
        self.seen.append(message)
        self.cursor = message.id or self.cursor
        return message

    def _run(self) -> None:
        with self._app.test_request_context():
            path = self._app.url_for(f"{self._state.hybrid.blueprint.name}.sse")
        me = threading.get_ident()

        def note(_app: Flask, connection: Connection, **_: Any) -> None:
            if threading.get_ident() == me:
                self._connection = connection

        try:
            with signals.connected.connected_to(note, sender=self._app):
                self._answer = self._client.get(
                    path,
                    query_string=self._query,
                    headers=self._headers,
                    multithread=True,
                    environ_overrides={"SERVER_SOFTWARE": "Werkzeug"},
                )
            self._answered.set()
            if self._answer.status_code == 200:
                self._read(self._answer)
        except ConnectionResetError:
            pass  # cut, as by `Faults.drop`
        except BaseException as error:
            self._error = error
        finally:
            self._answered.set()
            self._arriving.put(None)

    def _read(self, answer: "TestResponse") -> None:
        parser = Parser()
        for piece in answer.response:
            for message in parser.feed(piece if isinstance(piece, bytes) else piece.encode()):
                self._arriving.put(message)
        answer.close()


class Clock:
    """Time that stands still until `advance` moves it."""

    def __init__(self, state: AppState) -> None:
        self._state = state
        self.seconds = 0.0
        self.started_ms = time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return self.seconds

    def unix_ms(self) -> int:
        return self.started_ms + round(self.seconds * 1000)

    def advance(self, seconds: float) -> None:
        """Let time pass: heartbeats and ends that fall due then happen at once."""
        self.seconds += seconds
        self._state.instance().hub.ring()


@contextmanager
def stopped_clock(app: Flask) -> Iterator[Clock]:
    """A clock in the test's hands, in place of the app's. Begins with an empty log, and leaves one.

    History that grows old, heartbeats and the age of streams go by it.
    """
    state: AppState = app.extensions["hybrid"]
    clock, before = Clock(state), (state.clock, state.wall)
    state.forget()
    state.clock, state.wall = clock.monotonic, clock.unix_ms
    try:
        yield clock
    finally:
        state.forget()
        state.clock, state.wall = before


class Faults:
    """Switches for what goes wrong between an app and its clients. Made by `faults`."""

    def __init__(self, app: Flask, inner: "WSGIApplication") -> None:
        self._state: AppState = app.extensions["hybrid"]
        self._inner = inner
        self._bus: _WeakBus | None = None
        self.delay = 0.0
        """Seconds that each answer and each piece of a stream takes longer."""
        self.buffering = False
        """Whether streams are held back until they end, as by a proxy that buffers."""
        self._cuts = 0

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        environ.pop("gunicorn.socket", None)  # so that all bytes of a stream come by here
        if self.delay:
            time.sleep(self.delay)
        body = self._inner(environ, start_response)
        path = environ.get("PATH_INFO", "")
        return _FaultyBody(self, body) if path.endswith("/sse") else body

    def drop(self) -> None:
        """Cut every open stream and long poll, without a goodbye."""
        self._cuts += 1
        hub = self._state.instance().hub
        for connection in list(hub.connections.values()):
            hub.close(connection, "dropped")

    def bus_down(self) -> None:
        """Take the shared log away: events become provisional, clients are told `degraded`.

        For apps on `memory://`, whose bus never fails by itself; with Redis, stop the server.
        """
        instance = self._state.instance()
        if self._bus is None:
            if not isinstance(instance.bus, MemoryBus):
                raise TypeError("bus_down is for memory://; with Redis, stop the server")
            self._bus = _WeakBus(instance.bus, instance.hub, instance.wall)
            instance.bus = self._bus
        self._bus.go_down()

    def bus_up(self) -> None:
        """Give it back: what was emitted meanwhile is stored, clients are told `ok`."""
        if self._bus is not None:
            self._bus.come_back()


@contextmanager
def faults(app: Flask) -> Iterator[Faults]:
    """The switches, for an app under Flask's test client or a server; all off at the end."""
    inner = app.wsgi_app
    switches = Faults(app, inner)
    app.wsgi_app = switches  # type: ignore[method-assign] # what Flask's documentation advises
    try:
        yield switches
    finally:
        app.wsgi_app = inner  # type: ignore[method-assign]
        switches.bus_up()


class _FaultyBody(Iterator[bytes]):
    def __init__(self, faults: Faults, body: Iterable[bytes]) -> None:
        self._faults = faults
        self._body = body
        self._pieces = iter(body)
        self._cuts = faults._cuts

    def __next__(self) -> bytes:
        held: list[bytes] = []
        while True:
            piece = next(self._pieces, None)
            if self._cuts != self._faults._cuts:
                raise ConnectionResetError("dropped by a test")
            if self._faults.delay:
                time.sleep(self._faults.delay)
            if piece is not None and self._faults.buffering:
                held.append(piece)
            elif held:
                return b"".join(held) + (piece or b"")
            elif piece is None:
                raise StopIteration
            else:
                return piece

    def close(self) -> None:
        close: Callable[[], object] | None = getattr(self._body, "close", None)
        if close is not None:
            close()


class _WeakBus:
    """The bus of one process with a log that can be out of reach, as a shared one can."""

    deaf = False

    def __init__(self, bus: MemoryBus, hub: Hub, wall: Callable[[], int]) -> None:
        self.log: Log = bus.log
        self.trouble = ""
        self._bus = bus
        self._hub = hub
        self._wall = wall
        self._outbox: list[Event] = []
        self._lock = threading.Lock()
        self._down = False

    @property
    def state(self) -> Literal["ok", "degraded"]:
        return "degraded" if self._down else "ok"

    @property
    def headline(self) -> str:
        return self.trouble

    @property
    def waiting(self) -> int:
        return len(self._outbox)

    def start(self, patience: float) -> None:
        """It is started."""

    def stop(self) -> None:
        self._bus.stop()

    def refresh(self) -> bool:
        return not self._down

    def flush(self, timeout: float) -> int:
        return len(self._outbox)

    def held(self, id: str) -> Event | None:
        waiting = (event for event in self._outbox if event.id == id)
        return self._bus.held(id) or next(waiting, None)

    def publish(self, events: Sequence[Event], *, replicas: int = 0) -> list[Receipt]:
        with self._lock:
            if not self._down:
                return self._bus.publish(events, replicas=replicas)
            self._outbox += events
            for event in events:
                self._hub.provisional(event)
        return [Receipt(event.id, "outbox", None) for event in events]

    def go_down(self) -> None:
        with self._lock:
            if not self._down:
                self._down, self.trouble = True, "a test took it away"
                self._hub.announce("degraded", self._wall())

    def come_back(self) -> None:
        with self._lock:
            if not self._down:
                return
            self._hub.seal()
            self._bus.publish(self._outbox)
            self._outbox = []
            self._down, self.trouble = False, ""
            # First: who hears that it is back is judged by then, or about to be.
            self._hub.settle()
            self._hub.announce("ok", self._wall())
