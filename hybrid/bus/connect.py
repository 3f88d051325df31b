"""How to reach Redis, in a bounded time.

Connect and read have timeouts of their own, and nothing is retried below the callers, who know
what a repetition means. redis-py's defaults would wait for up to a minute, and repeat what may
have been stored.
"""

import contextlib
import queue
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlencode

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from hybrid.errors import ConfigError

TIMEOUT = 0.4
"""Seconds for connecting, and for each answer. A new connection asks up to seven times; and a name
is looked up without any bound. So nobody who must not wait makes a call of their own."""
CONNECTIONS = 32

# A mixin of classes that have no types of their own.
_Pool: Any = redis.ConnectionPool if TYPE_CHECKING else object


class _Renewable(_Pool):  # type: ignore[misc]
    """A pool whose connections can be given up together, while others use them.

    Nobody closes a connection under somebody else's call: one that is idle is closed at once, one
    that is in use, or is being made, when it is put back.
    """

    age = 0

    def renew(self) -> None:
        """No command that begins from now on uses a connection that was made before."""
        self.age += 1
        self._drop_idle()

    def get_connection(self, *arguments: Any, **options: Any) -> Any:
        age = self.age
        connection = super().get_connection(*arguments, **options)
        connection.hybrid_age = age
        return connection

    def release(self, connection: Any) -> None:
        if getattr(connection, "hybrid_age", self.age) != self.age:
            connection.disconnect()
        super().release(connection)


class _WaitingPool(_Renewable, redis.BlockingConnectionPool):
    """Who comes when all connections are in use waits for one."""

    def _drop_idle(self) -> None:
        # Its own `disconnect` closes those in use as well.
        idle: list[Any] = []
        with contextlib.suppress(queue.Empty):
            while True:
                idle.append(self.pool.get_nowait())
        for connection in reversed(idle):
            if connection is not None:
                connection.disconnect()
            self.pool.put_nowait(connection)


class _SentinelPool(_Renewable, SentinelConnectionPool):
    """To the master that the Sentinels name."""

    def _drop_idle(self) -> None:
        self.disconnect(inuse_connections=False)


TLS = (
    *("ssl_ca_certs", "ssl_ca_path", "ssl_cert_reqs", "ssl_check_hostname"),
    *("ssl_certfile", "ssl_keyfile", "ssl_password"),
)
COUNTING = ("db", "username", "password", *TLS)
"""Options of a URL that count."""
OURS = (
    *("max_connections", "timeout", "socket_timeout", "socket_connect_timeout", "protocol"),
    *("socket_keepalive", "socket_read_size", "health_check_interval", "retry_on_timeout"),
    *("retry_on_error", "encoding", "encoding_errors", "decode_responses", "client_name"),
)
"""Those that are the package's own, whatever a URL says that other programs use as well."""
ENCODE = (
    "in user and password write %40 for @, %2F for /, %23 for #, %3A for :, %3F for ? and %25 for %"
)


def connect(url: str, *, timeout: float = TIMEOUT, connections: int = CONNECTIONS) -> "redis.Redis":
    """A client for the URL whose every answer is there within `timeout` seconds or fails.

    It has so many connections at most; who comes when all are in use waits as long for one.

    `redis://`, `rediss://`, `unix://` as redis-py has them;
    `redis+sentinel://[user:password@]host:port[,host:port…]/service[/db]`, also `rediss+`.
    docs/redis.md says which options count. Raises `ConfigError` for anything else, without a word
    of what may be a password.
    """
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    if "#" in url:
        raise ConfigError(f"the Redis URL has a #: {ENCODE}")
    given = _options(query, sentinel=scheme.endswith("+sentinel"), tls=scheme.startswith("rediss"))
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": 0,  # it sends a PING and never looks for the answer
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": True,
        # Other programs write to the log too: a byte that is no UTF-8 is theirs, not an outage.
        "encoding_errors": "replace",
        "client_name": "flask-hybrid",
    }
    if scheme != "unix":
        options["socket_keepalive"] = True
    if scheme.endswith("+sentinel"):
        return _by_sentinel(rest, scheme.startswith("rediss"), given, options, connections)
    if scheme != "unix":
        _place(rest.partition("/")[0].rpartition("@")[2], 6379)
        _number(rest.partition("/")[2])
    try:
        pool = _WaitingPool.from_url(
            f"{scheme}://{rest}?{urlencode(given)}",
            max_connections=connections,
            timeout=timeout,
            **options,
        )
    except (ValueError, redis.RedisError) as error:
        raise ConfigError(f"the Redis URL cannot be used: {error}") from None
    return redis.Redis(connection_pool=pool)


def _options(query: str, *, sentinel: bool, tls: bool) -> dict[str, str]:
    """The options of a URL that count."""
    given = dict(parse_qsl(query, keep_blank_values=True))
    known = (*COUNTING, *(("sentinel_username", "sentinel_password") if sentinel else ()))
    for name in given:
        if name not in known and name not in OURS:
            if "@" in query:
                raise ConfigError(f"the Redis URL has a ? before its host: {ENCODE}")
            raise ConfigError(f"a Redis URL has no option {name!r:.40}; it has {', '.join(known)}")
        if name in TLS and not tls:
            raise ConfigError(f"{name} in a Redis URL needs rediss://, which is TLS")
    if "ssl_cert_reqs" in given:
        needed = given["ssl_cert_reqs"].lower().removeprefix("cert_")
        if needed not in ("none", "optional", "required"):
            raise ConfigError("ssl_cert_reqs in a Redis URL is none, optional or required")
        given["ssl_cert_reqs"] = needed
        if needed == "none":
            given["ssl_check_hostname"] = "false"
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        if name in given and not Path(given[name]).is_file():
            raise ConfigError(f"{name} in the Redis URL names no file: {given[name]!r:.200}")
    _number(given.get("db", ""))
    return {name: value for name, value in given.items() if name not in OURS}


def _number(db: str) -> int:
    db = db.strip("/")
    if db and not (db.isascii() and db.isdecimal()):
        raise ConfigError(f"the database in a Redis URL is a number; {ENCODE}")
    return int(db or 0)


def _place(host: str, default: int) -> tuple[str, int]:
    """Host and port; an IPv6 address stands in brackets."""
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\[\]]*))(?::([0-9]{1,5}))?", host)
    if match is None or int(match[3] or default) > 65535:
        raise ConfigError(
            "the Redis URL has no host:port ([address]:port for IPv6) where one should be;"
            f" {ENCODE}"
        )
    return unquote(match[1] or match[2] or "localhost"), int(match[3] or default)


def renew(client: "redis.Redis") -> None:
    """Have its next command make a new connection, to where the address leads by then.

    After a failover behind one address (a name, a proxy, a Kubernetes Service) the connections
    that were open before lead to the old server, for as long as they are used. Safe while other
    threads use them: a call that is under way ends on the connection that it has.
    """
    client.connection_pool.renew()  # type: ignore[attr-defined]


def disconnect(client: "redis.Redis") -> None:
    """Drop all its connections; the next command makes new ones."""
    # close() alone leaves a pool that was handed in as it is, sockets open.
    pool = client.connection_pool
    pool.disconnect()
    sentinel = getattr(pool, "sentinel_manager", None)
    for each in sentinel.sentinels if sentinel is not None else ():
        each.close()


def _by_sentinel(
    rest: str, tls: bool, given: dict[str, str], options: dict[str, Any], connections: int
) -> "redis.Redis":
    place, _, path = rest.partition("/")
    login, _, hosts = place.rpartition("@")
    user, _, password = login.partition(":")
    addresses = [_place(host, 26379) for host in hosts.split(",")]
    service, _, db = path.strip("/").partition("/")
    if not service:
        raise ConfigError("a Sentinel URL names the service: redis+sentinel://host:26379/mymaster")
    secure: dict[str, Any] = {}
    if tls:
        secure = {"ssl": True, "ssl_cert_reqs": "required"}
        secure |= {name: given[name] for name in TLS if name in given}
        if "ssl_check_hostname" in secure:
            checked = secure["ssl_check_hostname"].lower()
            secure["ssl_check_hostname"] = checked not in ("0", "f", "false", "n", "no", "")
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        addresses,
        sentinel_kwargs={
            "socket_timeout": options["socket_timeout"],
            "socket_connect_timeout": options["socket_connect_timeout"],
            "retry": Retry(NoBackoff(), 0),
            "username": given.get("sentinel_username"),
            "password": given.get("sentinel_password"),
            **secure,
        },
    )
    client: redis.Redis = sentinel.master_for(  # type: ignore[no-untyped-call]
        unquote(service),
        connection_pool_class=_SentinelPool,
        db=_number(given.get("db", db)),
        # That pool does not wait for a connection, but fails: so there are some to spare.
        max_connections=2 * connections,
        username=unquote(user) or given.get("username"),
        password=unquote(password) or given.get("password"),
        **secure,
        **options,
    )
    return client
