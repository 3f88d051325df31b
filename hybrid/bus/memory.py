"""The bus of one process: its log is the only one there is."""

import threading
from collections.abc import Callable, Sequence
from typing import Literal

from hybrid.bus import Local, Receipt
from hybrid.events import CONTROL, Event
from hybrid.log import Log


class MemoryBus:
    """Appends to the log under a lock and rings the doorbell.

    `clock` gives Unix milliseconds. Nothing here can fail or block, so the state is always ok.
    """

    state: Literal["ok", "degraded"] = "ok"
    trouble = headline = ""
    deaf = False
    waiting = 0

    def __init__(self, log: Log, local: Local, *, clock: Callable[[], int]) -> None:
        self.log = log
        self._local = local
        self._clock = clock
        self._lock = threading.Lock()

    def start(self, patience: float) -> None:
        """Nothing is to be started."""

    def stop(self) -> None:
        """Nothing is to be stopped."""

    def refresh(self) -> bool:
        """There is no other log to ask."""
        return True

    def flush(self, timeout: float) -> int:
        """Nothing ever waits."""
        return 0

    def held(self, id: str) -> Event | None:
        cursor = self.log.find(id)
        return self.log.event_at(cursor) if cursor else None

    def publish(self, events: Sequence[Event], *, replicas: int = 0) -> list[Receipt]:
        receipts = []
        for event in events:
            with self._lock:
                cursor = self.log.find(event.id)
                if cursor is None:
                    cursor = self.log.append(event, self._clock()).event.cursor
            receipts.append(Receipt(event.id, "log", cursor, 0 if replicas else None))
            if event.type.startswith(CONTROL):
                self._local.control(event)
        self._local.ring()
        return receipts
