"""The shared log in Redis: its keys and its three scripts.

Ruled by docs/redis.md, which is also for programs that write to the log themselves.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from hybrid.audience import Audience
from hybrid.bus.connect import TIMEOUT, connect, disconnect, renew
from hybrid.errors import InvalidEvent
from hybrid.events import (
    ENDINGS,
    INVALID,
    MAX_OFFSET,
    Cursor,
    Event,
    chain,
    check_id,
    check_type,
    is_id,
)
from hybrid.wire import to_json

FAILURE = (redis.RedisError, OSError)
"""What says that Redis is out of reach."""
READERS = 4
"""Connections for what reads; one alone stores, so that calls follow each other."""
PAGE = 500
"""Entries per reading."""
PAGE_BYTES = 1 << 19
"""Bytes per reading, for lines that are thin and events that are large."""
AGAIN = 10_000
"""Calls in which the ids of a log are read again, at most."""
REPLICA_MS = 250
"""Milliseconds that replicas have to confirm; less than `TIMEOUT`, in which the answer comes."""

LUA = Path(__file__).with_name("lua")
NOBODY = Audience()


class GivenUp(redis.ConnectionError):
    """An answer that came over a connection which had been given up meanwhile.

    It may be that of a server that is no longer the one that the address leads to. And it says
    nothing about the connections that there are now.
    """

    def __init__(self) -> None:
        super().__init__("the connection was given up while the answer was on its way")


@dataclass(frozen=True, slots=True)
class Stored:
    """Where an event is in the log; `prev` is its predecessor's mark, None for a repeat."""

    cursor: Cursor
    prev: str | None


def following(epoch: str, offset: int, prev: str, id: str) -> Stored:
    """The place of the event with this id that follows the one with the mark `prev`."""
    return Stored(Cursor(epoch, offset, chain(prev, id)), prev)


def before(stored: Stored) -> Cursor:
    """The position of the predecessor."""
    return Cursor(stored.cursor.epoch, stored.cursor.offset - 1, stored.prev or "")


@dataclass(frozen=True, slots=True)
class Page:
    """What follows a position: `verdict` is `ok` where the log can prove the position.

    `entries` are events with their places, oldest first; `head` is the newest position,
    None where there is no log.
    """

    verdict: str
    head: Cursor | None
    entries: Sequence[tuple[Stored, Event]]


class Store:
    """The shared log of one namespace. Thread-safe and fork-safe.

    `max_events`, `max_seconds` and `max_bytes` bound it; without them it stays as the application
    has it.
    All methods raise `redis.RedisError` or `OSError` when Redis is out of reach, within about
    twice `timeout` seconds.
    """

    def __init__(
        self,
        url: str,
        namespace: str,
        *,
        max_events: int | None = None,
        max_seconds: float | None = None,
        max_bytes: int | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self.url = url
        self.namespace = namespace
        # One hash tag, hence one slot of a cluster: the scripts see all keys together.
        base = f"{{{namespace}}}"
        self.keys = (f"{base}:log", f"{base}:meta", f"{base}:ids")
        self.channel = f"{base}:events"
        self._bounds = (
            "" if max_events is None else max_events,
            "" if max_seconds is None else int(max_seconds * 1000),
            "" if max_bytes is None else max_bytes,
        )
        self._mark = f"{base}:ack"
        self._age = 0
        self.client = connect(url, timeout=timeout, connections=READERS)
        # What rings the bell goes the way of what stores: so that way is tried and kept warm.
        self._storing = connect(url, timeout=timeout, connections=1)
        self._publish = self._storing.register_script(own_publish())
        self._read = self.client.register_script((LUA / "read.lua").read_text())
        self._probe = self._storing.register_script((LUA / "probe.lua").read_text())

    def publish(self, events: Sequence[Event], *, new_epoch: str) -> list[Stored]:
        """Store events, in order, in one step; those that the log has already stay as they are.

        `new_epoch` names the log should there be none.
        """
        epoch, *places = self._append(
            new_epoch, *(text for event in events for text in (event.id, encode(event)))
        )
        return [
            Stored(Cursor(epoch, int(offset), mark), prev or None)
            for offset, mark, prev in zip(*[iter(places)] * 3, strict=True)
        ]

    def copies(self, wanted: int) -> int:
        """How many replicas have what was stored before; waits for `wanted`, or a moment."""
        with self.client.pipeline(transaction=False) as pipe:
            # WAIT speaks of what its own connection has written, and of all that came before.
            pipe.set(self._mark, "", px=1000)
            pipe.wait(wanted, REPLICA_MS)
            _, copies = pipe.execute()
        return int(copies)

    def found(self, epoch: str) -> None:
        """Begin a log with this epoch, unless there is one."""
        self._append(epoch)

    def _append(self, new_epoch: str, *events: str) -> Sequence[Any]:
        arguments = [self.channel, new_epoch, *self._bounds, *events]
        for _ in range(AGAIN):
            age = self._age
            answer: Sequence[Any] = self._publish(keys=self.keys, args=arguments)
            self._require(age)
            if answer[0]:
                return answer
        raise redis.RedisError("the ids of the log are lost as soon as they are read")

    def read(self, position: Cursor | None) -> Page:
        """What follows `position`; None begins at the oldest entry.

        A position without an epoch is not judged: its offset alone says where to begin.

        An entry whose ids no cursor could carry was not written by the script. It is treated as
        one that was taken out of the log: the page ends before it, and what begins after it.
        """
        after = ("", 0, "")
        if position is not None:
            after = (position.epoch, position.offset, position.mark)
        now = time.time_ns() // 1_000_000
        age = self._age
        verdict, *rest = self._read(keys=self.keys[:2], args=[*after, PAGE, PAGE_BYTES])
        self._require(age)
        if not rest:
            return Page(verdict, None, ())
        epoch, offset, mark, *fields = rest
        head = Cursor.parse(f"{epoch}.{offset}.{mark}")
        if head is None:
            return Page("empty", None, ())  # the next one who stores begins a log
        entries: list[tuple[Stored, Event]] = []
        for place, prev, id, text in zip(*[iter(fields)] * 4, strict=True):
            stored = following(epoch, int(place), prev, id)
            if is_id(id) and Cursor.parse(str(before(stored))):
                entries.append((stored, decode(id, text, now)))
            elif entries:
                break
            elif after[0]:
                return Page("expired", head, ())
        return Page(verdict, head, entries)

    def probe(self, channel: str, message: str) -> Cursor | None:
        """Ring `channel` with `message`; the newest position, None where there is no log."""
        epoch, offset, mark = self._probe(keys=self.keys[1:2], args=[channel, message])
        return Cursor.parse(f"{epoch}.{offset}.{mark}")

    def announce(self, message: str) -> None:
        """Say something to every instance, without a place in the log."""
        self.client.publish(self.channel, message)

    def subscribe(self, *channels: str) -> Any:
        """A subscription of its own connection, confirmed by its first messages."""
        pubsub: Any = self.client.pubsub()  # type: ignore[no-untyped-call]
        try:
            pubsub.subscribe(self.channel, *channels)
        except BaseException:
            pubsub.close()
            raise
        return pubsub

    def renew(self) -> None:
        """Give all connections up: what is asked from now on is asked where the address leads now.

        A call that is under way raises `GivenUp`, whatever its answer is. A subscription stays
        where it is, until it is made anew.
        """
        self._age += 1
        for client in (self.client, self._storing):
            renew(client)

    def _require(self, age: int) -> None:
        if age != self._age:
            raise GivenUp

    def close(self) -> None:
        """Drop all connections."""
        for client in (self.client, self._storing):
            disconnect(client)


def own_publish() -> str:
    """The script of this package's own processes.

    It is the documented one without the check of types: those have been checked, and some are
    control types.
    """
    script = (LUA / "publish.lua").read_text()
    own = script.replace("local OWN = false", "local OWN = true", 1)
    assert own != script
    return own


# -- events as the log keeps them


def encode(event: Event) -> str:
    """The event as JSON, without its id, which has a field of its own."""
    audience = event.audience
    body = to_json(event.body) if event.is_text else event.body
    rest: dict[str, Any] = {"at": event.at}
    if not audience.everyone:
        rest["users"] = sorted(audience.users)
        rest["roles"] = sorted(audience.roles)
        rest["topics"] = sorted(audience.topics)
    kind = "text" if event.is_text else "data"
    return f'{{"type":{to_json(event.type)},"{kind}":{body},{to_json(rest)[1:]}'


def decode(id: str, text: str, now: int) -> Event:
    """The event that is stored under an id; one without a time is taken as of `now` (Unix ms).

    Other programs write to the log too: what is no event becomes one that nobody sees, since
    its place in the log cannot be left out. So does a type below `hybrid.` that no log holds, and
    one that logs hold is for the instances and never for a client, whomever it is addressed to.
    """
    try:
        check_id(id)
        fields = json.loads(text)
        type = fields["type"]
        is_control = isinstance(type, str) and type in ENDINGS
        if not is_control:
            check_type(type)
        is_text = "text" in fields
        body = fields["text"] if is_text else to_json(fields.get("data"))
        if not isinstance(body, str):
            raise InvalidEvent("text must be a string")
        body.encode()
        audience = NOBODY
        if not is_control:
            audience = Audience.of(fields.get("users"), fields.get("roles"), fields.get("topics"))
        return Event(id, type, body, _time(int(fields.get("at", now)), now), audience, is_text)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError, InvalidEvent):
        return Event(id, INVALID, "null", now, NOBODY)


def _time(at: int, now: int) -> int:
    """Unix milliseconds that every client can count; `now` in place of what is out of range."""
    return at if 0 <= at <= MAX_OFFSET else now
