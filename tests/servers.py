"""Real servers and raw clients: gunicorn on a free port, sockets that speak HTTP themselves."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil

from hybrid.config import Settings
from whatwg import Block, Parser

ROOT = Path(__file__).parent.parent
DEADLINE = 45.0
"""Seconds after which a test gives up waiting: long, since a shared machine stalls, and reached
only where something is broken."""
PREFIX = "/api/realtime"

UNBOUNDED = [
    "HYBRID_" + name.upper()
    for name in Settings.__slots__
    if name.startswith(("limit_", "max_connections_per_"))
]


_reserved: list[socket.socket] = []
_dice = random.SystemRandom()  # hypothesis seeds the common one


def free_port() -> int:
    """A TCP port on loopback that stays this process' own until it ends, in use or not.

    Below the ports that systems give to outgoing connections, so that a server which is started
    again finds it free; and held against other test processes by the UDP port of the same number.
    """
    while True:
        port = _dice.randrange(12_000, 22_000)
        held = socket.socket(type=socket.SOCK_DGRAM)
        try:
            held.bind(("127.0.0.1", port))
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", port))
        except OSError:
            held.close()
        else:
            _reserved.append(held)
            return port


class Server:
    """A running server and how to talk to it."""

    def __init__(self, process: subprocess.Popen[str], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log
        self.streams: list[RawStream] = []
        """All ever opened; closed with the server at the latest, also when a test fails."""

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """One request on a connection of its own: status and parsed JSON (or text)."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            headers = dict(headers or {})
            if body is not None:
                headers.setdefault("Content-Type", "application/json")
                body = json.dumps(body)
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            text = response.read().decode()
            kind = response.headers.get_content_type()
            return response.status, json.loads(text) if kind.endswith("json") else text
        finally:
            connection.close()

    def emit(self, type: str = "tick", **wish: Any) -> list[str]:
        status, ids = self.call("POST", "/emit", {"type": type, **wish})
        assert status == 200, ids
        return list(ids)

    def monitor(self) -> Any:
        return self.call("GET", f"{PREFIX}/monitor")[1]

    def internals(self) -> dict[str, int]:
        found: dict[str, int] = self.call("GET", "/internals")[1]
        return found

    def until(self, what: Callable[[], bool], why: str) -> None:
        """Ask the server again and again until it says so."""
        end = time.monotonic() + DEADLINE
        while not what():
            assert time.monotonic() < end, f"{why}; {self.monitor()}"

    def until_up(self, probe: str = f"{PREFIX}/health/live") -> None:
        end = time.monotonic() + DEADLINE
        while True:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            try:
                self.call("GET", probe)
                return
            except OSError:
                time.sleep(0.05)  # nothing listens yet: there is nobody to wait for

    def until_nothing_stays(self, before: dict[str, int]) -> None:
        """Wait until nothing of `internals` is more than before.

        Less may be: what was looked at before may have had a request that was about to end.
        """
        self.until(
            lambda: all(now <= before[name] for name, now in self.internals().items()),
            f"not {before} again",
        )

    def until_open(self, count: int) -> None:
        self.until(
            lambda: self.monitor()["connections"]["open"] == count, f"never {count} connections"
        )

    def kill(self) -> None:
        """End the server without a word, workers first: nothing is said to any client."""
        for worker in psutil.Process(self.process.pid).children():
            worker.kill()
        self.process.kill()
        self.process.wait(DEADLINE)

    def stream(self, query: str = "", **options: Any) -> "RawStream":
        stream = RawStream(self.port, query, **options)
        self.streams.append(stream)
        return stream


@contextlib.contextmanager
def gunicorn(
    log: Path,
    *arguments: str,
    app: str = "server_app:app",
    port: int | None = None,
    worker: str = "gevent",
    probe: str = f"{PREFIX}/health/live",
    descriptors: int | None = None,
    wait: bool = True,
    **settings: str | float,
) -> Iterator[Server]:
    """gunicorn serving the tests' application; `settings` become HYBRID_ variables."""
    port = port or free_port()
    environ = {key: value for key, value in os.environ.items() if not key.startswith("HYBRID_")}
    # A test opens thousands of streams from one address. An empty setting is none.
    environ |= dict.fromkeys(UNBOUNDED, "")
    environ |= {f"HYBRID_{name.upper()}": str(value) for name, value in settings.items()}
    limits = psutil.Process().rlimit(psutil.RLIMIT_NOFILE)
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with log.open("a") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "-k", worker, "-b", f"127.0.0.1:{port}"),
                *("-c", "python:hybrid_test_conf", "--no-control-socket", *arguments, app),
            ],
            env=environ,
            cwd=ROOT / "tests",
            stdout=output,
            stderr=output,
            text=True,
        )
    if descriptors is not None:
        # before it has loaded anything: its workers inherit the limit
        psutil.Process(process.pid).rlimit(psutil.RLIMIT_NOFILE, (descriptors, limits[1]))
    server = Server(process, port, log)
    try:
        if wait:
            server.until_up(probe)
        yield server
    finally:
        for stream in server.streams:
            stream.close()
        if process.poll() is None:
            _quit(server)


def _quit(server: Server) -> None:
    """SIGQUIT, since SIGTERM would wait for the open streams."""
    began = time.time()
    server.process.send_signal(signal.SIGQUIT)
    try:
        server.process.wait(DEADLINE)
    except subprocess.TimeoutExpired:
        # A worker that is just being forked takes the signal as its parent would, and loses it;
        # gunicorn waits for it until graceful_timeout. No other may be late.
        left = psutil.Process(server.process.pid).children()
        late = [worker for worker in left if worker.create_time() < began - 5]
        server.kill()
        if late or not left:
            raise


_THE_EXIT_ITSELF = re.compile(
    r"^Traceback \(most recent call last\):\n"
    r"(?:  .*\n)*?  .*, in _shutdown\n(?:  .*\n)*  .*, in handle_quit\n(?:  .*\n)*SystemExit: 0$",
    re.MULTILINE,
)


def tracebacks(log: Path) -> list[str]:
    """The tracebacks in a log of gunicorn's, but for one of its own.

    Its handler of SIGQUIT and SIGINT lets a tenth of a second go by between "no longer alive" and
    `sys.exit()`. A worker whose loop looks in that moment leaves by itself, and meets the exit of
    the handler in the interpreter's shutdown, where gevent can only print it.
    """
    lines = log.read_text().splitlines(keepends=True)
    # another process may have logged in between
    text = "".join(line for line in lines if not line.startswith("[20"))
    return _THE_EXIT_ITSELF.sub("", text).split("Traceback (most recent call last)")[1:]


class RawStream:
    """A client that speaks HTTP by itself and reads a stream block by block."""

    def __init__(
        self,
        port: int,
        query: str = "",
        *,
        path: str = "/sse",
        version: str = "1.1",
        headers: dict[str, str] | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        self.sock = socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(("127.0.0.1", port))
        self.query = query
        lines = [f"GET {PREFIX}{path}{'?' + query if query else ''} HTTP/{version}"]
        sent = {"Host": "test", "Accept": "text/event-stream, application/problem+json"}
        lines += [f"{name}: {value}" for name, value in (sent | (headers or {})).items()]
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode())
        self.parser = Parser()
        self.blocks: list[Block] = []
        self.status = 0
        self.headers: dict[str, str] = {}
        self.raw = b""
        self.ended = False

    def __enter__(self) -> "RawStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def read_head(self) -> int:
        """Read the status line and headers; the status."""
        while b"\r\n\r\n" not in self.raw:
            self._receive()
        head, self.raw = self.raw.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {
            name.lower(): value.strip() for name, _, value in (li.partition(":") for li in lines)
        }
        self._feed()
        return self.status

    def until(self, done: Callable[[list[Block]], bool]) -> list[Block]:
        """Read on until the blocks seen so far satisfy `done`; they stay in `blocks`."""
        if not self.status:
            self.read_head()
        while not done(self.blocks):
            assert not self.ended, f"the stream ended after {self.blocks}"
            self._receive()
            self._feed()
        return self.blocks

    def take(self, count: int, type: str = "tick") -> list[Block]:
        """Read until `count` blocks of this type have been seen; those."""
        self.until(lambda blocks: sum(block.type == type for block in blocks) >= count)
        return [block for block in self.blocks if block.type == type]

    def hello(self) -> Any:
        return json.loads(self.take(1, "hybrid.hello")[0].data)

    def rest(self) -> str:
        """Read to the end of the response; what was in it besides events."""
        if not self.status:
            self.read_head()
        length = self.headers.get("content-length")
        while not self.ended and (length is None or len(self.raw) < int(length)):
            self._receive()
            self._feed()
        return self.raw.decode()

    def _receive(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            self.ended = True
            assert self.status, "closed before the response"
        self.raw += data

    def _feed(self) -> None:
        if not self.headers["content-type"].startswith("text/event-stream"):
            return  # an error answer, not a stream
        if self.headers.get("transfer-encoding") != "chunked":
            self.blocks += self.parser.feed(self.raw)
            self.raw = b""
            return
        while (end := self.raw.find(b"\r\n")) >= 0:
            size = int(self.raw[:end], 16)
            if len(self.raw) < end + size + 4:
                return
            assert self.raw[end + 2 + size : end + 4 + size] == b"\r\n", "broken chunk"
            self.blocks += self.parser.feed(self.raw[end + 2 : end + 2 + size])
            self.raw = self.raw[end + 4 + size :]
            if size == 0:
                self.ended = True
                return
