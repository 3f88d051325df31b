"""One worker process's share of the system: its log, its bus, its hub.

Made on first use in the process that uses it, never at import: a server that forks after
loading the application would otherwise share locks and greenlets between processes.
"""

import os
import random
import socket
import time
from collections import Counter

from hybrid.bus import Bus, Receipt
from hybrid.bus.memory import MemoryBus
from hybrid.config import Settings
from hybrid.events import Event, random_id
from hybrid.hub import Hub
from hybrid.log import Log


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
        log = Log(
            random_id(),
            max_events=settings.history_events,
            max_seconds=settings.history_seconds,
        )
        self.hub = Hub(
            log,
            heartbeat=settings.heartbeat_seconds,
            stall=settings.stall_seconds,
            max_connections=settings.max_connections,
            clock=time.monotonic,
            wall=unix_ms,
            random=random.random,
            pause=lambda: time.sleep(0),
        )
        self.bus: Bus = MemoryBus(log, ring=self.hub.ring, clock=unix_ms)

    @property
    def log(self) -> Log:
        return self.bus.log

    def publish(self, event: Event) -> Receipt:
        """Store the event and wake who may see it."""
        receipt = self.bus.publish(event)
        self.hub.start()
        self.emitted[event.type] += 1
        return receipt
