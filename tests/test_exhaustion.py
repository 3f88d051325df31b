"""Clients that take what they can get: everybody else is served, and memory stays bounded."""

import contextlib
import json
import socket
from collections.abc import Iterator

import psutil
import pytest

from servers import DEADLINE, PREFIX, RawStream, Server, gunicorn, tracebacks

pytestmark = pytest.mark.server
MB = 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("exhaustion") / "log"
    with gunicorn(
        log,
        heartbeat_seconds=1,
        stall_seconds=2,
        max_connections=2500,
        max_connections_per_user=5,
        history_events=2000,
    ) as server:
        yield server
    assert tracebacks(log) == []


def memory(server: Server) -> int:
    """Bytes that the workers hold."""
    workers = psutil.Process(server.process.pid).children()
    return sum(worker.memory_info().rss for worker in workers)


def is_served(server: Server) -> None:
    """Somebody else polls, streams and is told of an event."""
    cursor = server.call("GET", f"{PREFIX}/polling?user=honest")[1]["cursor"]
    with server.stream("user=honest") as stream:
        stream.hello()
        (id,) = server.emit("honest", data=1, users=["honest"])
        stream.take(1, "honest")
    answer = server.call("GET", f"{PREFIX}/polling?user=honest&since={cursor}")[1]
    assert [event["id"] for event in answer["events"]] == [id]


def test_r94_who_never_reads_takes_no_more_than_a_share(server: Server) -> None:
    """The sixth stream of a user is refused; the five are cut when their sockets are full."""
    server.until_open(0)
    before = memory(server)
    greedy = [server.stream("user=eve", receive_buffer=4096) for _ in range(5)]
    for stream in greedy:
        stream.hello()
    with server.stream("user=eve") as sixth:
        assert sixth.read_head() == 429
    for _ in range(150):
        server.emit(data="x" * 60_000, users=["eve"])
    is_served(server)
    server.until_open(0)
    grown = (memory(server) - before) / MB
    print(f"{grown:.1f} MB for 9 MB of events and five who read none of them")
    assert grown < 60
    with server.stream("user=eve") as again:
        again.hello()
    server.until_open(0)


def test_r94_half_a_request_takes_no_slot(server: Server) -> None:
    """300 connections that never finish their headers, and 100 that send nothing at all."""
    server.until_open(0)
    half: list[socket.socket] = []
    for number in range(400):
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE)
        if number < 300:
            sock.sendall(f"GET {PREFIX}/sse?user=u{number} HTTP/1.1\r\nHost: x\r\nX-A: ".encode())
        half.append(sock)
    is_served(server)
    assert server.monitor()["connections"]["opened"] >= 0
    assert server.internals()["held"] == 0
    for sock in half:
        sock.close()
    is_served(server)


def test_r93_ten_thousand_topics_leave_nothing_behind(server: Server) -> None:
    """By one client, a hundred at a time; one more in a request is refused."""
    server.until_open(0)
    is_served(server)
    before, kept = memory(server), server.internals()["keys"]
    for start in range(0, 10_000, 100):
        query = "&".join(f"topic=open{start + number}" for number in range(100))
        with server.stream(f"user=eve&{query}") as stream:
            stream.hello()
    over = "&".join(f"topic=open{number}" for number in range(101))
    assert server.call("GET", f"{PREFIX}/polling?{over}")[0] == 400
    server.until_open(0)
    assert server.internals()["keys"] == kept
    assert len(json.dumps(server.monitor())) < 100_000
    assert memory(server) - before < 30 * MB


def test_what_is_too_large_is_refused_while_it_is_small(server: Server) -> None:
    """A body of 64 MB, an event over the bound, a cursor of 8 KB, a header of 100 KB."""
    before = memory(server)
    with contextlib.suppress(OSError):  # the server hangs up in the middle
        assert server.call("POST", f"{PREFIX}/test?user=eve", "x" * 64 * MB)[0] == 413
    status, _ = server.call(
        "POST", f"{PREFIX}/test?user=eve", {"users": ["eve"], "data": "x" * 70_000}
    )
    assert status == 413
    with contextlib.suppress(OSError):
        assert server.call("GET", f"{PREFIX}/polling?since={'9' * 7000}")[0] in (200, 400, 414)
    with contextlib.suppress(OSError):
        answer = server.call("GET", f"{PREFIX}/sse", headers={"Last-Event-ID": "a" * 100_000})
        assert answer[0] in (400, 431)
    is_served(server)
    assert memory(server) - before < 60 * MB


def test_a_storm_of_two_thousand_reconnects(server: Server) -> None:
    """All at once, each from its cursor: nobody misses an event, and others are served."""
    server.until_open(0)
    cursor = server.call("GET", f"{PREFIX}/polling")[1]["cursor"]
    server.emit(data="missed")
    before = memory(server)
    most = 0
    for _ in range(2):
        storm: list[RawStream] = []
        for number in range(2000):
            storm.append(server.stream(f"user=u{number}&since={cursor}"))
            if number % 500 == 250:
                is_served(server)
        for stream in storm:
            assert json.loads(stream.take(1)[0].data) == "missed"
        most = max(most, memory(server) - before)
        for stream in storm:
            stream.close()
        server.until_open(0)
    print(f"{most / 2000 / 1024:.1f} KB for each of 2,000 who came at once")
    assert most < 2000 * 40 * 1024
