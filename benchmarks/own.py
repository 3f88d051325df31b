"""What has no counterpart elsewhere: targeted events, bystanders, storms, polls, growth."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contestants import HYBRID, SSE, Running, hybrid_on_redis, redis_server
from benchmarks.load import Load, Round
from benchmarks.machine import cores, raise_descriptors
from hybrid import Publisher
from hybrid.bus.store import Store

POLLING = "/api/realtime/polling"


@dataclass(frozen=True)
class Figure:
    """What was measured, and what it ought to be."""

    name: str
    value: str
    target: str = ""
    reached: bool | None = None
    """Whether it is what it ought to be; None where nothing is asked."""


def call(port: int, method: str, path: str) -> Any:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path)
    return json.loads(connection.getresponse().read() or b"null")


@contextmanager
def serving(contestant: Any = HYBRID, on: set[int] | None = None) -> Iterator[tuple[Running, Load]]:
    server_cores, client_cores = cores()
    with (
        tempfile.TemporaryDirectory() as directory,
        contestant.running(on or server_cores, Path(directory)) as running,
        Load(running.port, client_cores) as load,
    ):
        yield running, load


def room() -> int:
    """The streams that one process may hold here, up to 20,000."""
    return min(20_000, raise_descriptors() - 200)


def targeted(count: int, events: int) -> list[Figure]:
    """One user of many: cost independent of the number of connections.

    `events` are fewer than the log keeps: they are emitted in one go, and who could not read them
    meanwhile would be told of a gap.
    """
    figures = []
    for streams in (100, count):
        many = streams == count
        with serving() as (running, load):
            running.open(load, streams)
            rates = []
            for _ in range(5):
                path = f"/emit_in_process?n={events}&user=u7"
                rates.append(call(running.port, "POST", path)["per_second"])
            load.round("/emit?n=1&user=u7", 5 * events + 1)  # all that is still to be read
            cpu = running.cpu_seconds()
            done = load.round(f"/emit?n={events}&user=u7&pad=0", events)
            cpu = running.cpu_seconds() - cpu
            figures.append(
                Figure(
                    f"events to one user of {streams:,}",
                    f"{median(rates):,.0f} emits/s in process;"
                    f" {done.seen / max(done.took, 1e-9):,.0f}/s delivered,"
                    f" {cpu / events * 1e6:.0f} µs each",
                    *(("at least 20,000 emits/s", median(rates) >= 20_000) if many else ()),
                )
            )
    return figures


def bystanders(streams: int, seconds: float) -> list[Figure]:
    """What other requests wait while all streams are written to, again and again."""
    with serving() as (running, load), Load(running.port, cores()[1]) as other:
        running.open(load, streams)
        at_rest = other.probe("/json", 5, seconds)
        child = os.fork()
        if child == 0:  # the fan-out, until it is ended
            while True:
                load.round("/emit?n=1", streams)
        try:
            busy = other.probe("/json", 5, seconds)
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
    return [
        Figure(
            f"other requests while {streams:,} streams are fanned out",
            f"p50 {busy.p50 * 1e3:.1f} ms, p99 {busy.p99 * 1e3:.1f} ms"
            f" (at rest {at_rest.p50 * 1e3:.1f} and {at_rest.p99 * 1e3:.1f} ms)",
            "p99 below 50 ms",
            busy.p99 < 0.05,
        )
    ]


def storm(streams: int, missed: int) -> list[Figure]:
    """Everybody comes back at once, with a cursor that is some events old."""
    with serving() as (running, load):
        cursor = call(running.port, "GET", POLLING)["cursor"]
        load.round(f"/emit?n={missed}", 0)
        path = f"{SSE}&since={cursor}"
        took = load.open(path, streams, ready="hybrid.hello", expect=missed, parallel=1000)
    return [
        Figure(
            f"{streams:,} reconnect at once, {missed} events to replay each",
            f"{took:.1f} s, no error, {streams / took:,.0f}/s",
            "less than 10 s",
            took < 10,
        )
    ]


def connects(streams: int) -> list[Figure]:
    """How many new streams a second one worker takes."""
    rates, costs = [], []
    for _ in range(3):
        with serving() as (running, load):
            running.open(load, 50)
            cpu = running.cpu_seconds()
            took = load.open(SSE, streams, ready="hybrid.hello")
            rates.append((streams - 50) / took)
            costs.append((running.cpu_seconds() - cpu) / (streams - 50))
    return [
        Figure(
            f"streams accepted, up to {streams:,}",
            f"{median(rates):,.0f}/s ({min(rates):,.0f} to {max(rates):,.0f}),"
            f" {median(costs) * 1e6:.0f} µs of CPU each",
            "at least 2,500/s",
            median(rates) >= 2500,
        )
    ]


def crowd(streams: int) -> list[Figure]:
    """As many streams in one worker as its descriptors permit: do all of them work?"""
    events = 10
    with serving() as (running, load):
        running.open(load, 50)
        before = running.memory()
        took = running.open(load, streams)
        memory = (running.memory() - before) / (streams - 50)
        rounds = [load.round("/emit?n=1", streams, quiet=10) for _ in range(events)]
        seen = sum(done.seen for done in rounds)
    return [
        Figure(
            f"{streams:,} streams in one worker, with {raise_descriptors():,} descriptors for all",
            f"open after {took:.1f} s, {seen:,} of {events * streams:,} deliveries,"
            f" {median(done.took for done in rounds) * 1e3:.0f} ms for an event to all,"
            f" {memory / 1024:.1f} KB each",
            "20,000 work",
            seen == events * streams,
        )
    ]


def polls(seconds: float, held: int) -> list[Figure]:
    with serving() as (running, load):
        cursor = call(running.port, "GET", POLLING)["cursor"]
        ratios, rates = [], []
        for _ in range(5):
            bare, _, _ = load.requests("/json", 20, seconds)
            empty, failed, _ = load.requests(f"{POLLING}?since={cursor}&user=a", 20, seconds)
            assert not failed, f"{failed} polls failed"
            ratios.append(empty / bare)
            rates.append(empty)
    each = {}
    for kind, path, ready in (
        ("poll", f"{POLLING}?since=%s&wait=25&user=u%%d", "HTTP"),
        ("stream", SSE, "hybrid.hello"),
    ):
        # One after the other, polls too: the heap keeps what 5,000 requests of one instant took.
        with serving() as (running, load):
            cursor = call(running.port, "GET", POLLING)["cursor"]
            running.open(load, 50)
            before = running.memory()
            load.open(path % cursor if kind == "poll" else path, held + 50, ready=ready)
            end = time.monotonic() + 20
            while call(running.port, "GET", "/api/realtime/monitor")["connections"]["open"] < held:
                assert time.monotonic() < end, "they are not held"
                time.sleep(0.1)
            each[kind] = round((running.memory() - before) / held / 1024, 1)
    return [
        Figure(
            "empty poll, to a bare Flask view with the same JSON",
            f"{median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f}),"
            f" {median(rates):,.0f}/s",
            "at least 0.6 x",
            median(ratios) >= 0.6,
        ),
        Figure(
            f"memory of a long poll held, {held:,} of them",
            f"{each['poll']} KB; a stream's is {each['stream']} KB",
            "no more than a stream's",
            each["poll"] <= each["stream"],
        ),
    ]


@dataclass(frozen=True)
class Point:
    """One place of the growth chart. Seconds, bytes."""

    workers: int
    streams: int
    pad: int
    per_second: float
    bytes_per_second: float
    p50: float
    p99: float
    memory: float


def growth(counts: list[int], pads: list[int], workers: int, seconds: float) -> Iterator[Point]:
    """Throughput, latency and memory over the number of streams and the size of events."""
    contestant = HYBRID if workers == 1 else replace(HYBRID, start=hybrid_on_redis(workers))
    on = cores()[0] if workers == 1 else cores()[0] | cores()[1]
    with serving(contestant, on) as (running, load):
        running.open(load, 50)
        base = running.memory()

        def point(streams: int, pad: int, memory: float) -> Point:
            path = f"/emit?n=1&pad={pad}"
            for _ in range(3):
                load.round(path, streams)
            load.latency()
            rounds: list[Round] = []
            end = time.monotonic() + seconds
            while time.monotonic() < end or len(rounds) < 3:
                rounds.append(load.round(path, streams))
            latency = load.latency()
            if sum(r.seen for r in rounds) != streams * len(rounds):
                raise RuntimeError(f"lost at {streams} streams of {pad} bytes")
            return Point(
                workers,
                streams,
                pad,
                median(r.seen / r.took for r in rounds),
                median(r.bytes / r.took for r in rounds),
                latency.p50,
                latency.p99,
                memory,
            )

        for streams in counts:
            running.open(load, streams)
            time.sleep(1.2)
            memory = (running.memory() - base) / max(streams - 50, 1)
            yield point(streams, 130, memory)
            if streams == 1000:
                for pad in pads:
                    yield point(streams, pad, memory)


def redis_cost(counts: tuple[int, ...], events: int) -> list[Figure]:
    """What an event costs Redis, by the instances that listen: CPU time of the server."""
    figures = []
    for instances in counts:
        with tempfile.TemporaryDirectory() as directory:
            server, url = redis_server(cores()[0], Path(directory))
            try:
                publisher = Publisher(url, namespace="bench")
                _until(partial(publisher.emit, "tick", 0))
                # each instance has a store, and with it a connection, of its own
                stores = [
                    Store(url, "bench", max_events=10_000, max_seconds=3600)
                    for _ in range(instances)
                ]
                ears = [store.subscribe() for store in stores]
                for ear in ears:
                    while (ear.get_message(timeout=5) or {}).get("type") != "subscribe":
                        pass
                before = server.cpu_seconds()
                for _ in range(events):
                    publisher.emit("tick", {"pad": "x" * 130})
                cost = (server.cpu_seconds() - before) / events
                for ear in ears:
                    ear.close()
            finally:
                server.end()
        figures.append(
            Figure(f"CPU of Redis for an event, {instances} instances", f"{cost * 1e6:.0f} µs")
        )
    return figures


def _until(act: Callable[[], object]) -> None:
    """Again until Redis answers."""
    end = time.monotonic() + 20
    while True:
        try:
            act()
            return
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
