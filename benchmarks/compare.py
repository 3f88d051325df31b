"""Everybody on the same work, in one run: the table with ratios.

Repetitions are interleaved: each contestant is started, measured and ended, then the next, and
all of that again. So a minute in which the machine had other things to do touches one
repetition of a few, and the median leaves it out. How far the repetitions lie apart is printed.
"""

import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.contestants import HYBRID, Contestant, Running
from benchmarks.load import Load, Round
from benchmarks.machine import Missing, cores

PATIENCE = 120.0
"""Seconds for one repetition of one contestant, which takes half a minute at most: one that hangs
is ended and named, and the others have their turn."""
PAYLOAD = '{"mark":"~","pad":"' + "x" * 150 + '"}'
"""What Nchan is posted: it sends bodies on as they are."""


@dataclass(frozen=True)
class Work:
    """So many streams, bursts of so many events, each when all have had the one before."""

    name: str
    streams: int
    burst: int
    seconds: float


BURSTS = Work("1,000 streams, bursts of 20", 1000, 20, 3)
SINGLES = Work("1,000 streams, single events", 1000, 1, 3)
MANY = Work("8,000 streams, single events", 8000, 1, 4)
WORKS = [BURSTS, SINGLES, MANY]


@dataclass
class Measured:
    """One repetition of one contestant's one work. Seconds, bytes; `lost` is a share."""

    per_second: float
    cpu_us: float
    p50: float
    p99: float
    lost: float
    bytes_each: float
    client_busy: float


@dataclass
class Results:
    works: dict[tuple[str, str], list[Measured]] = field(default_factory=lambda: defaultdict(list))
    memory: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Bytes for each stream that does nothing."""
    connects: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Streams a second."""
    missing: dict[str, str] = field(default_factory=dict)
    trouble: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """What went wrong, a line for each repetition in which something did."""
    load: list[float] = field(default_factory=list)
    """The machine's load before each repetition: what else ran."""

    def middle(self, name: str, work: Work, what: str) -> float | None:
        found = [getattr(measured, what) for measured in self.works[name, work.name]]
        return median(found) if found else None

    def memory_kb(self, name: str) -> float | None:
        """KB for each stream that does nothing."""
        return max(median(self.memory[name]), 0) / 1024 if self.memory[name] else None


@contextmanager
def patience(seconds: float, running: Running, load: Load) -> Iterator[None]:
    """Ends both after so long: whoever waits for them then hears that they are gone."""
    spent = threading.Event()

    def end() -> None:
        spent.set()
        load.close()
        for program in running.programs:
            program.end()

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield
    except Exception as error:
        if spent.is_set():
            raise RuntimeError(f"not done after {seconds:g} s") from error
        raise
    finally:
        timer.cancel()


def measure(contestant: Contestant, works: Iterable[Work], results: Results) -> None:
    """One repetition of one contestant."""
    server_cores, client_cores = cores()
    with (
        tempfile.TemporaryDirectory() as directory,
        contestant.running(server_cores, Path(directory)) as running,
        Load(running.port, client_cores) as load,
        patience(PATIENCE, running, load),
    ):
        load.body(PAYLOAD)
        running.open(load, 50)  # what only the first streams cost is not the price of one
        for work in works:
            if work.streams > contestant.most:
                continue
            if work.streams > load.open_now:
                before, had = running.memory(), load.open_now
                took = running.open(load, work.streams)
                time.sleep(1.2)  # a server may hold on to a request for a moment after it
                opened = load.open_now - had
                results.memory[contestant.name].append((running.memory() - before) / opened)
                if contestant.ready or contestant.websocket:
                    results.connects[contestant.name].append(opened / took)
            for _ in range(3):
                running.emit(load, work.burst)
            load.latency()
            cpu = running.cpu_seconds()
            rounds: list[Round] = []
            end = time.monotonic() + work.seconds
            while time.monotonic() < end or len(rounds) < 3:
                rounds.append(running.emit(load, work.burst))
            cpu = running.cpu_seconds() - cpu
            latency = load.latency()
            seen = sum(done.seen for done in rounds)
            expected = work.burst * load.open_now * len(rounds)
            if not seen:
                raise RuntimeError("nothing arrives")
            if seen > 1.1 * expected:
                raise RuntimeError(f"{seen} deliveries of {expected}: they are not counted right")
            results.works[contestant.name, work.name].append(
                Measured(
                    per_second=median(done.seen / done.took for done in rounds if done.seen),
                    cpu_us=cpu / seen * 1e6,
                    p50=latency.p50,
                    p99=latency.p99,
                    lost=1 - seen / expected,
                    bytes_each=sum(done.bytes for done in rounds) / seen,
                    client_busy=1 - sum(r.waited for r in rounds) / sum(r.took for r in rounds),
                )
            )


def compare(contestants: Iterable[Contestant], works: list[Work], repetitions: int) -> Results:
    """All contestants, `repetitions` times over."""
    results = Results()
    for repetition in range(repetitions):
        for contestant in contestants:
            name = contestant.name
            if name in results.missing or (repetition >= 2 and not contestant.targeted):
                continue
            results.load.append(os.getloadavg()[0])
            began = time.monotonic()
            try:
                measure(contestant, works, results)
            except Missing as what:
                results.missing[name] = str(what)
            except Exception as error:
                # Whatever it is, it is this one's, and what it has done until then counts.
                results.trouble[name].append(f"{type(error).__name__}: {error}")
            took = time.monotonic() - began
            print(f"  {repetition + 1}. {name}: {took:.0f} s", file=sys.stderr, flush=True)
    return results


def rows(results: Results, works: list[Work]) -> list[list[str]]:
    """The table: a heading, and a row for each that was measured."""
    heading = ["", *(f"{work.name}: deliveries/s (CPU µs each)" for work in works)]
    heading += ["p50 / p99 ms, single event to 1,000", "KB per idle stream", "connects/s"]
    table = [heading]
    names = list(dict.fromkeys(name for name, _ in results.works))
    for name in names:
        row = [name]
        for work in works:
            speed = results.middle(name, work, "per_second")
            if speed is None:
                row.append("-")
                continue
            cell = f"{speed:,.0f} ({results.middle(name, work, 'cpu_us'):.2f})"
            lost = results.middle(name, work, "lost") or 0
            row.append(cell + (f", lost {lost:.0%}" if lost > 0.001 else ""))
        p50, p99 = (results.middle(name, SINGLES, what) for what in ("p50", "p99"))
        row.append("-" if p50 is None or p99 is None else f"{p50 * 1e3:.1f} / {p99 * 1e3:.1f}")
        memory, connects = results.memory_kb(name), results.connects[name]
        row.append("-" if memory is None else f"{memory:.1f}")
        row.append(f"{median(connects):,.0f}" if connects else "-")
        table.append(row)
    return table


def ratios(results: Results, works: list[Work]) -> list[list[str]]:
    """This project's throughput as a multiple of each other's, and the spread of repetitions."""
    table = [["flask-hybrid is", *(work.name for work in works)]]
    for name in dict.fromkeys(name for name, _ in results.works):
        if name == HYBRID.name:
            continue
        row = [f"x {name}"]
        for work in works:
            own = [m.per_second for m in results.works[HYBRID.name, work.name]]
            other = [m.per_second for m in results.works[name, work.name]]
            if not own or not other:
                row.append("-")
                continue
            each = [a / b for a, b in zip(own, other, strict=False)]
            row.append(f"{median(own) / median(other):.2f} ({min(each):.2f} to {max(each):.2f})")
        table.append(row)
    return table


def as_text(table: list[list[str]]) -> str:
    """A table in Markdown."""
    heading, *rest = table
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rest]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
