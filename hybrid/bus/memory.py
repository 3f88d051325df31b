"""The bus of one process: its log is the only one there is."""

import threading
from collections.abc import Callable
from typing import Literal

from hybrid.bus import Receipt
from hybrid.events import Event
from hybrid.log import Log


class MemoryBus:
    """Appends to the log under a lock and rings the doorbell.

    `clock` gives Unix milliseconds. Nothing here can fail or block, so the state is always ok.
    """

    state: Literal["ok", "degraded"] = "ok"

    def __init__(self, log: Log, *, ring: Callable[[], None], clock: Callable[[], int]) -> None:
        self.log = log
        self._ring = ring
        self._clock = clock
        self._lock = threading.Lock()

    def publish(self, event: Event) -> Receipt:
        with self._lock:
            entry = self.log.append(event, self._clock())
        self._ring()
        return Receipt(event.id, "log", entry.event.cursor)
