"""Fan-out of one gunicorn worker: deliveries a second, latency, memory per stream.

    python benchmarks/fanout.py [--rounds N] [--quick]

A real gunicorn with one gevent worker is pinned to one core, the load client to another. The
client is one epoll loop that counts marks in what it reads and looks at one timestamp a read;
it reports its own load, since a client that is busy all the time measures itself. Each round
emits, waits until every stream has everything, and only then emits again, so that single
events are not batched by the round before.
"""

import argparse
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from json import loads
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
BORN = re.compile(rb'"t":(\d+),"mark":"~"')
DEADLINE = 60.0
"""Seconds that one round may take before the run counts as broken."""


@dataclass
class Result:
    streams: int
    burst: int
    bytes_per_event: int
    per_second: float
    server_us: float
    client_busy: float
    p50_ms: float
    p99_ms: float


@contextmanager
def server(port: int, core: int) -> Iterator[None]:
    """gunicorn as one would deploy it, on one core."""
    environ = dict(os.environ, PYTHONPATH=str(HERE.parent), HYBRID_MAX_CONNECTIONS="50000")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", "1"),
            *("-b", f"127.0.0.1:{port}", "-c", "python:benchmarks.server_conf"),
            *("--chdir", str(HERE.parent), "benchmarks.bench_app:app"),
        ],
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "Booting worker" in line:
                break
        yield
    finally:
        process.send_signal(signal.SIGQUIT)  # SIGTERM would wait for the open streams
        process.wait(20)


class Streams:
    """N open streams in one epoll loop."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.epoll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.control = HTTPConnection("127.0.0.1", port, timeout=DEADLINE)

    def call(self, method: str, path: str) -> bytes:
        self.control.request(method, path)
        return self.control.getresponse().read()

    def monitor(self) -> Any:
        return loads(self.call("GET", "/api/realtime/monitor"))

    def open(self, count: int) -> None:
        """Open more streams until there are `count`, each counted open at its hello."""
        while len(self.sockets) < count:
            fresh = []
            for _ in range(min(200, count - len(self.sockets))):
                # an address has some 28,000 ports to connect from
                source = f"127.0.0.{1 + len(self.sockets) // 20_000}"
                sock = socket.create_connection(
                    ("127.0.0.1", self.port), source_address=(source, 0)
                )
                sock.sendall(
                    f"GET /api/realtime/sse?user=u{len(self.sockets)} HTTP/1.1\r\n"
                    "Host: 127.0.0.1\r\n\r\n".encode()
                )
                self.sockets[sock.fileno()] = sock
                fresh.append(sock)
            for sock in fresh:
                seen = b""
                while b"hybrid.hello" not in seen or not seen.endswith(b"\n\n\r\n"):
                    seen += sock.recv(65536)
                sock.setblocking(False)
                self.epoll.register(sock.fileno(), select.EPOLLIN)

    def round(self, burst: int, births: list[float]) -> tuple[float, float]:
        """One emit to all streams; seconds until the last delivery, and those spent waiting."""
        expected = burst * len(self.sockets)
        sockets, poll, clock = self.sockets, self.epoll.poll, time.monotonic_ns
        buffer = bytearray(65536)  # one for all: a fresh one for each read costs more than the read
        seen = waited = 0
        began = clock()
        self.control.request("POST", f"/emit?n={burst}")
        while seen < expected:
            asleep = clock()
            ready = poll(DEADLINE)
            waited += clock() - asleep
            if not ready:
                raise RuntimeError(f"{expected - seen} of {expected} deliveries never came")
            for fd, _ in ready:
                size = sockets[fd].recv_into(buffer)
                seen += buffer.count(b"~", 0, size)
                if (born := BORN.search(buffer, 0, size)) is not None:
                    births.append((clock() - int(born[1])) / 1e6)
        took = clock() - began
        self.control.getresponse().read()
        return took / 1e9, waited / 1e9

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close()
        self.epoll.close()
        self.control.close()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure(streams: Streams, pid: int, burst: int, rounds: int) -> Result:
    births: list[float] = []
    for _ in range(3):
        streams.round(burst, [])
    before, cpu = streams.monitor()["events"], cpu_seconds(pid)
    times = [streams.round(burst, births) for _ in range(rounds)]
    cpu = cpu_seconds(pid) - cpu
    after = streams.monitor()["events"]
    delivered = burst * len(streams.sockets) * rounds
    births.sort()
    return Result(
        streams=len(streams.sockets),
        burst=burst,
        bytes_per_event=(after["delivered_bytes"] - before["delivered_bytes"])
        // (after["delivered"] - before["delivered"]),
        per_second=median(burst * len(streams.sockets) / took for took, _ in times),
        server_us=cpu / delivered * 1e6,
        client_busy=1 - sum(waited for _, waited in times) / sum(took for took, _ in times),
        p50_ms=births[len(births) // 2],
        p99_ms=births[int(len(births) * 0.99)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="small numbers: does it run at all")
    parser.add_argument("--port", type=int, default=8765)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    plan = [(100, 20), (100, 1)] if options.quick else [(1000, 20), (1000, 1), (8000, 1)]
    rounds = 3 if options.quick else options.rounds
    results = []
    with server(options.port, cores[0]):
        streams = Streams(options.port)
        pid = streams.monitor()["instance"]["pid"]
        streams.open(50)  # what only the first streams cost is not the price of one
        idle = resident(pid)
        per_stream: list[tuple[int, float]] = []
        for count, burst in plan:
            opened = count - len(streams.sockets)
            if opened > 0:
                idle = resident(pid)
                streams.open(count)
                per_stream.append((count, (resident(pid) - idle) / opened / 1024))
            results.append(measure(streams, pid, burst, rounds))
        streams.close()
    print(
        f"{'streams':>8} {'burst':>6} {'bytes':>6} {'deliveries/s':>13} {'server µs':>10}", end=""
    )
    print(f" {'p50 ms':>8} {'p99 ms':>8} {'client busy':>12}")
    for r in results:
        print(
            f"{r.streams:>8} {r.burst:>6} {r.bytes_per_event:>6} {r.per_second:>13,.0f}"
            f" {r.server_us:>10.2f} {r.p50_ms:>8.2f} {r.p99_ms:>8.2f} {r.client_busy:>12.0%}"
        )
    for count, kilobytes in per_stream:
        print(f"memory per idle stream, up to {count}: {kilobytes:.1f} KB")


if __name__ == "__main__":
    main()
