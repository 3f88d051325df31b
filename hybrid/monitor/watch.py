"""The monitor's own stream: what is going on, once a second, while somebody watches.

It has a log and a hub of its own in each process, apart from the application's. So what the
monitor sends is in no figure that it shows, and its states do not push the application's events
out of their log. Only the newest state matters: who comes without a cursor of this process, as a
poll that another process answered last, is sent the newest at once and told of no gap.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import Any

from hybrid.audience import EVERYONE
from hybrid.bus.memory import MemoryBus
from hybrid.events import Cursor, Event, random_id
from hybrid.hub import Hub
from hybrid.log import Entry, Log, Start
from hybrid.pump import Pump
from hybrid.wire import to_json

STATES = 8
"""States that are kept: a connection that is so far behind goes on with the newest."""
WATCHERS = 100
LINGER = 30.0
"""Seconds without a poll after which a polling page counts as closed."""
FRESH = 2.0


class Watch:
    """See the module's docstring. `look` gives the state; `clock` is Unix milliseconds."""

    def __init__(
        self, look: Callable[[], dict[str, Any]], *, heartbeat: float, clock: Callable[[], int]
    ) -> None:
        self._look = look
        self._clock = clock
        self._lock = threading.Lock()
        self._pushed_at = self._polled_at = float("-inf")
        self.log = Log(random_id(), max_events=STATES, max_seconds=60)
        self.hub = Hub(
            self.log,
            heartbeat=heartbeat,
            max_connections=WATCHERS,
            clock=time.monotonic,
            wall=clock,
            random=random.random,
            pause=lambda: time.sleep(1e-9),
        )
        self._pump = Pump(self.hub, stall=30)
        self._bus = MemoryBus(self.log, self.hub, clock=clock)

    @property
    def wanted(self) -> bool:
        """Whether somebody watches here."""
        return self.hub.held() > 0 or time.monotonic() - self._polled_at < LINGER

    def push(self) -> None:
        """Send the state as it is now to all who watch."""
        with self._lock:
            self._pushed_at = time.monotonic()
            state = to_json(self._look())
            self._bus.publish([Event(random_id(), "monitor", state, self._clock(), EVERYONE)])
        # Who may look is asked again whenever a stream begins, so each begins again soon.
        old = self.hub.clock() - self.hub.heartbeat
        for connection in list(self.hub.connections.values()):
            if connection.opened_at < old:
                self.hub.end(connection, "age", after=0)

    def begin(self, since: str | None) -> Start:
        """Where one who comes with this cursor begins."""
        self._pump.start()
        if time.monotonic() - self._pushed_at > FRESH:
            self.push()
        start = self.log.resolve(since)
        return start if start.resumed else Start(self._before_newest())

    def poll(self, since: str | None) -> list[Entry]:
        """The states after a cursor; none, for a cursor of the newest."""
        self._polled_at = time.monotonic()
        start = self.begin(since)
        return self.log.between(start.cursor.offset, self.log.last) or []

    def _before_newest(self) -> Cursor:
        return self.log.cursor_at(self.log.last - 1) or self.log.head

    def stop(self) -> None:
        """Let the pump end."""
        self._pump.stop()
        self.hub.sockets.close()
