"""Sending events from a process without Flask: a task queue, a cron job, a shell."""

import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hybrid.audience import Audience, Names
from hybrid.bus.courier import Courier, Errand
from hybrid.bus.diagnosis import diagnose
from hybrid.bus.outbox import load
from hybrid.bus.store import FAILURE, Store, Stored
from hybrid.config import Settings
from hybrid.errors import ConfigError, NotStored
from hybrid.events import Event, check_count, check_id, make_event, random_id, wish
from hybrid.wire import on_one_line, to_json

BUDGET = 1.5
"""Seconds until an emit gives up."""
JOIN = 1.0
"""Seconds that `close` waits for a call that is under way."""
LIFETIME = 30.0
"""Seconds that a connection is used. After a failover behind one address the old primary may go on
to take events which nobody hears of; nothing else tells who only writes."""


class Publisher:
    """Puts events into the shared log; imports neither Flask nor gevent.

    `url` and `namespace` are those of the application, by default from the same environment
    variables. Safe to share between threads, whose events travel together, and to inherit by a
    fork. An emit returns, or raises, within `budget` seconds.

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
        max_event_bytes: int | None = None,
        encode: Callable[[Any], str] = to_json,
    ) -> None:
        given = {"HYBRID_URL": url, "HYBRID_NAMESPACE": namespace}
        settings = Settings.load({key: value for key, value in given.items() if value}, os.environ)
        if settings.url == "memory://":
            raise ConfigError(
                "a Publisher writes to the log that processes share, and HYBRID_URL is memory://;"
                " set it to redis://… here and in the application"
            )
        self._max_bytes = max_event_bytes or settings.max_event_bytes
        self._store = Store(settings.url, settings.namespace)
        self._made_at = -math.inf
        """When the connections that are in use were begun with."""
        self._budget = budget
        # An encoder of one's own may break lines, which would end an event's frame.
        self._encode = encode if encode is to_json else lambda data: on_one_line(encode(data))
        self._courier: Courier[Sequence[Event], list[Stored]] | None = None
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def emit(
        self,
        type: str,
        data: Any = None,
        *,
        users: Names | None = None,
        roles: Names | None = None,
        topics: Names | None = None,
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
        """Store several events, at most 1,000, in one step, all or none; returns their ids.

        Each is what `emit` takes, as a mapping. Raises as `emit` does.
        """
        made = [self._make(*wish(fields), text=fields.get("text"), id=None) for fields in events]
        check_count(made)
        if made:
            self._publish(made)
        return [event.id for event in made]

    def close(self) -> None:
        """Drop the connections; the next emit makes new ones."""
        courier, self._courier = self._courier, None
        if courier is not None and self._pid == os.getpid():
            courier.stop(JOIN)
        self._store.close()

    def _make(
        self, type: str, data: Any, audience: Audience, text: str | None, id: str | None
    ) -> Event:
        if id is not None:
            check_id(id)
        return make_event(
            type,
            data,
            audience,
            text=text,
            at=time.time_ns() // 1_000_000,
            max_bytes=self._max_bytes,
            encode=self._encode,
            new_id=random_id if id is None else lambda: id,
        )

    def _publish(self, events: list[Event]) -> None:
        end = time.monotonic() + self._budget
        delay = 0.05
        while True:
            courier = self._here()
            errand: Errand[Sequence[Event], list[Stored]] = courier.ask(events)
            if not errand.wait(end - time.monotonic()):
                courier.withdraw(errand)
                error: Exception = TimeoutError(f"no answer within {self._budget:g} s")
            elif errand.error is None:
                return
            else:
                error = errand.error
                if not isinstance(error, FAILURE):
                    raise error
            delay = min(1.0, delay * 2) * (0.5 + random.random() / 2)
            if time.monotonic() + delay >= end:
                raise NotStored(
                    f"{diagnose(error)}; emit {events[0].id} again",
                    [event.id for event in events],
                ) from error
            time.sleep(delay)

    def _here(self) -> Courier[Sequence[Event], list[Stored]]:
        """This process's courier; a fork does not inherit threads."""
        if self._pid != os.getpid():
            self._courier, self._pid, self._lock = None, os.getpid(), threading.Lock()
        with self._lock:
            if self._courier is None:
                self._courier = Courier(
                    self._store_lists, load=load, lock=threading.RLock(), name="hybrid-publisher"
                )
                self._courier.start()
            return self._courier

    def _store_lists(self, lists: Sequence[Sequence[Event]]) -> list[list[Stored]]:
        events = [event for each in lists for event in each]
        now = time.monotonic()
        if now - self._made_at > LIFETIME:
            self._made_at = now
            self._store.renew()
        try:
            places = iter(self._store.publish(events, new_epoch=random_id()))
        except FAILURE:
            self._made_at = -math.inf  # the next try goes to where the address leads by then
            raise
        return [[next(places) for _ in each] for each in lists]
