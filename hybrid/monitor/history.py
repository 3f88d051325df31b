"""The figures over time: points of one second, rolled up into three rings. Pure.

A point says what happened within one step that begins at `at`. Points of several instances for
the same second become one (`merge`), and points that follow each other become one of a longer
step (`roll`). Every field says how: what is counted adds up; what is a state adds up over the
instances and of later seconds the last one counts; of the worst, the worst counts.

`Rings` takes the deployment's seconds in order. A ring of a longer step gets its point when the
first second of the next step arrives, made of the seconds themselves: so a process that takes
over in the middle of a step, with the rings as they are stored, goes on exactly as if it had
been there from the start.
"""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hybrid.histogram import quantile

Combine = Callable[[Iterable[float]], float]


def last(values: Iterable[float]) -> float:
    *_, final = values
    return final


COUNTED: tuple[Combine, Combine] = (sum, sum)
STATE: tuple[Combine, Combine] = (sum, last)
WORST: tuple[Combine, Combine] = (max, max)
SHARED: tuple[Combine, Combine] = (max, sum)
"""The log's newest offset, as far as an instance has read it. The keeper makes the number of new
events of it (`Monitor._stored`): counted by each for itself, they would fall into different seconds
and count twice."""

FIELDS: dict[str, tuple[Combine, Combine]] = {
    "instances": STATE,
    "sse": STATE,
    "polling": STATE,
    "opened": COUNTED,
    "closed": COUNTED,
    "refused": COUNTED,
    "polls": COUNTED,
    "resumed": COUNTED,
    "unresumed": COUNTED,
    "emitted": COUNTED,
    "stored": SHARED,
    "delivered": COUNTED,
    "bytes": COUNTED,
    "gaps": COUNTED,
    "overflow": COUNTED,
    "slow": COUNTED,
    "errors": COUNTED,
    "reported": COUNTED,
    "outbox": STATE,
    "memory": STATE,
    "cpu": COUNTED,
    "lag": WORST,
    "redis": WORST,
}
"""How values of several instances, and of several seconds, become one. docs/monitoring.md says
what each is."""
PLACES = {name: place for place, name in enumerate(FIELDS)}

RINGS = {1: 300, 10: 360, 60: 1440}
"""Points kept by their step in seconds: five minutes, an hour, a day."""


@dataclass(frozen=True, slots=True)
class Point:
    """What happened in one step. `latency` has the counts of `Histogram` that are not zero."""

    at: int
    """Unix seconds, the beginning of the step."""
    values: tuple[float, ...]
    latency: Mapping[int, int]

    @classmethod
    def of(cls, at: int, values: Mapping[str, float], latency: Mapping[int, int]) -> "Point":
        """A point from fields by name; those not given are 0."""
        return cls(at, tuple(values.get(name, 0) for name in FIELDS), latency)

    def __getitem__(self, name: str) -> float:
        return self.values[PLACES[name]]

    def with_(self, name: str, value: float) -> "Point":
        """The point with another value in one field."""
        place = PLACES[name]
        return replace(self, values=(*self.values[:place], value, *self.values[place + 1 :]))

    def carried(self, at: int) -> "Point":
        """A later second in which nothing happened: states stay, nothing is counted."""
        values = zip(self.values, FIELDS.values(), strict=True)
        return Point(at, tuple(v if how == STATE else 0 for v, how in values), {})

    def pack(self) -> str:
        """The point as text."""
        values = [round(value, 3) if value % 1 else int(value) for value in self.values]
        latency = [number for pair in self.latency.items() for number in pair]
        return json.dumps([self.at, values, latency], separators=(",", ":"))

    @classmethod
    def unpack(cls, text: str) -> "Point | None":
        """The point of a text; None for one of another version."""
        try:
            at, values, latency = json.loads(text)
        except ValueError:
            return None
        if len(values) != len(FIELDS):
            return None
        return cls(at, tuple(values), dict(zip(latency[::2], latency[1::2], strict=True)))


def merge(points: Sequence[Point]) -> Point:
    """One second of several instances."""
    return _combined(points, 0, points[0].at)


def roll(points: Sequence[Point], at: int) -> Point:
    """Points that follow each other as one that begins at `at`."""
    return _combined(points, 1, at)


def _combined(points: Sequence[Point], way: int, at: int) -> Point:
    columns = zip(*[point.values for point in points], strict=True)
    values = tuple(how[way](column) for how, column in zip(FIELDS.values(), columns, strict=True))
    latency: Counter[int] = Counter()
    for point in points:
        latency.update(point.latency)
    return Point(at, values, dict(latency))


class Rings:
    """The deployment's history: what is kept of it at each step."""

    def __init__(self, kept: Mapping[int, Iterable[Point]] | None = None) -> None:
        self._rings: dict[int, deque[Point]] = {
            step: deque((kept or {}).get(step, ()), maxlen=size) for step, size in RINGS.items()
        }

    def points(self, step: int) -> list[Point]:
        """The points of a ring, oldest first. Raises `KeyError` for a step that is none."""
        return list(self._rings[step])

    @property
    def upto(self) -> int:
        """The second up to which there is something; 0 in the beginning."""
        seconds = self._rings[1]
        return seconds[-1].at if seconds else 0

    def clear(self) -> None:
        """Forget all: the clock by which it was made is another one now."""
        for ring in self._rings.values():
            ring.clear()

    def append(self, point: Point) -> list[tuple[int, Point]]:
        """Take the next second; what became of it, as (step, point).

        One that is not later than the newest is left out: it has been taken already.
        """
        seconds = self._rings[1]
        if point.at <= self.upto:
            return []
        fresh = [(1, point)]
        for step, ring in self._rings.items():
            if step == 1 or not seconds:
                continue
            begin = seconds[-1].at // step * step
            if point.at >= begin + step and (not ring or ring[-1].at < begin):
                fresh.append((step, roll([p for p in seconds if p.at >= begin], begin)))
        for step, new in fresh:
            self._rings[step].append(new)
        return fresh


def columns(points: Sequence[Point], step: int) -> dict[str, Any]:
    """Points for a chart: one list a field, and p50, p95, p99 of the latency in milliseconds."""
    table: dict[str, Any] = {"step": step, "at": [point.at for point in points]}
    for name, place in PLACES.items():
        table[name] = [point.values[place] for point in points]
    for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        table[name] = [milliseconds(quantile(point.latency, q)) for point in points]
    return table


def milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
