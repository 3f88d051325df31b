"""The records of all instances of a namespace, in Redis. docs/redis.md has the keys."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import redis

from hybrid.bus import Bus
from hybrid.bus.connect import connect, disconnect, renew
from hybrid.bus.diagnosis import diagnose
from hybrid.bus.redis import RedisBus
from hybrid.monitor.history import RINGS, Point
from hybrid.monitor.records import Away, Beat, Seen
from hybrid.wire import to_json

KEPT_SECONDS = 600
"""How long a dead instance is shown as gone."""
KEEPER_SECONDS = 15
DAY = 86_400 + 3600
ANSWERS_SECONDS = 10
LUA = Path(__file__).with_name("lua")

P = ParamSpec("P")
T = TypeVar("T")


def _or_away(method: Callable[P, T]) -> Callable[P, T]:
    @wraps(method)
    def wrapped(*args: P.args, **named: P.kwargs) -> T:
        try:
            return method(*args, **named)
        except (redis.RedisError, OSError) as error:
            found = diagnose(error)
            records = args[0]
            if isinstance(records, RedisRecords) and (found.elsewhere or not found.answers):
                renew(records._client)  # it may lead to a server that is no longer the one
            raise Away(str(found)) from error

    return wrapped


class RedisRecords:
    """Has connections of its own, so that it never takes one that an emit waits for."""

    shared = True

    def __init__(self, url: str, namespace: str, id: str) -> None:
        base = f"{{{namespace}}}"
        self._id = id
        self._base = base
        self._prefix = f"{base}:instance:"
        self._instances, self._keeper, self._watched, self._state = (
            f"{base}:{name}" for name in ("instances", "keeper", "watched", "alerts")
        )
        self._rings = {step: f"{base}:history:{step}" for step in RINGS}
        self._client = connect(url)
        self._beat, self._keep = (
            self._client.register_script((LUA / f"{name}.lua").read_text())
            for name in ("beat", "keep")
        )

    @_or_away
    def beat(self, record: str, *, watched: bool) -> Beat:
        now, keeper, seen = self._beat(
            keys=[self._prefix + self._id, self._instances, self._keeper, self._watched],
            args=[self._id, record, KEPT_SECONDS, "1" if watched else "", KEEPER_SECONDS],
        )
        return Beat(int(now), bool(keeper), bool(seen))

    @_or_away
    def read(self) -> list[Seen]:
        with self._client.pipeline(transaction=False) as asking:
            asking.time()
            asking.zrange(self._instances, 0, -1, withscores=True)
            (seconds, micros), known = asking.execute()
        if not known:
            return []
        now = seconds * 1000 + micros // 1000
        texts: Any = self._client.mget([self._prefix + id for id, _ in known])
        return [
            Seen(json.loads(text), max(0, now - int(written)))
            for (_, written), text in zip(known, texts, strict=True)
            if text
        ]

    @_or_away
    def keep(self, points: Sequence[tuple[int, Point]], state: dict[str, Any]) -> bool:
        steps = list(RINGS)
        arguments: list[Any] = [self._id, to_json(state), DAY]
        for step, point in points:
            arguments += [steps.index(step) + 1, RINGS[step], point.pack()]
        keys = [self._keeper, self._state, *self._rings.values()]
        return bool(self._keep(keys=keys, args=arguments))

    @_or_away
    def history(self, step: int, newest: int = 0) -> list[Point]:
        texts: Any = self._client.lrange(self._rings[step], -newest, -1)
        return [point for text in texts if (point := Point.unpack(text)) is not None]

    @_or_away
    def state(self) -> dict[str, Any]:
        stored: Any = self._client.get(self._state)
        found: dict[str, Any] = json.loads(stored) if stored else {}
        return found

    @_or_away
    def leave(self) -> None:
        with self._client.pipeline(transaction=False) as asking:
            asking.delete(self._prefix + self._id)
            asking.zrem(self._instances, self._id)
            asking.execute()

    def listen(self, bus: Bus, hear: Callable[[str], object]) -> None:
        # The subscription is the bus' own; another one would be another connection a process.
        if isinstance(bus, RedisBus):
            bus.on_aside = hear
            bus.on_renew = lambda: renew(self._client)

    @_or_away
    def ask(self, question: str) -> None:
        self._client.publish(f"{self._base}:events", f"a {question}")

    @_or_away
    def answer(self, place: str, text: str) -> None:
        with self._client.pipeline(transaction=False) as asking:
            asking.hset(f"{self._base}:answers:{place}", self._id, text)
            asking.expire(f"{self._base}:answers:{place}", ANSWERS_SECONDS)
            asking.execute()

    @_or_away
    def answers(self, place: str) -> Mapping[str, str]:
        found: Any = self._client.hgetall(f"{self._base}:answers:{place}")
        return dict(found)

    def close(self) -> None:
        """Drop the connections."""
        disconnect(self._client)
