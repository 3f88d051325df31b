"""Where instances leave their records for each other, and the deployment's history.

Over Redis: one key an instance, which expires, and lists of bounded length. One of the instances
is the keeper: it alone adds to the history and decides about alerts. It stays so as long as it
says so every few seconds; then the next that asks is the keeper. In memory there is one instance,
and it is the keeper.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hybrid.bus import Bus
from hybrid.monitor.history import Point, Rings

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Beat:
    """What an instance learns when it writes its record. `now` is Unix milliseconds."""

    now: int
    keeper: bool
    watched: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """A record with its age in milliseconds, by one clock."""

    record: Record
    age: int


class Away(Exception):
    """The others are out of reach: Redis does not answer, or refuses; the text says why."""


class Records(Protocol):
    """All methods raise `Away` when Redis is out of reach."""

    shared: bool
    """Whether there may be other instances."""

    def beat(self, record: str, *, watched: bool) -> Beat:
        """Write the own record."""
        ...

    def read(self) -> list[Seen]:
        """All records that there are."""
        ...

    def keep(self, points: Sequence[tuple[int, Point]], state: dict[str, Any]) -> bool:
        """Add points, as (step, point), to the history; False if somebody else is the keeper."""
        ...

    def history(self, step: int, newest: int = 0) -> list[Point]:
        """The points of a ring, oldest first; only that many of the newest, if not 0."""
        ...

    def state(self) -> dict[str, Any]:
        """What `keep` stored last; empty if nothing."""
        ...

    def leave(self) -> None:
        """Take the own record away."""

    def listen(self, bus: Bus, hear: Callable[[str], object]) -> None:
        """Let `hear` be called with what others ask."""

    def ask(self, question: str) -> None:
        """Say something to all instances."""

    def answer(self, place: str, text: str) -> None:
        """Leave an answer where the one who asks looks for it."""

    def answers(self, place: str) -> Mapping[str, str]:
        """What was left there until now, by instance."""
        ...


class LocalRecords:
    """Of one process that shares nothing; the history is the keeper's own."""

    shared = False

    def __init__(self, rings: Rings) -> None:
        self._record: Record = {}
        self._rings = rings
        self._state: dict[str, Any] = {}

    def beat(self, record: str, *, watched: bool) -> Beat:
        self._record = json.loads(record)
        return Beat(int(time.time() * 1000), True, watched)

    def read(self) -> list[Seen]:
        return [Seen(self._record, 0)] if self._record else []

    def keep(self, points: Sequence[tuple[int, Point]], state: dict[str, Any]) -> bool:
        self._state = state
        return True

    def history(self, step: int, newest: int = 0) -> list[Point]:
        return self._rings.points(step)[-newest:]

    def state(self) -> dict[str, Any]:
        return self._state

    def leave(self) -> None:
        """Nobody is left to see it."""

    def listen(self, bus: Bus, hear: Callable[[str], object]) -> None:
        """Nobody asks."""

    def ask(self, question: str) -> None:
        """There is nobody to ask."""

    def answer(self, place: str, text: str) -> None:
        """Nobody asks."""

    def answers(self, place: str) -> Mapping[str, str]:
        return {}
