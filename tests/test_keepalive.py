"""Proxies that keep their connections to gunicorn for the next request: it is never lost."""

import contextlib
import http.client
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import proxies
import redises
from servers import DEADLINE, PREFIX, RawStream, free_port, gunicorn

pytestmark = pytest.mark.server

POLLS = 12
"""Long polls that are held at any time. Each emit answers all of them."""
POSTS = 4
EACH = 25
"""POSTs that each of those threads makes."""
STREAMS = 12


@contextlib.contextmanager
def nginx(folder: Path, upstream: int) -> Iterator[int]:
    """The shipped configuration, in front of one gunicorn."""
    port = free_port()
    with proxies.nginx(folder, proxies.shipped(upstream, port=port, folder=folder), port):
        yield port


@contextlib.contextmanager
def haproxy(folder: Path, upstream: int) -> Iterator[int]:
    """haproxy that puts requests of all clients on whatever connection is free."""
    port = free_port()
    config = (
        "defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"
        f"frontend front\n bind 127.0.0.1:{port}\n default_backend back\n"
        f"backend back\n http-reuse always\n server one 127.0.0.1:{upstream}\n"
    )
    with proxies.haproxy(folder, config, port):
        yield port


class Client:
    """One thread that asks through the proxy, on a connection that it keeps."""

    def __init__(self, port: int, work: Callable[["Client"], None]) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
        self.failed: list[Any] = []
        """Statuses but 200, and broken connections."""
        self.found: list[Any] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=work, args=(self,), daemon=True)
        self.thread.start()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The parsed answer; None where it is none, which is noted."""
        try:
            sent = {"Content-Type": "application/json"} if body is not None else {}
            self.connection.request(method, path, json.dumps(body) if sent else None, sent)
            response = self.connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.failed.append(error)
            self.connection.close()
            return None
        if response.status != 200:
            self.failed.append((response.status, text[:200]))
            return None
        return json.loads(text)

    def close(self) -> None:
        self.thread.join(DEADLINE)
        self.connection.close()
        assert not self.thread.is_alive()


def post(client: Client) -> None:
    """Emit one after the other; `found` are the ids."""
    while len(client.found) + len(client.failed) < EACH:
        ids = client.ask("POST", "/emit", {"type": "tick", "data": 0})
        client.found += ids or ()


def poll(cursor: str) -> Callable[[Client], None]:
    """Poll from there on; `found` are the ids of what came."""

    def work(client: Client) -> None:
        since = cursor
        while not client.stop.is_set():
            answer = client.ask("GET", f"{PREFIX}/polling?since={since}&wait=1")
            if answer is not None:
                if answer["gap"]:
                    client.failed.append(answer)
                client.found += [event["id"] for event in answer["events"]]
                since = answer["cursor"]

    return work


@pytest.mark.parametrize("proxy", [nginx, haproxy])
def test_no_request_meets_a_connection_that_the_hub_closes(
    tmp_path: Path, proxy: Callable[[Path, int], "contextlib.AbstractContextManager[int]"]
) -> None:
    """POSTs beside long polls, streams that are disconnected, and a reload: all are answered.

    The proxy puts a request on any connection whose last answer has ended and did not say that
    the connection ends too. A POST that meets one that ends is not sent again: it is a 502.
    """
    with (
        redises.redis_server(tmp_path / "redis") as redis,
        gunicorn(
            tmp_path / "log",
            *("-w", "2", "--keep-alive", "20", "--graceful-timeout", "30"),
            redis_url=redis.url,
        ) as server,
        proxy(tmp_path / "proxy", server.port) as port,
        contextlib.ExitStack() as stack,
    ):
        cursor = server.call("GET", f"{PREFIX}/polling")[1]["cursor"]
        streams = [
            stack.enter_context(RawStream(port, f"user=u{number}")) for number in range(STREAMS)
        ]
        for stream in streams:
            stream.hello()
        pollers = [Client(port, poll(cursor)) for _ in range(POLLS)]
        server.until_open(POLLS + STREAMS)
        posters = [Client(port, post) for _ in range(POSTS)]
        operator = Client(port, lambda _client: None)
        for number in range(STREAMS // 2):
            operator.ask("POST", f"/disconnect?user=u{number}")
            streams[number].take(1, "hybrid.bye")
        server.process.send_signal(signal.SIGHUP)
        for client in posters:
            client.thread.join(DEADLINE)
        for stream in streams:
            stream.take(1, "hybrid.bye")
        wanted = {id for client in posters for id in client.found}
        end = time.monotonic() + DEADLINE
        while any(len(set(client.found)) < len(wanted) for client in pollers):
            assert time.monotonic() < end, [len(set(client.found)) for client in pollers]
            time.sleep(0.05)
        everybody = (*posters, *pollers, operator)
        for client in everybody:
            client.stop.set()
        for client in everybody:
            client.close()
    assert [client.failed for client in everybody if client.failed] == []
    for client in pollers:
        assert len(client.found) == len(wanted) == POSTS * EACH, "twice, or never"
        assert set(client.found) == wanted


HELD = {
    "a stream": ("/sse", ""),
    "a long poll": ("/polling", "wait=20"),
    "the monitor's stream": ("/monitor/sse", ""),
}


@pytest.mark.parametrize(
    ("app", "direct", "taken"),
    [
        ("server_app:app", "true", True),
        ("server_app:measured", "true", True),
        ("server_app:censored", "true", False),
        ("server_app:app", "false", False),
    ],
)
def test_a_head_says_that_its_connection_ends(
    tmp_path: Path, app: str, direct: str, taken: bool
) -> None:
    """Of all that is held; `taken`: the hub has it, also where a middleware sees the head."""
    with gunicorn(tmp_path / "log", app=app, direct_writes=direct) as server:
        cursor = server.call("GET", f"{PREFIX}/polling")[1]["cursor"]
        before = server.internals()["greenlets"]
        held = {
            what: server.stream(f"{query}&since={cursor}", path=path)
            for what, (path, query) in HELD.items()
        }
        for what, stream in held.items():
            assert stream.read_head() == 200, what
            assert stream.headers["connection"] == "close", what
            assert ("x-measured" in stream.headers) == (app == "server_app:measured")
        server.until(lambda: server.internals()["held"] == 2, "they are not held")
        grown = server.internals()["greenlets"] - before
        # The monitor's stream has a pump of its own.
        assert (grown <= 1) if taken else (grown >= len(held)), grown
        server.emit("tick")
        assert '"type":"tick"' in held["a long poll"].rest()
        plain = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
        for _ in range(2):
            plain.request("GET", f"{PREFIX}/polling")
            answer = plain.getresponse()
            answer.read()
            assert answer.headers["Connection"] == "keep-alive", "this one was not held"
        plain.close()
