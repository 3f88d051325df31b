"""How many streams a user or an address holds at once, over all instances.

Each instance counts what it holds itself and writes that, as absolute numbers, to a hash of its
own in Redis: one call for a stream that opens, which also sums what the others hold. Streams that
open while such a call is under way share the next one. What closes is written in batches. The hash
lives a few seconds longer than it is renewed, so a
worker that is killed soon holds nothing, and the cost at rest is one command per renewal, however
many clients there are. What Redis loses is written again from the counts here.

One courier makes all these calls (`reach.py`), so that no number overwrites a newer one. While
Redis is away, each instance holds its own clients to the bounds.
"""

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid.errors import TooManyOfOne
from hybrid.limits import digest
from hybrid.reach import JOIN, Away, Patience, Reach

if TYPE_CHECKING:
    import redis

LEASE = 9.0
"""Seconds that a dead instance's places stay taken; renewed three times as often."""
BATCH = 500
TELLING = 2.0
"""Seconds until what tells the others gives up; a request waits for none of that."""
Bounds = list[tuple[str, int, str]]
"""What one stream counts for: field, bound, kind."""


class Wish:
    """A place that is asked for. `reached` is the place of the bound that is in the way, 0 for
    none, None as long as nobody knows; `forgone`: who asked has gone on without an answer."""

    __slots__ = ("bounds", "forgone", "reached")

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.reached: int | None = None
        self.forgone = False


class Slots:
    """See the module's docstring.

    `per_user` and `per_address` bound the streams of one, None for no bound; `client` is a Redis
    client that `reach` is for, `prefix` what its keys begin with and `me` this instance's id.
    """

    def __init__(
        self,
        *,
        per_user: int | None,
        per_address: int | None,
        client: "redis.Redis | None" = None,
        reach: Reach | None = None,
        prefix: str = "",
        me: str = "",
        lease: float = LEASE,
    ) -> None:
        self.refused = 0
        self.held: dict[str, int] = {}
        """Streams by user and by address, as far as there is a bound; digests for names where
        others read them."""
        self._bounds = {"user": per_user, "address": per_address}
        self._client = client
        self._reach = reach
        self._lease = lease
        self._me = me
        self._living = f"{prefix}:instances"
        self._prefix = f"{prefix}:held:"
        self._dirty: set[str] = set()
        self._counting = threading.Lock()
        """Guards `held`, `_dirty` and the wishes; never held over a call to Redis."""
        self._wake = threading.Event()
        self._running = False
        self._thread: threading.Thread | None = None
        if client is not None and reach is not None:
            self._script = client.register_script(Path(__file__).with_suffix(".lua").read_text())
            reach.on_back = self._write_all

    def take(self, user: str | None, address: str, patience: Patience | None = None) -> None:
        """Hold one more for them, or raise `TooManyOfOne`.

        `patience` is how long to wait for Redis before the place is one of this instance alone.
        """
        bounds = self._of(user, address)
        if self._reach is None:
            with self._counting:
                self._hold(bounds)
            return
        for field, bound, kind in bounds:
            if self.held.get(field, 0) >= bound:
                self._refuse(field, bound, kind)  # whatever the others hold
        if not bounds:
            return
        wish = Wish(bounds)
        try:
            self._reach.ask(self._take_all, wish, patience or Patience())
        except Away:
            with self._counting:
                if wish.reached is None:
                    wish.forgone = True
                    self._hold(bounds)
                    self._dirty.update(field for field, _, _ in bounds)
                    return
        except BaseException:
            # A request that is ended here holds nothing, whatever becomes of its wish.
            with self._counting:
                wish.forgone = True
                taken = wish.reached == 0
            if taken:
                self.give_back(user, address)
            raise
        if wish.reached:
            self._refuse(*bounds[wish.reached - 1])

    def _hold(self, bounds: Bounds) -> None:
        for field, bound, kind in bounds:
            if self.held.get(field, 0) >= bound:
                self._refuse(field, bound, kind)
        for field, _, _ in bounds:
            self.held[field] = self.held.get(field, 0) + 1

    def _take_all(self, wishes: Sequence[Wish]) -> Sequence[None]:
        """Settle each in turn, in one call."""
        with self._counting:
            fields = dict.fromkeys(field for wish in wishes for field, _, _ in wish.bounds)
            own = {field: self.held.get(field, 0) for field in fields}
        place = {field: number for number, field in enumerate(own, 1)}
        arguments: list[str | int] = [len(own)]
        for field, count in own.items():
            arguments += [field, count]
        for wish in wishes:
            arguments.append(len(wish.bounds))
            for field, bound, _ in wish.bounds:
                arguments += [place[field], bound]
        reached, _ = self._call(arguments)
        with self._counting:
            for wish, no in zip(wishes, reached, strict=True):
                wish.reached = no
                for field, _, _ in () if no else wish.bounds:
                    if wish.forgone:
                        self._dirty.add(field)  # Redis counts a place that nobody took
                    else:
                        self.held[field] = self.held.get(field, 0) + 1
        return [None] * len(wishes)

    def give_back(self, user: str | None, address: str) -> None:
        """Hold one less. Never waits."""
        with self._counting:
            for field, _, _ in self._of(user, address):
                self.held[field] -= 1
                if not self.held[field]:
                    del self.held[field]
                self._dirty.add(field)
        if self._client is not None:
            self._wake.set()

    def _of(self, user: str | None, address: str) -> Bounds:
        return [
            (f"{kind}:{name}" if self._client is None else digest(kind, name), bound, kind)
            for kind, name in (("user", user), ("address", address))
            if name is not None and (bound := self._bounds[kind]) is not None
        ]

    def _refuse(self, _field: str, bound: int, kind: str) -> None:
        self.refused += 1
        raise TooManyOfOne(f"at most {bound} streams at once per {kind}")

    # -- what the others are told

    def start(self) -> None:
        """Begin to renew, in a thread of its own; without Redis there is nothing to do."""
        if self._reach is not None:
            self._running = True
            self._thread = threading.Thread(target=self._run, name="hybrid-slots", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Let go of everything that this instance holds; waits for that, a second at most."""
        self._running = False
        self._wake.set()
        if self._thread is not None:
            self._thread.join(JOIN)

    def _run(self) -> None:
        while self._running:
            closed = self._wake.wait(self._lease / 3)
            self._wake.clear()
            if self._running:
                self._have(self._flush if closed else self._renew)
        self._have(self._leave)

    def _have(self, done: Callable[[], object]) -> None:
        """Let the courier do something, if Redis is there."""
        assert self._reach is not None
        with contextlib.suppress(Away):
            self._reach.ask(_each, done, Patience(TELLING))

    def _call(self, arguments: list[str | int]) -> tuple[list[int], int]:
        lease_ms = int(self._lease * 1000)
        reached, exists = self._script(
            keys=[self._living], args=[self._me, lease_ms, self._prefix, *arguments]
        )
        return reached, exists

    def _renew(self) -> None:
        exists = self._call([0])[1]
        if not exists and self.held:
            self._write_all()  # Redis has lost it
        else:
            self._flush()

    def _write_all(self) -> None:
        assert self._client is not None
        with self._counting:
            self._dirty.update(self.held)
        self._client.delete(self._prefix + self._me)
        self._flush()
        self._call([0])

    def _flush(self) -> None:
        """Write what has changed; what could not be written stays to be written."""
        while True:
            with self._counting:
                fields = [field for field, _ in zip(self._dirty, range(BATCH), strict=False)]
                now = {field: self.held.get(field, 0) for field in fields}
                self._dirty.difference_update(fields)
            if not fields:
                return
            key = self._prefix + self._me
            try:
                assert self._client is not None
                with self._client.pipeline(transaction=False) as pipeline:
                    for field, count in now.items():
                        if count:
                            pipeline.hset(key, field, str(count))
                    if gone := [field for field, count in now.items() if not count]:
                        pipeline.hdel(key, *gone)
                    pipeline.pexpire(key, int(self._lease * 1000))
                    pipeline.execute()
            except BaseException:
                with self._counting:
                    self._dirty.update(fields)
                raise

    def _leave(self) -> None:
        assert self._client is not None
        self._client.zrem(self._living, self._me)
        self._client.delete(self._prefix + self._me)


def _each(todo: Sequence[Callable[[], object]]) -> Sequence[object]:
    return [do() for do in todo]
