"""The shared log in Redis: its keys, its three scripts, and how to reach it.

Every command here takes a bounded time: connect and read have timeouts of their own, and
nothing is retried below the callers, who know what a repetition means. redis-py's defaults
would wait for up to a minute, and repeat what may have been stored.

Ruled by docs/redis.md, which is also for programs that write to the log themselves.
"""

import json
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from hybrid.audience import Audience
from hybrid.errors import ConfigError, InvalidEvent
from hybrid.events import CONTROL, Cursor, Event, check_type
from hybrid.wire import to_json

TIMEOUT = 0.4
"""Seconds for connecting, and for each answer: an emit makes both and stays below a second."""
CONNECTIONS = 8
"""Of one process, for commands; the subscriber has its own."""
PAGE = 500
"""Entries per reading."""

LUA = Path(__file__).with_name("lua")


@dataclass(frozen=True, slots=True)
class Stored:
    """Where an event is in the log; `prev` is its predecessor's id, None for a repeat."""

    epoch: str
    offset: int
    prev: str | None


@dataclass(frozen=True, slots=True)
class Page:
    """What follows a position: `verdict` is `ok` where the log can prove the position.

    `entries` are (offset, predecessor's id, event), oldest first; `head` is the newest position,
    None where there is no log.
    """

    verdict: str
    head: Cursor | None
    entries: Sequence[tuple[int, str, Event]]


class Store:
    """The shared log of one namespace. Thread-safe and fork-safe.

    `max_events` and `max_seconds` bound it; without them it stays as the application has it.
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
        )
        self.client = connect(url, timeout=timeout)
        self._publish, self._read, self._probe = (
            self.client.register_script((LUA / f"{name}.lua").read_text())
            for name in ("publish", "read", "probe")
        )

    def publish(self, events: Sequence[Event], *, new_epoch: str) -> list[Stored]:
        """Store events, in order, in one step; those that the log has already stay as they are.

        `new_epoch` names the log should there be none.
        """
        arguments: list[Any] = [self.channel, new_epoch, *self._bounds]
        for event in events:
            arguments += [event.id, encode(event)]
        epoch, *places = self._publish(keys=self.keys, args=arguments)
        return [
            Stored(epoch, int(offset), prev or None)
            for offset, prev in zip(places[::2], places[1::2], strict=True)
        ]

    def found(self, epoch: str) -> None:
        """Begin a log with this epoch, unless there is one."""
        self._publish(keys=self.keys, args=[self.channel, epoch, *self._bounds])

    def read(self, position: Cursor | None) -> Page:
        """What follows `position`; None begins at the oldest entry."""
        after = ("", 0, "") if position is None else (position.epoch, position.offset, position.id)
        now = time.time_ns() // 1_000_000
        verdict, *rest = self._read(keys=self.keys[:2], args=[*after, PAGE])
        if not rest:
            return Page(verdict, None, ())
        epoch, offset, id, *fields = rest
        return Page(
            verdict,
            Cursor(epoch, int(offset), id),
            [
                (int(place), prev, decode(id, text, now))
                for place, prev, id, text in zip(*[iter(fields)] * 4, strict=True)
            ],
        )

    def probe(self, channel: str, message: str) -> Cursor | None:
        """Ring `channel` with `message`; the newest position, None where there is no log."""
        epoch, offset, id = self._probe(keys=self.keys[1:2], args=[channel, message])
        return None if epoch is None else Cursor(epoch, int(offset), id)

    def announce(self, message: str) -> None:
        """Say something to every instance, without a place in the log."""
        self.client.publish(self.channel, message)

    def subscribe(self, *channels: str) -> Any:
        """A subscription of its own connection, confirmed by its first messages."""
        pubsub: Any = self.client.pubsub()  # type: ignore[no-untyped-call]
        pubsub.subscribe(self.channel, *channels)
        return pubsub

    def close(self) -> None:
        """Drop all connections."""
        self.client.close()


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
    its place in the log cannot be left out.
    """
    try:
        fields = json.loads(text)
        type = fields["type"]
        if not (isinstance(type, str) and type.startswith(CONTROL)):
            check_type(type)
        is_text = "text" in fields
        body = fields["text"] if is_text else to_json(fields.get("data"))
        if not isinstance(body, str) or "\0" in id:
            raise InvalidEvent("text must be a string")
        body.encode()
        audience = Audience.of(fields.get("users"), fields.get("roles"), fields.get("topics"))
        return Event(id, type, body, int(fields.get("at", now)), audience, is_text)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError, InvalidEvent):
        return Event(id, "hybrid.invalid", "null", now, Audience.of(users=()))


# -- how to reach Redis


def connect(url: str, *, timeout: float = TIMEOUT) -> "redis.Redis":
    """A client for the URL whose every command ends within `timeout` seconds or fails.

    `redis://`, `rediss://`, `unix://` as redis-py has them;
    `redis+sentinel://[user:password@]host:port[,host:port…]/service[/db]`, also `rediss+`.
    Raises `ConfigError` for anything else.
    """
    parts = urlsplit(url)
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": 0,  # it sends a PING and never looks for the answer
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": True,
        "client_name": "flask-hybrid",
    }
    if parts.scheme != "unix":
        options["socket_keepalive"] = True
    try:
        if parts.scheme.endswith("+sentinel"):
            return _by_sentinel(url, options, timeout)
        pool = redis.BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=timeout, **options
        )
    except (ValueError, redis.RedisError) as error:
        raise ConfigError(f"the Redis URL cannot be used: {error}") from None
    return redis.Redis(connection_pool=pool)


def _by_sentinel(url: str, options: dict[str, Any], timeout: float) -> "redis.Redis":
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    addresses = []
    for host in hosts.split(","):
        name, _, port = host.rpartition(":")
        addresses.append((name or host, int(port) if name else 26379))
    service, _, db = parts.path.strip("/").partition("/")
    if not service:
        raise ConfigError("a Sentinel URL names the service: redis+sentinel://host:26379/mymaster")
    settings = dict(parse_qsl(parts.query))
    if parts.scheme.startswith("rediss"):
        options = options | {"ssl": True, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        addresses,
        sentinel_kwargs={
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "username": settings.get("sentinel_username"),
            "password": settings.get("sentinel_password"),
        },
    )
    client: redis.Redis = sentinel.master_for(  # type: ignore[no-untyped-call]
        service,
        db=int(db or 0),
        username=unquote(user) or None,
        password=unquote(password) or None,
        **options,
    )
    return client
