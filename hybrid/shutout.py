"""Whose streams were ended on purpose: up to which request, and why.

Who a request is was looked up before its stream opens. So an end is remembered for as long as a
request may take, and a stream that opens meanwhile is judged by it as well.
"""

import math
import threading
from collections.abc import Callable

from hybrid.events import ENDINGS, Event

MEMORY = 60.0
"""Seconds that an end is remembered: no request takes longer to open a stream."""
SKEW_MS = 5_000
"""How far the clocks of two hosts may be apart."""


class ShutOut:
    """See the module's docstring. `clock` is monotonic seconds, `wall` is Unix milliseconds."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], int]) -> None:
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        self._ended: dict[str | None, tuple[float, str]] = {}

    def when(self, unix_ms: int) -> float:
        """A time of the wall clock on the monotonic one: nobody sets that while streams live.

        A time to come is now: who opens a stream later is judged by what is true then.
        """
        return self._clock() - max(0, self._wall() - unix_ms) / 1000

    def note(self, user: str, before: int, reason: str) -> float:
        """A user's requests before a time (Unix ms) get no stream; that time, monotonic."""
        # A millisecond more, which the wall clock does not tell apart.
        moment = self.when(before) + 0.001
        old = self._clock() - MEMORY
        with self._lock:
            self._ended = {who: what for who, what in self._ended.items() if what[0] > old}
            if moment >= self._ended.get(user, (-math.inf, ""))[0]:
                self._ended[user] = (moment, reason)
        return moment

    def reason(self, user: str | None, asked_at: float) -> str | None:
        """Why who asked at a monotonic time gets no stream; None where nothing speaks against."""
        before, reason = self._ended.get(user, (-math.inf, ""))
        return reason if asked_at <= before else None

    def ordered(self, event: Event) -> tuple[str, int, str] | None:
        """The user, the time (Unix ms) and the reason, where an event asks for an end."""
        reason = ENDINGS.get(event.type)
        user = event.data.get("user") if isinstance(event.data, dict) else None
        if reason is None or not isinstance(user, str):
            return None  # who has no name is not the user named "None"
        now = self._wall()
        fresh = abs(now - event.at) <= SKEW_MS
        return user, now if fresh else event.at, reason
