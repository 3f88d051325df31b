"""What the Redis bus costs: latency across workers, emits a second, commands and connections.

    python benchmarks/bus.py [--quick]

Starts a redis-server and two gunicorn servers of one worker each, on loopback. What is counted
(commands, connections) Redis itself has counted; what is timed is timed on CLOCK_MONOTONIC, which
all processes of a machine share.
"""

import argparse
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import redis

from hybrid import Publisher

HERE = Path(__file__).parent
DEADLINE = 30.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def running(command: list[str], port: int, environ: dict[str, str] | None = None) -> Iterator[int]:
    """A server that listens on a port; yields its process id."""
    process = subprocess.Popen(
        command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + DEADLINE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if time.monotonic() > end or process.poll() is not None:
                    raise
                time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGQUIT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def worker(url: str) -> Iterator[int]:
    """One gunicorn worker on this Redis; yields its port."""
    port = free_port()
    environ = dict(os.environ, PYTHONPATH=str(HERE.parent), HYBRID_URL=url)
    command = [
        *(sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", "1", "-b", f"127.0.0.1:{port}"),
        *("-c", "python:benchmarks.server_conf", "--chdir", str(HERE.parent)),
        "benchmarks.bench_app:app",
    ]
    with running(command, port, environ):
        yield port


class Client:
    """A connection that asks, and reads a stream."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.settimeout(DEADLINE)
        self.seen = b""

    def ask(self, method: str, path: str, length: str = "") -> None:
        self.sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: bench\r\n{length}\r\n".encode())

    def until(self, mark: bytes) -> bytes:
        """Everything up to the mark, which is taken off."""
        while mark not in self.seen:
            data = self.sock.recv(65536)
            if not data:
                raise RuntimeError(f"closed after {self.seen[-300:]!r}")
            self.seen += data
        found, _, self.seen = self.seen.partition(mark)
        return found


def stream(port: int, query: str = "") -> Client:
    client = Client(port)
    client.ask("GET", f"/api/realtime/sse?{query}")
    client.until(b"event: hybrid.hello")
    client.until(b"\n\n")
    return client


class Counted:
    """What Redis has counted since the last look."""

    def __init__(self, client: "redis.Redis") -> None:
        self.client = client
        self.before = self._now()

    def _now(self) -> dict[str, int]:
        stats = self.client.info("commandstats")
        return {name[8:]: figures["calls"] for name, figures in stats.items()}

    def since(self) -> dict[str, int]:
        """Calls of the package's scripts and of everything else but this looking."""
        now = self._now()
        delta = {name: count - self.before.get(name, 0) for name, count in now.items()}
        self.before = self._now()
        return {
            name: count
            for name, count in sorted(delta.items())
            if count and name not in ("info", "client|list", "hmget", "publish", "xrange", "xlen")
        }


def latency(emitter: int, reader: int, count: int) -> list[float]:
    """Milliseconds from an emit on one worker to a stream's client on another, at rest."""
    found = []
    ears = stream(reader, "user=ears")
    mouth = Client(emitter)
    for _ in range(count):
        mouth.ask("POST", "/emit?n=1&stamped=1", "Content-Length: 0\r\n")
        ears.until(b'"t":')
        born = int(ears.until(b","))
        found.append((time.monotonic_ns() - born) / 1e6)
        ears.until(b"\n\n")
        mouth.until(b"\r\n\r\n")
        time.sleep(0.005)  # at rest: one event at a time
    return sorted(found)


def emits(url: str, seconds: float) -> tuple[float, float]:
    """Events a second of one process: one by one, and 100 at a time."""
    publisher = Publisher(url)
    data = {"mark": "~", "pad": "x" * 130}
    rates = []
    for batch in (1, 100):
        done, began = 0, time.monotonic()
        while (took := time.monotonic() - began) < seconds:
            if batch == 1:
                publisher.emit("tick", data)
            else:
                publisher.emit_many([{"type": "tick", "data": data}] * batch)
            done += batch
        rates.append(done / took)
    publisher.close()
    return rates[0], rates[1]


def together(port: int, tasks: int, seconds: float) -> float:
    """Events a second of one worker's greenlets, each of which emits one by one."""
    client = Client(port)
    client.ask("POST", f"/emit_together?tasks={tasks}&seconds={seconds}", "Content-Length: 0\r\n")
    client.until(b'"per_second":')
    return float(client.until(b"}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small numbers: does it run at all")
    quick = parser.parse_args().quick
    streams, returning, rounds, seconds = (50, 20, 20, 0.5) if quick else (5000, 1000, 500, 5.0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        port = free_port()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        stack.enter_context(running([*command, "--dir", folder], port))
        url = f"redis://127.0.0.1:{port}/0"
        client = stack.enter_context(redis.Redis(port=port, decode_responses=True))
        here, there = (stack.enter_context(worker(url)) for _ in range(2))

        times = latency(here, there, rounds)
        print(
            f"emit on one worker to a client of another, at rest: p50 {median(times):.2f} ms,"
            f" p99 {times[int(len(times) * 0.99)]:.2f} ms ({len(times)} events)"
        )
        singly, batched = emits(url, seconds)
        print(
            f"emits of one process: {singly:,.0f}/s one by one, {batched:,.0f}/s by emit_many(100)"
        )
        for tasks in (1, 10, 100):
            rate = together(here, tasks, seconds)
            print(f"emits of one worker, {tasks} at once: {rate:,.0f}/s")

        counted = Counted(client)
        time.sleep(10 * seconds / 5)  # what an idle instance costs
        print(f"commands in {10 * seconds / 5:g} s at rest, 2 workers, 1 stream: {counted.since()}")
        clients = [stream(there, f"user=u{number}") for number in range(streams)]
        opened = counted.since()
        print(f"commands while {streams} streams were opened: {opened}")
        time.sleep(10 * seconds / 5)
        print(
            f"commands in {10 * seconds / 5:g} s at rest, 2 workers, {streams + 1} streams:"
            f" {counted.since()}"
        )
        ours = [each for each in client.client_list() if each["name"] == "flask-hybrid"]
        listening = [each for each in ours if int(each["sub"])]
        print(
            f"connections to Redis with {streams} streams: {len(listening)} that listen and"
            f" {len(ours) - len(listening)} that command, of 2 workers"
        )
        for each in clients:
            each.sock.close()

        # A deploy: everybody comes back with a cursor, a hundred events behind.
        cursor = json.loads(_get(there, "/api/realtime/polling"))["cursor"]
        publisher = Publisher(url)
        publisher.emit_many([{"type": "tick", "data": {"mark": "~"}}] * 100)
        publisher.close()
        counted.since()
        began = time.monotonic()
        back = [Client(there) for _ in range(returning)]
        for number, each in enumerate(back):
            each.ask("GET", f"/api/realtime/sse?user=u{number}&since={cursor}")
        for each in back:
            for _ in range(100):
                each.until(b'"mark":"~"')
        took = time.monotonic() - began
        print(
            f"{returning} clients back at once, 100 events behind: all served in {took:.2f} s,"
            f" commands: {counted.since() or 'none'}"
        )
        for each in back:
            each.sock.close()


def _get(port: int, path: str) -> bytes:
    client = Client(port)
    client.ask("GET", path)
    head = client.until(b"\r\n\r\n").lower()
    length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
    while len(client.seen) < length:
        client.seen += client.sock.recv(65536)
    client.sock.close()
    return client.seen


if __name__ == "__main__":
    main()
