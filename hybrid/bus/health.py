"""Whether the shared log is in reach: the one answer to that, and who is told when it changes."""

import logging
import threading
from collections.abc import Callable
from typing import Literal

from hybrid.bus.diagnosis import diagnose
from hybrid.bus.store import GivenUp

logger = logging.getLogger("hybrid")


class Health:
    """Begins degraded, since nothing has been heard yet; nobody is told of that.

    `clock` is Unix milliseconds; `announce(state, since)` tells clients, and `on_lost` is called
    under `lock` in the step in which the state becomes degraded.
    """

    def __init__(
        self,
        lock: "threading.RLock",
        *,
        clock: Callable[[], int],
        announce: Callable[[str, int], None],
        on_lost: Callable[[BaseException], None],
    ) -> None:
        self.state: Literal["ok", "degraded"] = "degraded"
        self.since = clock()
        self.trouble = "not connected yet"
        self.headline = "Redis is out of reach"
        self.deaf = False
        self.degradations = 0
        self.known = threading.Event()
        """Set once it has been tried."""
        self._away_since = self.since
        self._lock = lock
        self._clock = clock
        self._announce = announce
        self._on_lost = on_lost

    def lost(self, error: BaseException) -> None:
        """A command failed."""
        if isinstance(error, GivenUp):
            return  # that it was lost is known, and maybe over by now
        diagnosis = diagnose(error)
        self.known.set()
        with self._lock:
            known = self.headline if self.state == "degraded" and self.degradations else None
            self.trouble, self.headline = str(diagnosis), diagnosis.what
            if known is None:
                self.state = "degraded"
                self.since = self._away_since = self._clock()
                self.degradations += 1
                self._announce("degraded", self.since)
                self._on_lost(error)
        if known is not None:
            if known != diagnosis.what:
                logger.warning("Redis is not back yet, and now: %s", diagnosis)
            return
        logger.warning(
            "%s. Until then events are kept in the outbox and reach the clients of this process"
            " alone",
            diagnosis,
        )

    def back(self) -> None:
        """What was kept is stored, and from now on emits are. Under the lock."""
        self.state = "ok"
        self.trouble = self.headline = ""
        self.since = self._clock()

    def tell(self, stored: int) -> None:
        """Say that it is back, unless it has been lost again; `stored` events had been kept."""
        with self._lock:
            if self.state != "ok" or not self.degradations:
                return
            self._announce("ok", self.since)
        away = (self.since - self._away_since) / 1000
        logger.warning("Redis is back after %.1f s; %d events stored", away, stored)
