"""What the counting costs: the same streams in the same process, with and without it.

    python -m benchmarks.counting [--blocks N] [--seconds S] [--watched N]

One server, one set of streams; the counting is switched off and on by turns, so that whatever
else changes on the machine changes for both. The ratio of each pair of neighbours is taken, and
the middle one counts. On a busy machine that is mostly noise, so the share of the server's CPU
time that is spent inside of the counting is taken as well, which others do not move.

"With" is what every process does: the tally of each batch, the sample each second, the record.
While somebody looks at the monitor's page the state is pushed besides, which `--watched` adds.
"""

import argparse
import contextlib
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from json import loads
from pathlib import Path
from statistics import median

from benchmarks.compare import BURSTS, PAYLOAD, SINGLES, Work
from benchmarks.contestants import SSE, Contestant, Running, gunicorn
from benchmarks.load import Load
from benchmarks.machine import Pinned, cores, raise_descriptors


def start(port: int, on: set[int], directory: Path) -> list[Pinned]:
    app = "benchmarks.counting_app:app"
    return [gunicorn(Path(sys.executable), app, port, on, directory)]


SERVER = Contestant(
    "flask-hybrid", start, SSE, "hybrid.hello", "/api/realtime/health/live", most=20_000
)


def switch(port: int, on: bool) -> tuple[float, float]:
    """Seconds of CPU until now: of the counting, of all."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", f"/counting?on={int(on)}")
    answer = loads(connection.getresponse().read())
    connection.close()
    return answer["spent"], answer["cpu"]


@contextlib.contextmanager
def watching(port: int, count: int) -> Iterator[None]:
    """Pages that look at the monitor; what they are sent nobody reads."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.sendall(b"GET /api/realtime/monitor/sse HTTP/1.1\r\nHost: bench\r\n\r\n")
        yield


def block(running: Running, load: Load, work: Work, seconds: float) -> tuple[float, float]:
    """Deliveries a second, and microseconds of the server's CPU for each."""
    for _ in range(3):
        running.emit(load, work.burst)
    cpu, rates, seen = running.cpu_seconds(), [], 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done = running.emit(load, work.burst)
        rates.append(done.seen / done.took)
        seen += done.seen
    return median(rates), (running.cpu_seconds() - cpu) / seen * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=15, help="pairs, each way")
    parser.add_argument("--seconds", type=float, default=1.5, help="of one block")
    parser.add_argument("--watched", type=int, default=0, help="pages that look meanwhile")
    options = parser.parse_args()
    raise_descriptors()
    server_cores, client_cores = cores()
    with (
        tempfile.TemporaryDirectory() as directory,
        SERVER.running(server_cores, Path(directory)) as running,
        Load(running.port, client_cores) as load,
        watching(running.port, options.watched),
    ):
        load.body(PAYLOAD)
        for work in (BURSTS, SINGLES):
            if work.streams > load.open_now:
                running.open(load, work.streams)
            speed, cost, spent, cpu = [], [], 0.0, 0.0
            for _ in range(options.blocks):
                switch(running.port, on=False)
                without = block(running, load, work, options.seconds)
                before = switch(running.port, on=True)
                counted = block(running, load, work, options.seconds)
                after = switch(running.port, on=True)
                spent, cpu = spent + after[0] - before[0], cpu + after[1] - before[1]
                speed.append(counted[0] / without[0])
                cost.append(counted[1] / without[1])
            print(
                f"{work.name}: {median(speed):.3f} of the throughput without counting"
                f" ({min(speed):.3f} to {max(speed):.3f}), {median(cost):.3f} of the CPU"
                f" ({min(cost):.3f} to {max(cost):.3f});"
                f" {spent / cpu:.2%} of it inside the counting",
                flush=True,
            )


if __name__ == "__main__":
    main()
