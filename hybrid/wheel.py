"""Whose turn it is: heartbeats, spread evenly over the interval."""

from collections.abc import Callable, Iterator

from hybrid.connection import Connection

TICKS = 60
"""The moments of an interval over which heartbeats are spread."""


class Wheel:
    """Every connection added comes up once per `interval` seconds, at a moment of its own.

    `random` gives a float in [0, 1) and chooses that moment.
    """

    def __init__(self, interval: float, now: float, random: Callable[[], float]) -> None:
        self.pace = interval / TICKS
        """Seconds between two moments: how often `due` wants to be asked."""
        self._random = random
        self._moments: list[set[Connection]] = [set() for _ in range(TICKS)]
        self._turned = self._moment(now)

    def __len__(self) -> int:
        return sum(map(len, self._moments))

    def add(self, connection: Connection) -> None:
        connection.slot = int(self._random() * TICKS)
        self._moments[connection.slot].add(connection)

    def discard(self, connection: Connection) -> None:
        """Forget it; harmless when it is not there."""
        self._moments[connection.slot].discard(connection)

    def due(self, now: float) -> Iterator[list[Connection]]:
        """Those whose turn has come since the last call, moment by moment; none twice."""
        moment = self._moment(now)
        first = max(self._turned + 1, moment - TICKS + 1)
        self._turned = moment
        for place in range(first, moment + 1):
            yield list(self._moments[place % TICKS])

    def _moment(self, now: float) -> int:
        return int(now / self.pace)
