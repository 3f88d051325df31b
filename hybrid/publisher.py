"""Sending events from a process without Flask: a task queue, a cron job, a shell."""

import os
import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import redis

from hybrid.audience import Audience
from hybrid.bus.store import Store
from hybrid.config import Settings
from hybrid.errors import ConfigError, NotStored
from hybrid.events import Event, make_event, random_id, wish
from hybrid.wire import to_json

BUDGET = 1.5
"""Seconds until an emit gives up."""


class Publisher:
    """Puts events into the shared log; imports neither Flask nor gevent.

    `url` and `namespace` are those of the application, by default from the same environment
    variables. Safe to share between threads and to inherit by a fork.

        Publisher("redis://localhost").emit("import.done", {"rows": 17}, users=["alice"])

    Raises `ConfigError` for `memory://`: that log lives in the server's own process, where
    nobody else can write.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str | None = None,
        budget: float = BUDGET,
        encode: Callable[[Any], str] = to_json,
    ) -> None:
        given = {"HYBRID_URL": url, "HYBRID_NAMESPACE": namespace}
        settings = Settings.load({key: value for key, value in given.items() if value}, os.environ)
        if settings.url == "memory://":
            raise ConfigError(
                "a Publisher writes to the log that processes share, and HYBRID_URL is memory://;"
                " set it to redis://… here and in the application"
            )
        self._settings = settings
        self._store = Store(settings.url, settings.namespace)
        self._budget = budget
        self._encode = encode

    def emit(
        self,
        type: str,
        data: Any = None,
        *,
        users: Collection[str] | None = None,
        roles: Collection[str] | None = None,
        topics: Collection[str] | None = None,
        text: str | None = None,
        id: str | None = None,
    ) -> str:
        """Store one event, as `Hybrid.emit` does; returns its id.

        With an `id` of your own (1 to 64 characters of `A-Z a-z 0-9 _ ~ -`) the call may be
        repeated, by a task that is run again for instance: the event is stored once.

        Raises `InvalidEvent`; and `NotStored` when Redis could not be reached within the budget.
        Then it may be stored or not: its id is in the exception, and emitting it again with that
        id is safe.
        """
        event = self._make(type, data, Audience.of(users, roles, topics), text, id)
        self._publish([event])
        return event.id

    def emit_many(self, events: Iterable[Mapping[str, Any]]) -> list[str]:
        """Store several events in one step, all or none; returns their ids.

        Each is what `emit` takes, as a mapping. Raises as `emit` does.
        """
        made = [self._make(*wish(fields), text=fields.get("text"), id=None) for fields in events]
        if made:
            self._publish(made)
        return [event.id for event in made]

    def close(self) -> None:
        """Drop the connections; the next emit makes new ones."""
        self._store.close()

    def _make(
        self, type: str, data: Any, audience: Audience, text: str | None, id: str | None
    ) -> Event:
        return make_event(
            type,
            data,
            audience,
            text=text,
            at=time.time_ns() // 1_000_000,
            max_bytes=self._settings.max_event_bytes,
            encode=self._encode,
            new_id=lambda: id or random_id(),
        )

    def _publish(self, events: list[Event]) -> None:
        end = time.monotonic() + self._budget
        delay = 0.05
        while True:
            try:
                self._store.publish(events, new_epoch=random_id())
                return
            except (redis.RedisError, OSError) as error:
                delay = min(1.0, delay * 2) * (0.5 + random.random() / 2)
                if time.monotonic() + delay > end:
                    raise NotStored(
                        f"Redis could not be reached ({error}); emit {events[0].id} again",
                        [event.id for event in events],
                    ) from error
                time.sleep(delay)
