"""The package in a real gunicorn: streams, polls, disconnects, slow clients, many clients."""

import json
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from hybrid.instance import RESERVED
from proxies import certificate
from servers import DEADLINE, PREFIX, RawStream, Server, free_port, gunicorn, tracebacks

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with gunicorn(log, heartbeat_seconds=1, stall_seconds=2) as server:
        yield server
    assert tracebacks(log) == []


def numbers(stream: RawStream) -> list[int]:
    return [json.loads(block.data) for block in stream.blocks if block.type == "tick"]


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_stream_is_framed_as_its_http_version_wants(server: Server, version: str) -> None:
    """Chunked for HTTP/1.1, bare for HTTP/1.0 (nginx's default upstream), live and replayed."""
    cursor = server.call("GET", f"{PREFIX}/polling")[1]["cursor"]
    server.emit(data=1)
    with server.stream(f"since={cursor}", version=version) as stream:
        stream.take(1)
        server.emit(data=2)
        stream.take(2)
        server.emit(data=3, count=50)
        stream.take(52)
        assert numbers(stream) == [1, 2] + [3] * 50
        chunked = stream.headers.get("transfer-encoding") == "chunked"
        assert chunked == (version == "1.1")
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.headers["cache-control"] == "no-cache, no-store, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        assert "set-cookie" not in stream.headers


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
@pytest.mark.parametrize("direct", ["true", "false"])
def test_every_way_out_delivers_the_same(tmp_path: Path, worker: str, direct: str) -> None:
    """The pump's own writes and the server's iterator, in greenlets and in threads."""
    with gunicorn(
        tmp_path / "log",
        *("--threads", "8"),
        worker=worker,
        heartbeat_seconds=0.3,
        direct_writes=direct,
        max_connections=6,
    ) as server:
        with server.stream("user=alice") as alice, server.stream("user=bob") as bob:
            alice.hello(), bob.hello()
            for number in range(100):
                server.emit(data=number, users=["alice"] if number % 2 else None)
            alice.take(100), bob.take(50)
            assert numbers(alice) == list(range(100))
            assert numbers(bob) == list(range(0, 100, 2))
            before = alice.parser.last_event_id
            server.emit(data=0, users=["carol"])
            # a heartbeat moves the cursor past what the filter held back
            while alice.parser.last_event_id == before:
                alice._receive()
                alice._feed()
        status, answer = server.call("GET", f"{PREFIX}/polling?since={before}&wait=5&user=carol")
        assert (status, [event["data"] for event in answer["events"]]) == (200, [0])
        server.until_open(0)
    assert tracebacks(tmp_path / "log") == []


def test_streams_do_not_take_all_threads(tmp_path: Path) -> None:
    """gthread: refused with the reason, and clients poll; unless a bound of one's own is set."""
    with gunicorn(tmp_path / "log", "--threads", "4", worker="gthread") as server:
        for _ in range(4):
            refused = server.stream("user=al")
            assert refused.read_head() == 503
        cursor = server.call("GET", f"{PREFIX}/polling?wait=20")[1]["cursor"]
        began = time.monotonic()
        assert server.call("GET", f"{PREFIX}/polling?wait=25&since={cursor}")[1]["events"] == []
        assert time.monotonic() - began < 20, "a long poll was held"
        assert server.call("GET", f"{PREFIX}/health/live")[0] == 200
        assert "HYBRID_MAX_CONNECTIONS" in (tmp_path / "log").read_text()
    with gunicorn(
        tmp_path / "own", "--threads", "4", worker="gthread", max_connections=2
    ) as server:
        # One after the other: threads take what comes at once in any order.
        assert [server.stream("user=al").read_head() for _ in range(3)] == [200, 200, 503]
        assert server.call("GET", f"{PREFIX}/health/live")[0] == 200


def test_a_long_poll_is_answered_by_the_event(server: Server) -> None:
    """wait= holds the request until there is something, and no longer."""
    cursor = server.call("GET", f"{PREFIX}/polling")[1]["cursor"]
    answers = []

    def poll() -> None:
        answers.append(server.call("GET", f"{PREFIX}/polling?since={cursor}&wait=20&user=al")[1])

    thread = threading.Thread(target=poll)
    thread.start()
    server.until(
        lambda: server.monitor()["connections"]["by_transport"]["polling"] == 1, "no long poll"
    )
    server.emit(data="not for al", users=["bo"])
    ids = server.emit(data="for al", users=["al"])
    thread.join(DEADLINE)
    assert [event["id"] for event in answers[0]["events"]] == ids
    assert answers[0]["gap"] is None
    server.until_open(0)


def test_r06_one_stream_too_many_is_refused_and_the_rest_still_answers(tmp_path: Path) -> None:
    """At the cap the last is refused explicitly; health and polls go on."""
    with gunicorn(tmp_path / "log", max_connections=3, native_errors="event") as server:
        streams = [server.stream() for _ in range(3)]
        for stream in streams:
            stream.hello()
        with server.stream() as refused:
            assert refused.read_head() == 503
            assert int(refused.headers["retry-after"]) > 0
            assert refused.headers["content-type"] == "application/problem+json"
        with server.stream(headers={"Accept": "text/event-stream"}) as native:
            (bye,) = native.take(1, "hybrid.bye")
            assert native.status == 200
            assert native.parser.retry is not None
            assert json.loads(bye.data)["reason"] == "full"
        assert server.call("GET", f"{PREFIX}/health/live")[0] == 200
        assert server.call("GET", f"{PREFIX}/health/ready")[0] == 503
        assert server.call("GET", f"{PREFIX}/polling?since=0&wait=20")[0] == 200
        streams.pop().close()
        server.until_open(2)
        with server.stream() as again:
            again.hello()
        for stream in streams:
            stream.close()


@pytest.mark.parametrize("how", ["close", "reset"])
def test_r07_a_client_that_leaves_is_noticed_from_its_socket(tmp_path: Path, how: str) -> None:
    """No write is needed to see it: the heartbeat here is 25 s, the deadline 20."""
    with gunicorn(tmp_path / "log", heartbeat_seconds=25) as server:
        stream = server.stream()
        stream.hello()
        server.emit()
        stream.take(1)
        before = server.monitor()["connections"]
        assert before["open"] == 1
        if how == "reset":
            stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.close()
        server.until_open(0)
        assert server.monitor()["connections"]["closed"] == {"client": 1}


def test_r08_a_client_that_never_reads_is_cut_and_delays_nobody(server: Server) -> None:
    """It is closed after stall_seconds, without a traceback; others have everything by then."""
    closed = server.monitor()["connections"]["closed"].get("slow", 0)
    stuck = server.stream(receive_buffer=4096)
    with server.stream() as reader:
        reader.hello()
        for _ in range(200):
            server.emit(data="x" * 30_000)
        reader.take(200)
        server.until(
            lambda: server.monitor()["connections"]["closed"].get("slow", 0) == closed + 1,
            "the stuck client was never cut",
        )
        server.emit(data="after")
        assert json.loads(reader.take(201)[-1].data) == "after"
    stuck.close()
    server.until_open(0)


def test_a_slow_client_catches_up_from_the_log(server: Server) -> None:
    """One that reads in small steps gets everything in order; the pump skips it meanwhile."""
    with server.stream(receive_buffer=4096) as slow:
        slow.hello()
        lags = server.monitor()["performance"]["lags"]
        for _ in range(20):
            server.emit(data="x" * 60_000, count=10)
        server.emit(data="last")
        blocks = slow.take(201)
        assert json.loads(blocks[-1].data) == "last"
        assert server.monitor()["performance"]["lags"] > lags
        assert not [block for block in slow.blocks if block.type == "hybrid.gap"]
    server.until_open(0)


def test_r16_a_stream_given_up_before_its_first_byte_leaks_nothing(server: Server) -> None:
    """Closed right after the request, a hundred times: no slot, greenlet or watcher stays."""
    server.until_open(0)
    for _ in range(3):
        server.stream().close()
    server.until_open(0)
    before = server.internals()
    for _ in range(100):
        server.stream().close()
    server.until_open(0)
    server.until_nothing_stays(before)


def test_r25_five_thousand_streams_come_and_go_and_nothing_stays(server: Server) -> None:
    """Greenlets, descriptors, slots and index entries are back where they were."""
    server.until_open(0)
    with server.stream() as stream:
        stream.hello()
    server.until_open(0)
    before = server.internals()
    dice = random.Random(25)
    for _ in range(50):
        batch = [server.stream(f"user=u{n}&topic=open{n}") for n in range(100)]
        for stream in batch:
            if dice.random() < 0.8:
                stream.hello()
        dice.shuffle(batch)
        for stream in batch:
            stream.close()
    server.until_open(0)
    server.until_nothing_stays(before)


def test_r21_two_thousand_idle_streams_at_once(tmp_path: Path) -> None:
    """All get one event; memory per stream is printed and stays under 60 KB."""
    count = 2000
    with gunicorn(tmp_path / "log") as server:
        warm = [server.stream() for _ in range(50)]
        for stream in warm:
            stream.hello()
        worker = psutil.Process(server.monitor()["instance"]["pid"])
        before = worker.memory_info().rss
        streams = []
        for start in range(0, count, 100):
            batch = [server.stream(f"user=u{start + n}") for n in range(100)]
            for stream in batch:
                stream.hello()
            streams += batch
        each = (worker.memory_info().rss - before) / count / 1024
        print(f"{each:.1f} KB per idle stream")
        assert each < 60
        server.emit(data="all")
        server.emit(data="one", users=["u7"])
        for stream in streams:
            stream.take(1)
        streams[7].take(2)
        assert server.monitor()["connections"]["open"] == count + 50
        for stream in streams + warm:
            stream.close()
        server.until_open(0)


def test_r13_a_sync_worker_refuses_streams_and_still_polls(tmp_path: Path) -> None:
    """The worker that could serve nobody else answers 503 at once and logs the fix once."""
    with gunicorn(tmp_path / "log", worker="sync") as server:
        for _ in range(2):
            with server.stream() as stream:
                assert stream.read_head() == 503
                assert "poll" in stream.rest()
        assert "gunicorn -k gevent" in server.call("GET", f"{PREFIX}/health/ready")[1]["alerts"][0]
        cursor = server.call("GET", f"{PREFIX}/polling")[1]["cursor"]
        server.emit(data=1)
        status, answer = server.call("GET", f"{PREFIX}/polling?since={cursor}&wait=20")
        assert (status, len(answer["events"])) == (200, 1)
        # nothing to wait for, and waiting would block everybody: an empty answer at once
        assert server.call("GET", f"{PREFIX}/polling?since={answer['cursor']}&wait=20")[0] == 200
    log = (tmp_path / "log").read_text()
    assert log.count("gunicorn -k gevent") == 1


def test_r10_http2_inside_gunicorn_refuses_streams_and_still_polls(tmp_path: Path) -> None:
    """A stream would block the other requests of its connection: 503 at once, the fix in the log.

    A client that speaks HTTP/1.1 to the same server gets its stream.
    """
    certificate(tmp_path)
    tls = ("--certfile", f"{tmp_path}/fullchain.pem", "--keyfile", f"{tmp_path}/privkey.pem")
    log, port = tmp_path / "log", free_port()
    with (
        gunicorn(log, *tls, "--http-protocols", "h2,h1", port=port, wait=False),
        httpx.Client(http2=True, verify=False, timeout=DEADLINE) as client,
        httpx.Client(verify=False, timeout=DEADLINE) as old,
    ):
        site = f"https://127.0.0.1:{port}{PREFIX}"
        until_it_answers(client, f"{site}/health/live")
        for _ in range(2):
            refused = client.get(f"{site}/sse")
            assert (refused.http_version, refused.status_code) == ("HTTP/2", 503)
            assert "poll" in refused.json()["detail"]
            assert int(refused.headers["retry-after"]) > 0
        cursor = client.get(f"{site}/polling").json()["cursor"]
        assert client.get(f"{site}/polling?since={cursor}&wait=20").json()["events"] == []
        with old.stream("GET", f"{site}/sse") as stream:
            assert (stream.http_version, stream.status_code) == ("HTTP/1.1", 200)
            assert "hybrid.hello" in next(stream.iter_text())
    assert log.read_text().count("HTTP/2 at the proxy") == 1
    assert tracebacks(log) == []


def until_it_answers(client: httpx.Client, url: str) -> None:
    end = time.monotonic() + DEADLINE
    while True:
        assert time.monotonic() < end
        try:
            client.get(url)
            return
        except httpx.TransportError:
            time.sleep(0.05)  # nothing listens yet: there is nobody to wait for


def test_r29_the_boundary_event_is_neither_repeated_nor_skipped(server: Server) -> None:
    """Streams that open in the middle of traffic begin exactly after their cursor."""
    start = server.call("GET", f"{PREFIX}/polling")[1]["cursor"]
    done = threading.Event()

    def publish() -> None:
        for number in range(0, 1000, 5):
            for offset in range(5):
                server.emit(data=number + offset)
        done.set()

    thread = threading.Thread(target=publish)
    thread.start()
    cursor, expected = start, 0
    while expected < 1000:
        with server.stream(f"since={cursor}") as stream:
            stream.hello()
            stream.take(1)
            got = numbers(stream)
            assert got == list(range(expected, expected + len(got)))
            expected += len(got)
            cursor = stream.parser.last_event_id
    thread.join(DEADLINE)
    assert done.is_set()


def test_a_client_that_hops_between_transports_sees_each_event_once(
    server: Server, seed: int
) -> None:
    """R-39 over the network: SSE, long poll and plain poll in random turns, one cursor."""
    dice = random.Random(seed)
    cursor = server.call("GET", f"{PREFIX}/polling")[1]["cursor"]
    thread = threading.Thread(
        target=lambda: [server.emit(data=number) for number in range(300)], daemon=True
    )
    thread.start()
    seen: list[int] = []
    while len(seen) < 300:
        way = dice.choice(["sse", "header", "poll", "long"])
        if way in ("sse", "header"):
            headers = {"Last-Event-ID": cursor} if way == "header" else {}
            query = "since=stale.1.x" if way == "header" else f"since={cursor}"
            with server.stream(query, headers=headers) as stream:
                stream.take(dice.choice([1, 1, 7]) if len(seen) < 280 else 1)
                seen += numbers(stream)
                cursor = stream.parser.last_event_id
        else:
            wait = "&wait=20" if way == "long" else ""
            limit = f"&limit={dice.choice([1, 3, 1000])}"
            answer = server.call("GET", f"{PREFIX}/polling?since={cursor}{wait}{limit}")[1]
            assert answer["gap"] is None
            seen += [event["data"] for event in answer["events"]]
            cursor = answer["cursor"]
    thread.join(DEADLINE)
    assert seen == list(range(300))


def test_a_restarted_server_says_gap_to_a_returning_client(tmp_path: Path) -> None:
    """Memory is gone with the process: the epoch tells, and the gap is said once."""
    with gunicorn(tmp_path / "log") as server:
        server.emit(data=1)
        cursor = server.call("GET", f"{PREFIX}/polling")[1]["cursor"]
        port = server.port
    with gunicorn(tmp_path / "log", port=port) as server:
        with server.stream(f"since={cursor}") as stream:
            (gap,) = stream.take(1, "hybrid.gap")
            assert json.loads(gap.data)["reason"] == "epoch"
            assert stream.hello()["cursor"] is None
        with server.stream(f"since={gap.id}") as stream:
            assert stream.hello()["resumed"] is True
            server.emit(data=2)
            stream.take(1)
            assert not [block for block in stream.blocks if block.type == "hybrid.gap"]


def test_disconnect_ends_all_streams_of_a_user(server: Server) -> None:
    """hybrid.bye (kicked), then the end of the response; others stay."""
    with server.stream("user=kim") as kim, server.stream("user=lee") as lee:
        kim.hello(), lee.hello()
        assert server.call("POST", "/disconnect?user=kim") == (200, {"told": 1})
        (bye,) = kim.take(1, "hybrid.bye")
        assert json.loads(bye.data) == {"reason": "kicked", "after": 1000}
        kim.rest()  # to the last chunk
        assert kim.sock.recv(1) == b""
        server.emit(data=1)
        lee.take(1)
    server.until_open(0)


# -- the request ends and the stream goes on


def test_a_stream_costs_a_descriptor_and_neither_greenlet_nor_request(server: Server) -> None:
    """The hub takes the connection over; gunicorn has logged its request and counts it no more."""
    server.until_open(0)
    with server.stream() as first:
        first.hello()
        first.until(lambda _: server.internals()["watched"] == 1)
        before = server.internals()
        streams = [server.stream() for _ in range(50)]
        for stream in streams:
            stream.hello()
        server.until(lambda: server.internals()["watched"] == 51, "not taken over")
        # The last request may be about to end.
        wanted = before["descriptors"] + 50, before["greenlets"]

        def settled() -> bool:
            now = server.internals()
            return now["descriptors"] == wanted[0] and now["greenlets"] <= wanted[1]

        server.until(settled, f"never {wanted}")
        server.emit(data=1)
        for stream in [first, *streams]:
            stream.take(1)
            stream.close()
    server.until_open(0)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_long_poll_costs_no_more_than_a_stream(server: Server, version: str) -> None:
    """No greenlet and no request are held for it; its answer is a whole one, then the end."""
    server.until_open(0)
    with server.stream() as first:
        first.hello()
        server.until(lambda: server.internals()["watched"] == 1, "not taken over")
        before = server.internals()["greenlets"]
        cursor = server.call("GET", f"{PREFIX}/polling")[1]["cursor"]
        polls = []
        for number in range(30):
            poll = socket.create_connection(("127.0.0.1", server.port), DEADLINE)
            target = f"{PREFIX}/polling?since={cursor}&wait=25&user=u{number % 2}"
            poll.sendall(f"GET {target} HTTP/{version}\r\nHost: test\r\n\r\n".encode())
            polls.append(poll)
        server.until(lambda: server.internals()["watched"] == 31, "not taken over")
        server.until(
            lambda: server.internals()["greenlets"] <= before, f"never {before} greenlets again"
        )
        ids = server.emit(data="for all")
        for poll in polls:
            answer = b""
            while data := poll.recv(65536):
                answer += data
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(f"HTTP/{version} 200".encode())
            if version == "1.1":
                parts = body.split(b"\r\n")
                assert parts[0] == b"1"
                assert parts[-3:] == [b"0", b"", b""]
                body = parts[1] + parts[3]
            assert [event["id"] for event in json.loads(body)["events"]] == ids
            poll.close()
    server.until_open(0)


def test_the_access_log_has_a_line_for_each_stream_when_it_begins(tmp_path: Path) -> None:
    """One line, with the status; the end of the stream, hours later, is the monitor's to count."""
    with gunicorn(tmp_path / "log", "--access-logfile", "-") as server:
        with server.stream("user=kim") as stream:
            stream.hello()
            server.until(lambda: server.internals()["watched"] == 1, "not taken over")
            lines = [li for li in (tmp_path / "log").read_text().splitlines() if "/sse" in li]
            assert len(lines) == 1
            assert '"GET /api/realtime/sse?user=kim HTTP/1.1" 200' in lines[0]
        server.until_open(0)
        text = (tmp_path / "log").read_text()
        assert text.count("/sse") == 1
        assert tracebacks(tmp_path / "log") == []


def test_what_a_client_sends_on_its_stream_is_not_answered_into_it(server: Server) -> None:
    """A pipelined request stays unread, and does not hide that the client leaves."""
    server.until_open(0)
    stream = server.stream()
    stream.hello()
    stream.sock.sendall(b"GET /internals HTTP/1.1\r\nHost: test\r\n\r\n")
    server.emit(data=1)
    stream.take(1)
    server.emit(data=2)
    assert numbers(stream) == [1] or numbers(stream) == [1, 2]
    stream.take(2)
    assert {block.type for block in stream.blocks} == {"hybrid.hello", "tick"}
    stream.close()
    server.until_open(0)


def test_a_body_that_a_middleware_wraps_stays_with_the_server(tmp_path: Path) -> None:
    """What changes response bodies sees every byte; and the client's leaving is seen at once."""
    with gunicorn(tmp_path / "log", app="server_app:censored", heartbeat_seconds=25) as server:
        idle = server.internals()["greenlets"]
        with server.stream() as stream:
            stream.hello()
            for number in range(20):
                server.emit(data=f"secret {number}")
            assert [json.loads(b.data) for b in stream.take(20)] == [
                f"...... {number}" for number in range(20)
            ]
            assert server.internals()["greenlets"] == idle + 1
        server.until_open(0)
        assert server.monitor()["connections"]["closed"] == {"client": 1}
        server.until(lambda: server.internals()["greenlets"] == idle, "a greenlet stayed")
    assert tracebacks(tmp_path / "log") == []


def test_streams_stop_before_the_descriptors_do(tmp_path: Path) -> None:
    """With none left gunicorn could not even accept a health check; so the cap gives way, aloud."""
    with gunicorn(tmp_path / "log", descriptors=RESERVED + 5) as server:
        streams = [server.stream() for _ in range(5)]
        for stream in streams:
            stream.hello()
        with server.stream() as refused:
            assert refused.read_head() == 503
        status, problem = server.call("GET", f"{PREFIX}/health/ready")
        assert (status, problem["title"]) == (503, "Full")
        assert server.monitor()["connections"]["max"] == 5
        assert any("ulimit -n" in alert for alert in server.monitor()["instance"]["alerts"])
    text = (tmp_path / "log").read_text()
    assert "ulimit -n" in text
    assert tracebacks(tmp_path / "log") == []


def test_a_worker_with_live_streams_has_nothing_to_wait_for(tmp_path: Path) -> None:
    """On SIGTERM it ends before graceful_timeout would have killed it."""
    with gunicorn(tmp_path / "log", "--graceful-timeout", "60") as server:
        streams = [server.stream() for _ in range(20)]
        for stream in streams:
            stream.hello()
        server.process.terminate()
        assert server.process.wait(DEADLINE) == 0
    text = (tmp_path / "log").read_text()
    assert "graceful timeout" not in text
    assert tracebacks(tmp_path / "log") == []
