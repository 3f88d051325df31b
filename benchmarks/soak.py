"""Hours in minutes: streams that come and go while events flow. `make soak`.

    python -m benchmarks.soak [--minutes 20] [--streams 2000] [--rate 200]

Every client knows which event it has to see next, over all its reconnects: it comes back with its
cursor and says at once if one is missing, repeated or out of order. Each second a twentieth of the
streams are cut by their clients, some in the middle of a frame. Memory and descriptors of the
worker are read every ten seconds; at the end all must be back where they were.

On a machine that has other things to do these clients are the first to fall behind, and would be
told of a gap, as they ought to be. So events and cuts wait while the slowest is far behind, and
the rate that was reached is said.
"""

import argparse
import json
import random
import re
import select
import socket
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from statistics import median

from benchmarks.contestants import HYBRID, Running
from benchmarks.machine import cores, raise_descriptors

NUMBER = re.compile(rb"\nevent: tick\ndata: (\d+)\n\n")
GAP = b"event: hybrid.gap\n"
REASON = re.compile(rb'data: {"reason":"(\w+)"')
FAR = 3000
"""Events that the slowest may be behind before the next ones wait; the log keeps 10,000."""
WARM_UP = 0.25
"""The share of the time after which memory is to be flat: heaps and the log fill first."""


class Client:
    """One client's streams, one after the other; `seen` is the last event it has had.

    `sent` is the text of every event that was emitted, for all clients one list.
    """

    def __init__(self, number: int, sent: list[bytes]) -> None:
        self.number = number
        self.sent = sent
        self.cursor = ""
        self.seen: int | None = None
        self.sock: socket.socket | None = None
        self.buffer = b""

    def connect(self, port: int) -> socket.socket:
        self.sock = socket.create_connection(("127.0.0.1", port))
        since = f"&since={self.cursor}" if self.cursor else ""
        request = f"GET /api/realtime/sse?user=u{self.number}{since} HTTP/1.0\r\nHost: soak\r\n\r\n"
        self.sock.sendall(request.encode())
        self.sock.setblocking(False)
        self.buffer = b""
        return self.sock

    def read(self, trouble: Counter[str]) -> bool:
        """Take in what came; False when the server has closed."""
        assert self.sock is not None
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        self.buffer += data
        end = self.buffer.rfind(b"\n\n") + 2
        if end < 2:
            return bool(data)
        whole, self.buffer = self.buffer[:end], self.buffer[end:]
        trouble["refused"] += whole.count(b"HTTP/1.1 4") + whole.count(b"HTTP/1.1 5")
        before, *after = whole.split(GAP)
        self._take(before, trouble)
        for part in after:
            reason = REASON.match(part)
            trouble[f"gap: {reason[1].decode() if reason else '?'}"] += 1
            self.seen = None
            self._take(part, trouble)
        place = whole.rfind(b"\nid: ")
        if place >= 0:
            self.cursor = whole[place + 5 : whole.index(b"\n", place + 5)].decode()
        elif whole.startswith(b"id: "):
            self.cursor = whole[4 : whole.index(b"\n")].decode()
        return bool(data)

    def _take(self, text: bytes, trouble: Counter[str]) -> None:
        """Hold the events in it against what was sent. Compared as lists: they are millions."""
        numbers = NUMBER.findall(text)
        if not numbers:
            return
        first = int(numbers[0])
        expected = self.sent[first : first + len(numbers)]
        whole = numbers == expected and self.seen in (None, first - 1)
        for number in () if whole else map(int, numbers):
            if self.seen is not None and number != self.seen + 1:
                trouble["lost" if number > self.seen else "repeated"] += 1
            self.seen = number
        self.seen = int(numbers[-1])


def soak(running: Running, minutes: float, streams: int, rate: int) -> bool:
    """Whether all stayed well; says what happened."""

    def call(method: str, path: str) -> bytes:
        with closing(HTTPConnection("127.0.0.1", running.port, timeout=60)) as control:
            control.request(method, path)
            return control.getresponse().read()

    sent: list[bytes] = []

    def emit(count: int) -> None:
        sent.extend(b"%d" % number for number in range(len(sent), len(sent) + count))
        call("POST", f"/numbered?n={count}")

    emit(1)
    first = Client(0, sent)
    first.connect(running.port).close()  # what only the first stream costs is not a leak
    while json.loads(call("GET", "/api/realtime/monitor"))["connections"]["open"]:
        time.sleep(0.05)
    idle = running.descriptors()
    poll = select.poll()
    clients = [Client(number, sent) for number in range(streams)]
    by_fd: dict[int, Client] = {}
    trouble: Counter[str] = Counter()
    dice = random.Random(7)

    def connect(client: Client) -> None:
        sock = client.connect(running.port)
        by_fd[sock.fileno()] = client
        poll.register(sock.fileno(), select.POLLIN)

    def leave(client: Client) -> None:
        assert client.sock is not None
        poll.unregister(client.sock.fileno())
        del by_fd[client.sock.fileno()]
        client.sock.close()
        client.sock = None

    for client in clients:
        connect(client)
    samples: list[tuple[float, int, int]] = []
    began = last_churn = last_look = last_emit = time.monotonic()
    reconnects = behind = 0
    end = began + minutes * 60
    while (now := time.monotonic()) < end:
        due = int((now - last_emit) * rate)
        if due >= rate // 20:
            slowest = min((client.seen for client in clients if client.seen is not None), default=0)
            behind = len(sent) - slowest
            if behind < FAR and due <= rate:
                emit(due)
                last_emit += due / rate
            else:  # they are behind, or this program was
                last_emit = now
        if now - last_churn >= 1 and behind < FAR:
            last_churn = now
            for client in dice.sample(clients, streams // 20):
                if client.sock is not None:
                    leave(client)
                connect(client)
                reconnects += 1
        if now - last_look >= 10:
            last_look = now
            samples.append((now - began, running.memory(), running.descriptors()))
            at, memory, descriptors = samples[-1]
            print(
                f"{at:5.0f} s: {memory / 2**20:.1f} MB, {descriptors} descriptors, {len(sent):,}"
                f" events, {reconnects:,} reconnects, {dict(+trouble)}",
                flush=True,
            )
        for fd, _ in poll.poll(10):
            client = by_fd[fd]
            if not client.read(trouble):
                trouble["ended by the server"] += 1
                leave(client)
                connect(client)
    patience = time.monotonic() + 60
    last = len(sent) - 1
    while any(client.seen != last for client in clients) and time.monotonic() < patience:
        for fd, _ in poll.poll(100):
            by_fd[fd].read(trouble)
    late = sum(client.seen != last for client in clients)
    for client in clients:
        if client.sock is not None:
            leave(client)
    patience = time.monotonic() + 30
    while running.descriptors() > idle and time.monotonic() < patience:
        time.sleep(0.2)
    left = running.descriptors() - idle
    flat = [memory for at, memory, _ in samples if at > WARM_UP * minutes * 60]
    third = max(1, len(flat) // 3)
    growth = median(flat[-third:]) - median(flat[:third]) if flat else 0
    print(
        f"{minutes:g} minutes, {streams:,} streams, {last / minutes / 60:.0f} of {rate} events/s"
        f" wanted: {last:,}, {last * streams:,} deliveries, {reconnects:,} reconnects;"
        f" {late} clients without the last event, trouble: {dict(+trouble)};"
        f" memory {growth / 2**20:+.1f} MB from the first to the last third after the warm-up,"
        f" at {flat[-1] / 2**20 if flat else 0:.0f} MB; {left} descriptors left over"
    )
    return not late and not left and not +trouble and growth < 4 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--rate", type=int, default=200)
    options = parser.parse_args()
    raise_descriptors()
    server_cores, _ = cores()
    with (
        tempfile.TemporaryDirectory() as directory,
        HYBRID.running(server_cores, Path(directory)) as running,
    ):
        well = soak(running, options.minutes, options.streams, options.rate)
    sys.exit(not well)


if __name__ == "__main__":
    main()
