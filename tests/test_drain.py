"""Leaving: workers that are stopped, reloaded and killed, and clients that miss nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest

from follower import Follower
from hybrid import Identity, Publisher
from hybrid.connection import Connection
from hybrid.drain import CLOSED_MS, LONGEST_MS, RETURNS_PER_SECOND, SLICES, Drain
from hybrid.hub import Hub
from hybrid.log import Log
from redises import RedisServer, redis_server
from servers import DEADLINE, PREFIX, ROOT, RawStream, Server, free_port, gunicorn, tracebacks

pytestmark = pytest.mark.server

NOBODY = Identity()
GRACE = 120
"""graceful_timeout in these tests: whoever waits for that fails the test by its deadline."""
CALM = ("--graceful-timeout", str(GRACE))


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        yield server


def stop(server: Server) -> float:
    """SIGTERM to gunicorn; how long it took to go. Fails if it had to be killed."""
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(DEADLINE) == 0
    return time.monotonic() - began


def goodbye(stream: RawStream) -> dict[str, Any]:
    """The stream's goodbye, after which the response ends as it should."""
    (bye,) = stream.take(1, "hybrid.bye")
    stream.rest()
    assert stream.ended
    said: dict[str, Any] = json.loads(bye.data)
    return said


WAYS = {
    "one worker": ("-w", "1"),
    "four workers": ("-w", "4"),
    "preloaded": ("-w", "2", "--preload", "-c", "python:preload_conf"),
}


@pytest.mark.parametrize(
    ("way", "direct"), [*((way, "true") for way in WAYS), ("one worker", "false")]
)
def test_r01_sigterm_says_goodbye_and_the_server_goes(
    tmp_path: Path, redis: RedisServer, way: str, direct: str
) -> None:
    """Every stream gets `hybrid.bye` and its end; nobody waits for graceful_timeout."""
    log = tmp_path / "log"
    with gunicorn(log, *CALM, *WAYS[way], redis_url=redis.url, direct_writes=direct) as server:
        streams = [server.stream() for _ in range(40)]
        for stream in streams:
            stream.hello()
        server.emit(data="last words")
        for stream in streams:
            stream.take(1)
        took = stop(server)
        said = [goodbye(stream) for stream in streams]
    print(f"{way}, direct writes {direct}: {took:.1f} s")
    assert took < GRACE / 2
    assert {bye["reason"] for bye in said} == {"shutdown"}
    assert len({bye["after"] for bye in said}) > 1
    assert tracebacks(log) == []
    assert "graceful timeout" not in log.read_text()


@pytest.mark.parametrize("workers", [1, 4])
def test_r01_two_thousand_streams_are_told(
    tmp_path: Path, redis: RedisServer, workers: int
) -> None:
    """All of them, and they come back over two seconds, and miss nothing."""
    with (
        gunicorn(tmp_path / "log", *CALM, "-w", str(workers), redis_url=redis.url) as server,
        ExitStack() as stack,
    ):
        streams = []
        for _ in range(20):
            batch = [stack.enter_context(RawStream(server.port)) for _ in range(100)]
            for stream in batch:
                stream.hello()
            streams += batch
        server.emit(data=1)
        for stream in streams:
            stream.take(1)
        old = set(psutil.Process(server.process.pid).children())
        began = time.monotonic()
        server.process.send_signal(signal.SIGHUP)
        waits = []
        for stream in streams:
            said = goodbye(stream)
            assert said["reason"] == "shutdown"
            waits.append(said["after"])
        told = time.monotonic() - began
        _, alive = psutil.wait_procs(old, DEADLINE)
        assert not alive, "an old worker stayed"
        print(
            f"{workers} workers: all told within {told:.1f} s, gone after"
            f" {time.monotonic() - began:.1f} s, back after {min(waits)} to {max(waits)} ms"
        )
        server.until_up()
        server.emit(data=2)
        back = [
            stack.enter_context(RawStream(server.port, f"since={each.parser.last_event_id}"))
            for each in streams[::10]
        ]
        for stream in back:
            assert stream.hello()["resumed"] is True
            stream.take(1)
            assert [block.data for block in stream.blocks if block.type == "tick"] == ["2"]


class Ticker:
    """Publishes numbers, a hundred a second, until it is stopped; past the server, into Redis."""

    def __init__(self, url: str) -> None:
        self.publisher = Publisher(url)
        self.next = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(0.01):
            self.publisher.emit("tick", self.next)
            self.next += 1

    def stop(self) -> int:
        """The last number that was published."""
        self._stopped.set()
        self._thread.join(DEADLINE)
        self.publisher.close()
        return self.next - 1


def test_r02_a_reload_moves_everybody_once_and_nothing_is_missed(
    tmp_path: Path, redis: RedisServer
) -> None:
    """Under load, with two workers; then a worker is killed, which says nothing to anybody."""
    with gunicorn(tmp_path / "log", *CALM, "-w", "2", redis_url=redis.url) as server:
        cursor = server.call("GET", f"{PREFIX}/polling")[1]["cursor"]
        followers = [Follower(server.port, cursor) for _ in range(30)]
        ticker = Ticker(redis.url)
        try:
            server.until(lambda: all(len(f.seen) > 20 for f in followers), "not all follow")
            server.process.send_signal(signal.SIGHUP)
            server.until(lambda: all(f.connects == 2 for f in followers), "not all came back")
            moved = [
                f"connects {f.connects}, broken {f.broken}, refused {f.refused}, goodbyes"
                f" {len(f.goodbyes)}"
                for f in followers
            ]
            worker = psutil.Process(server.process.pid).children()[0]
            worker.kill()
            reached = ticker.next
            server.until(lambda: all(f.seen[-1] > reached for f in followers), "not all go on")
            last = ticker.stop()
            for follower in followers:
                follower.until(last)
        finally:
            ticker.stop()
            for follower in followers:
                follower.close()
    assert Counter(moved) == {"connects 2, broken 0, refused [], goodbyes 1": 30}
    for follower in followers:
        assert follower.seen == list(range(last + 1))
        assert follower.gaps == []


def test_r02_polls_go_on_through_reloads(tmp_path: Path, redis: RedisServer) -> None:
    """A long poll is answered at once by the worker that goes; with its cursor the next goes on."""
    with gunicorn(tmp_path / "log", *CALM, redis_url=redis.url) as server:
        cursor = server.call("GET", f"{PREFIX}/polling")[1]["cursor"]
        answers: list[tuple[int, object]] = []

        def poll() -> None:
            answers.append(server.call("GET", f"{PREFIX}/polling?since={cursor}&wait=25"))

        threads = [threading.Thread(target=poll) for _ in range(8)]
        for thread in threads:
            thread.start()
        server.until(lambda: server.internals()["held"] == 8, "no long polls")
        server.process.send_signal(signal.SIGHUP)
        for thread in threads:
            thread.join(DEADLINE)
        assert [status for status, _ in answers] == [200] * 8
        assert all(answer["events"] == [] for _, answer in answers)  # type: ignore[index]
        server.until_up()


def test_while_draining_nobody_new_is_taken(tmp_path: Path) -> None:
    """Not ready, streams refused with Retry-After, other requests served to the end."""
    with gunicorn(tmp_path / "log", *CALM, native_errors="event") as server:
        streams = [server.stream() for _ in range(100)]
        for stream in streams:
            stream.hello()
        assert server.call("GET", f"{PREFIX}/health/ready")[0] == 200
        server.process.send_signal(signal.SIGTERM)
        server.until(
            lambda: server.call("GET", f"{PREFIX}/health/ready")[0] == 503, "it stays ready"
        )
        with server.stream() as refused:
            assert refused.read_head() == 503
            assert refused.headers["retry-after"] == "2"
            assert "being stopped" in refused.rest()
        with server.stream(headers={"Accept": "text/event-stream"}) as native:
            assert native.read_head() == 200
            assert native.take(1, "hybrid.bye")
        assert server.call("GET", f"{PREFIX}/polling")[0] == 200
        for stream in streams:
            goodbye(stream)
        assert server.process.wait(DEADLINE) == 0


def test_r03_goodbyes_and_returns_are_spread() -> None:
    """No tenth of the window has a quarter of them; returns are no more than a second's share."""
    hub = Hub(
        Log("epoch", max_events=10, max_seconds=10),
        heartbeat=15,
        max_connections=100_000,
        clock=time.monotonic,
        wall=lambda: 0,
        random=lambda: 0.5,
        pause=lambda: None,
    )
    for count in (1, 7, 200, 2000, 20_000):
        while len(hub.connections) < count:
            id = str(len(hub.connections))
            hub.open(Connection(id, NOBODY, frozenset(), position=0, transport="sse", opened_at=0))
        drain = Drain()
        drain.hubs.add(hub)
        polls, *portions = drain._portions()
        assert polls == []
        assert sum(map(len, portions)) == count
        assert len({each.id for portion in portions for _, each, _ in portion}) == count
        if count >= 200:
            # a tenth of the window is two portions, and a part of a third
            assert max(map(len, portions)) * 3 <= count / 4
            assert len(portions) == SLICES
        waits = [wait for portion in portions for _, _, wait in portion]
        assert min(waits) >= CLOSED_MS
        assert max(waits) <= CLOSED_MS + min(LONGEST_MS, count * 1000 // RETURNS_PER_SECOND)
        if count == 2000:
            seconds = Counter((wait - CLOSED_MS) // 1000 for wait in waits)
            assert max(seconds.values()) < 2 * RETURNS_PER_SECOND


CHAIN = """
import os, signal, sys
import flask
from hybrid import Hybrid
from hybrid.testing import SSEClient

calls = []
signal.signal(signal.SIGTERM, lambda *_: calls.append("earlier"))
app = flask.Flask("app")
realtime = Hybrid(app)
other = flask.Flask("other")
Hybrid(other)
client = app.test_client()
for _ in range(3):
    client.get("/api/realtime/polling"), other.test_client().get("/api/realtime/polling")
installed = signal.getsignal(signal.SIGTERM)
assert installed.__self__._earlier.__name__ == "<lambda>", "it has chained itself"
with SSEClient(client) as stream, SSEClient(other.test_client()) as second:
    stream.next("hybrid.hello"), second.next("hybrid.hello")
    os.kill(os.getpid(), signal.SIGTERM)
    assert not calls, "the goodbyes come first"
    for each in (stream, second):
        assert each.next("hybrid.bye").data["reason"] == "shutdown"
        each.wait_until_ended()
    while not calls:
        signal.pause()
os.kill(os.getpid(), signal.SIGTERM)
print(calls)
"""


def run(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_r04_an_earlier_handler_still_runs() -> None:
    """After the goodbyes, once for each signal; ours is there once, however many apps there are."""
    done = run(CHAIN)
    assert done.stdout.strip() == "['earlier', 'earlier']", done.stderr


def test_r04_without_an_earlier_handler_the_signal_still_ends_the_process() -> None:
    """As it would without us; at once where there is nobody to say goodbye to."""
    done = run(
        "import os, signal, flask\nfrom hybrid import Hybrid\napp = flask.Flask('app')\n"
        "Hybrid(app)\napp.test_client().get('/api/realtime/polling')\n"
        "os.kill(os.getpid(), signal.SIGTERM)\nsignal.pause()"
    )
    assert done.returncode == -signal.SIGTERM, done.stderr


@pytest.mark.parametrize("hooked", [True, False], ids=["hook", "no hook"])
def test_r05_max_requests_is_no_outage(tmp_path: Path, redis: RedisServer, hooked: bool) -> None:
    """The streams are told, clients move, the site answers again; nothing is missed."""
    log = tmp_path / "log"
    conf = ("-c", "python:hooked_conf") if hooked else ()
    with gunicorn(log, *CALM, *conf, "--max-requests", "60", redis_url=redis.url) as server:
        cursor = server.call("GET", f"{PREFIX}/polling")[1]["cursor"]
        followers = [Follower(server.port, cursor) for _ in range(10)]
        try:
            server.until(lambda: all(f.connects == 1 for f in followers), "not all follow")
            number = 0
            end = time.monotonic() + 2 * DEADLINE
            while not all(f.connects >= 2 for f in followers):
                assert time.monotonic() < end, [(f.connects, f.goodbyes) for f in followers]
                try:
                    server.emit(data=number)
                    number += 1
                except OSError:
                    pass  # for a moment nobody listens
                time.sleep(0.02)
            server.until_up()
            server.emit(data=number)
            for follower in followers:
                follower.until(number)
        finally:
            for follower in followers:
                follower.close()
    for follower in followers:
        # an emit whose answer was cut off may have been made, and is then made again
        assert sorted(set(follower.seen)) == list(range(number + 1))
        assert follower.gaps == []
        assert follower.goodbyes
        assert {bye["reason"] for bye in follower.goodbyes} == {"shutdown"}
    assert ("max_requests is 60" in log.read_text()) == hooked
    assert tracebacks(log) == []


def test_r23_streams_move_on_with_age(tmp_path: Path) -> None:
    """`hybrid.bye` (age) within 20 %, and they resume without a gap."""
    with gunicorn(tmp_path / "log", max_age_seconds=1, heartbeat_seconds=0.1) as server:
        cursor = server.call("GET", f"{PREFIX}/polling")[1]["cursor"]
        followers = [Follower(server.port, cursor) for _ in range(10)]
        try:
            number = 0
            while not all(f.connects >= 3 for f in followers):
                server.emit(data=number)
                number += 1
                time.sleep(0.05)
            server.emit(data=number)
            for follower in followers:
                follower.until(number)
        finally:
            for follower in followers:
                follower.close()
    for follower in followers:
        assert follower.seen == list(range(number + 1))
        assert {bye["reason"] for bye in follower.goodbyes} == {"age"}
        assert (follower.gaps, follower.broken) == ([], 0)


def test_r62_what_is_lost_with_a_worker_is_counted_in_the_log(
    tmp_path: Path, redis: RedisServer
) -> None:
    """Stopped while Redis is away, it waits a moment for it, and then says what goes with it."""
    log = tmp_path / "log"
    with gunicorn(log, *CALM, redis_url=redis.url) as server:
        server.emit(data=1)
        redis.kill()
        server.emit(data=2, count=3)
        took = stop(server)
    print(f"gone after {took:.1f} s")
    assert took < GRACE / 2
    assert "3 events wait in the outbox and are lost with this process" in log.read_text()


class Recovering:
    """A bus whose Redis comes back while the process leaves."""

    trouble = "away"
    waiting = 5

    def flush(self, timeout: float) -> int:
        assert 0 < timeout < GRACE
        self.waiting = 0
        return 0


def test_r62_an_outbox_has_a_last_chance(caplog: pytest.LogCaptureFixture) -> None:
    """As long as clients have for their goodbyes; what was stored by then is not called lost."""
    drain = Drain()
    drain.buses.add(recovering := Recovering())  # type: ignore[arg-type] # what drain looks at
    drain.begin()
    assert drain.done.wait(DEADLINE)
    assert not recovering.waiting
    assert not caplog.records


def test_r62_an_exit_waits_for_a_leave_that_is_under_way(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is cut, and no event called lost, while it is being seen to."""
    exits = threading.Event()

    class Late(Recovering):
        def flush(self, timeout: float) -> int:
            exits.wait(DEADLINE)
            return super().flush(timeout)

    class Done(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            exits.set()
            return super().wait(timeout)

    drain = Drain()
    drain.done = Done()
    late = Late()
    drain.buses.add(late)  # type: ignore[arg-type] # what drain looks at
    drain.begin()
    drain._at_exit()
    exits.set()
    assert drain.done.is_set()
    assert not caplog.records


@pytest.mark.parametrize(
    "command",
    [("app.py",), ("-m", "gunicorn", "wsgi:app")],
    ids=["python app.py", "make run"],
)
def test_ctrl_c_ends_the_demo_without_a_traceback(tmp_path: Path, command: tuple[str, ...]) -> None:
    """A terminal sends it to every process of the group; open streams hold nobody up."""
    log = tmp_path / "log"
    port = free_port()
    environ = os.environ | {
        "PORT": str(port),
        "FLASK_DATABASE": str(tmp_path / "reports.sqlite3"),
        "SECRET_KEY": "of the test",
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environ,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    try:
        server = Server(process, port, log)
        server.until_up()
        ada = HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        ada.request("POST", "/login", "user=ada", form)
        cookie = ada.getresponse().headers["Set-Cookie"].partition(";")[0]
        ada.close()
        with server.stream(headers={"Cookie": cookie}) as stream:
            stream.hello()
            os.killpg(process.pid, signal.SIGINT)
            assert goodbye(stream)["reason"] == "shutdown"
        assert process.wait(DEADLINE) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert tracebacks(log) == []
    assert "KeyboardInterrupt" not in log.read_text()
