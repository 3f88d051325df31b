"""One worker process's share of the system: its log, its bus, its hub.

Made on first use in the process that uses it, never at import: a server that forks after
loading the application would otherwise share locks and greenlets between processes.
"""

import os
import random
import socket
import time
from collections import Counter
from collections.abc import Sequence

from hybrid.audience import Audience
from hybrid.bus import Bus, Receipt
from hybrid.bus.memory import MemoryBus
from hybrid.config import Settings
from hybrid.events import ORIGIN, Cursor, Event, random_id
from hybrid.hub import Hub
from hybrid.log import Log
from hybrid.wire import to_json

PATIENCE = 1.0
"""Seconds that the first request of a process waits for the shared log."""
NOBODY = Audience()


def unix_ms() -> int:
    return int(time.time() * 1000)


class Instance:
    """See the module's docstring."""

    def __init__(self, settings: Settings) -> None:
        self.id = random_id()
        self.pid = os.getpid()
        self.host = socket.gethostname()
        self.settings = settings
        self.started_at = time.time()
        self.emitted: Counter[str] = Counter()
        self.problems: Counter[int] = Counter()
        self.polls = 0
        self.alone = True
        """False once it is known that other processes serve the same clients without a bus."""
        log = self._make_log(Cursor(random_id(), 0, ORIGIN))
        self.hub = Hub(
            log,
            heartbeat=settings.heartbeat_seconds,
            stall=settings.stall_seconds,
            max_connections=settings.max_connections,
            max_replay=settings.max_replay_events,
            clock=time.monotonic,
            wall=unix_ms,
            random=random.random,
            pause=lambda: time.sleep(0),
        )
        self.bus = self._make_bus(log)

    def _make_log(self, start: Cursor) -> Log:
        settings = self.settings
        return Log(
            start.epoch,
            max_events=settings.history_events,
            max_seconds=settings.history_seconds,
            start=start,
        )

    def _make_bus(self, log: Log) -> Bus:
        settings = self.settings
        if settings.url == "memory://":
            return MemoryBus(log, self.hub, clock=unix_ms)
        # Only now: who needs no Redis does not load its client.
        from hybrid.bus.redis import RedisBus
        from hybrid.bus.store import Store

        store = Store(
            settings.url,
            settings.namespace,
            max_events=settings.history_events,
            max_seconds=settings.history_seconds,
        )
        return RedisBus(
            store,
            self.hub,
            make_log=self._make_log,
            log=log,
            clock=unix_ms,
            outbox=settings.outbox_events,
            probe=settings.probe_seconds,
        )

    @property
    def log(self) -> Log:
        return self.bus.log

    def alerts(self) -> list[str]:
        """What somebody should look at, in words."""
        found = []
        if not self.alone:
            found.append("several processes, and no bus between them: set HYBRID_URL=redis://…")
        if self.bus.deaf:
            found.append("deaf: what is published does not arrive here")
        elif self.bus.state == "degraded":
            found.append(f"Redis is out of reach: {self.bus.trouble}")
        return found

    def start(self) -> None:
        """Begin to listen and to deliver; returns within about a second, whatever Redis does."""
        self.hub.start()
        self.bus.start(PATIENCE)

    def stop(self) -> None:
        """End what `start` began. For tests."""
        self.bus.stop()
        self.hub.stop()

    def publish(self, events: Sequence[Event]) -> list[Receipt]:
        """Store the events, all or none, and wake who may see them. Raises `OutboxFull`."""
        receipts = self.bus.publish(events)
        self.emitted.update(event.type for event in events)
        return receipts

    def disconnect(self, user: str) -> int:
        """End a user's streams, here at once and everywhere through the log; how many here."""
        now = unix_ms()
        told = self.hub.kick(user, now)
        order = to_json({"user": user})
        self.bus.publish([Event(random_id(), "hybrid.disconnect", order, now, NOBODY)])
        return told
