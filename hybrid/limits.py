"""How often a user or an address may do something, in Flask-Limiter's notation and storages.

The application's own `Limiter` counts, if there is one: its storage, its strategy, and off when
it is off. Otherwise counters in the bus's Redis, shared by all instances, or in memory where
there is no Redis. While a storage is away each instance counts for itself (`reach.py`). In the
bus's Redis many are counted in one call: a thousand clients that come back at once are a few calls.

A key is never empty, which Flask-Limiter would take as "no limit": who has no name is known by
the address, and what has no address shares one bucket. Each says what it is of, since a user may
be named like an address. Names are hashed, so that no text of a user's gets into a key.
"""

import base64
import hashlib
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage
from limits.strategies import RateLimiter

from hybrid.reach import Away, Patience, Reach

if TYPE_CHECKING:
    import redis

logger = logging.getLogger("hybrid")

COUNT = """
local answer = {}
for i, key in ipairs(KEYS) do
  local count = redis.call('INCR', key)
  if count == 1 then redis.call('EXPIRE', key, ARGV[i]) end
  answer[2 * i - 1] = count
  answer[2 * i] = redis.call('PTTL', key)
end
return answer
"""
"""Counts one at each key; how many there were in its window, and the milliseconds left of that."""
MAX_WINDOWS = 100_000
"""Counters in memory: an attacker with many addresses must not make them grow."""
SELDOM = 60.0
"""Seconds between two lines of a log on what clients can make happen as often as they like."""
LINES = 60
"""Lines of a log in a minute on who has reached a limit."""
HANDS = 8
"""Calls at once to the storage of an application's `Limiter`, which counts one in each."""


def of_user(user: str) -> str:
    """Who is counted, where that is a user; never the same as for an address."""
    return f"user:{user}"


def of_address(address: str) -> str:
    """Who is counted, where that is an address; never the same as for a user."""
    return f"address:{address}"


def digest(*parts: str) -> str:
    """16 characters for a list of texts; different for every list."""
    text = "".join(f"{len(part)}:{part}" for part in parts)
    whole = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return base64.urlsafe_b64encode(whole[:12]).decode()


class Windows:
    """Counters in memory, each for a fixed window; `clock` is seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[Hashable, tuple[int, float]] = {}

    def hit(self, key: Hashable, seconds: int) -> tuple[int, float]:
        """Count one; how many there were in this window, and the seconds that are left of it."""
        now = self._clock()
        with self._lock:
            count, until = self._windows.get(key, (0, 0.0))
            if until <= now:
                count, until = 0, now + seconds
                if len(self._windows) >= MAX_WINDOWS:
                    self._drop(now)
            self._windows[key] = (count + 1, until)
        return count + 1, until - now

    def _drop(self, now: float) -> None:
        self._windows = {key: window for key, window in self._windows.items() if window[1] > now}
        for key in list(self._windows)[: max(0, len(self._windows) - MAX_WINDOWS // 2)]:
            del self._windows[key]


class Seldom:
    """Something that is logged once a minute at most, however often it happens.

    `clock` is monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = -math.inf
        self._untold = 0

    def told(self) -> int | None:
        """It has happened again: how often it was not logged before, if it is to be logged now."""
        now = self._clock()
        if now < self._next:
            self._untold += 1
            return None
        untold, self._untold, self._next = self._untold, 0, now + SELDOM
        return untold


class Rates:
    """See the module's docstring.

    `limits` are the limits by name, None or empty for none; `client` is a Redis client that
    `reach` is for, and `prefix` what its keys begin with. `clock` is monotonic seconds: with a
    clock that is set back a window would not end.
    """

    def __init__(
        self,
        limits: Mapping[str, str | None],
        *,
        client: "redis.Redis | None" = None,
        reach: Reach | None = None,
        prefix: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.refused: Counter[str] = Counter()
        self._items: dict[str, list[tuple[RateLimitItem, int]]] = {
            name: [(item, item.get_expiry()) for item in parse_many(text)]
            for name, text in limits.items()
            if text
        }
        """With the seconds of its window."""
        self._clock = clock
        self._memory = Windows(clock)
        self._told: dict[str, float] = {}
        self._lines = Windows(clock)
        self._prefix = prefix
        self._reach = reach
        self._reaches: dict[int, Reach] = {}
        """Those of the storages of an application's `Limiter`."""
        if client is not None:
            self._script = client.register_script(COUNT)

    def stop(self) -> None:
        """End what waits for an application's storage."""
        for reach in self._reaches.values():
            reach.stop()

    def hit(
        self,
        name: str,
        who: str,
        *,
        strategy: RateLimiter | None = None,
        patience: Patience | None = None,
    ) -> int | None:
        """Count one; None if that is allowed, else the whole seconds until the next may be.

        `who` is what `of_user` or `of_address` gives. `strategy` is that of the application's
        `Limiter`; `patience` how long to wait for a storage before it is counted here.
        """
        for item, seconds in self._items.get(name, ()):
            if strategy is not None:
                left = self._hit_theirs(item, seconds, name, who, strategy, patience or Patience())
            elif self._reach is not None:
                left = self._hit_there(item, seconds, name, who, patience or Patience())
            else:
                left = self._hit_here(item, seconds, who)
            if left is not None:
                self._refuse(item, name, who, left)
                return left
        return None

    def hit_here(self, name: str, who: str) -> int | None:
        """As `hit`, but for this process alone: no storage is asked, nothing is waited for."""
        for item, seconds in self._items.get(name, ()):
            left = self._hit_here(item, seconds, who)
            if left is not None:
                self._refuse(item, name, who, left)
                return left
        return None

    def refused_for(self, name: str, who: str) -> int | None:
        """The seconds that are left of a refusal that `hit` gave here; None where there is none.

        Counts nothing and asks no storage.
        """
        left = self._told.get(digest(name, who), 0.0) - self._clock()
        return _whole(left) if left > 0 else None

    def _hit_here(self, item: RateLimitItem, seconds: int, who: str) -> int | None:
        # Nobody reads these keys: nothing is to be spelled, nor to be hidden.
        count, left = self._memory.hit((id(item), who), seconds)
        return None if count <= item.amount else _whole(left)

    def _hit_there(
        self, item: RateLimitItem, seconds: int, name: str, who: str, patience: Patience
    ) -> int | None:
        assert self._reach is not None
        key = f"{self._prefix}/{item.key_for('hybrid', name, digest(who))}"
        try:
            count, left = self._reach.ask(self._count_all, (key, seconds), patience)
        except Away:
            return self._hit_here(item, seconds, who)
        return None if count <= item.amount else _whole(left)

    def _count_all(self, hits: Sequence[tuple[str, int]]) -> Sequence[tuple[int, float]]:
        keys, seconds = zip(*hits, strict=True)
        answer = self._script(keys=keys, args=seconds)
        return [
            (count, max(0, left) / 1000)
            for count, left in zip(answer[::2], answer[1::2], strict=True)
        ]

    def _hit_theirs(
        self,
        item: RateLimitItem,
        seconds: int,
        name: str,
        who: str,
        strategy: RateLimiter,
        patience: Patience,
    ) -> int | None:
        keys = ("hybrid", name, digest(who))

        def there() -> int | None:
            if strategy.hit(item, *keys):
                return None
            left = strategy.get_window_stats(item, *keys).reset_time - time.time()
            return _whole(min(left, seconds))  # its clock may be another one

        if isinstance(strategy.storage, MemoryStorage):
            return there()
        reach = self._reaches.get(id(strategy))
        if reach is None:
            made = Reach(strategy.storage.check, hands=HANDS, cargo=1)
            reach = self._reaches.setdefault(id(strategy), made)  # which starts when it is asked
        try:
            return reach.ask(_each, there, patience)
        except Away:
            return self._hit_here(item, seconds, who)

    def _refuse(self, item: RateLimitItem, name: str, who: str, left: int) -> None:
        """Count it, and log the first of a burst, a few in a minute at most: an attack, from how
        many addresses ever, must not fill the disk as well."""
        self.refused[name] += 1
        now = self._clock()
        key = digest(name, who)
        if self._told.get(key, 0.0) > now:
            return
        if len(self._told) >= MAX_WINDOWS:
            self._told.clear()
        self._told[key] = now + left
        line, _ = self._lines.hit("", 60)
        if line <= LINES:
            last = "; more of this minute are only counted" if line == LINES else ""
            logger.warning(
                "limit %s (%s) reached by %.80a; refused for %d s%s", name, item, who, left, last
            )


def _each(calls: Sequence[Callable[[], int | None]]) -> Sequence[int | None]:
    return [call() for call in calls]


def _whole(seconds: float) -> int:
    return max(1, math.ceil(seconds))
