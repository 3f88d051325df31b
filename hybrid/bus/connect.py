"""How to reach Redis, in a bounded time.

Connect and read have timeouts of their own, and nothing is retried below the callers, who know
what a repetition means. redis-py's defaults would wait for up to a minute, and repeat what may
have been stored.
"""

import contextlib
import queue
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from hybrid.config import TLS_OPTIONS, check_redis_url
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
            try:
                if connection is not None:
                    connection.disconnect()
            finally:
                self.pool.put_nowait(connection)


class _SentinelPool(_Renewable, SentinelConnectionPool):
    """To the master that the Sentinels name."""

    def _drop_idle(self) -> None:
        self.disconnect(inuse_connections=False)


def connect(url: str, *, timeout: float = TIMEOUT, connections: int = CONNECTIONS) -> "redis.Redis":
    """A client for the URL whose every answer is there within `timeout` seconds or fails.

    It has so many connections at most; who comes when all are in use waits as long for one.

    `redis://`, `rediss://`, `unix://` as redis-py has them;
    `redis+sentinel://[user:password@]host:port[,host:port…]/service[/db]`, also `rediss+`, over TLS
    to the Sentinels as well. Raises `ConfigError` for anything else, and as `check_redis_url`.
    """
    check_redis_url(url)
    scheme, _, rest = url.partition("://")
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
    try:
        if scheme.endswith("+sentinel"):
            return _by_sentinel(scheme, rest, options, timeout, connections)
        pool = _WaitingPool.from_url(url, max_connections=connections, timeout=timeout, **options)
    except (ValueError, redis.RedisError) as error:
        raise ConfigError(f"the Redis URL cannot be used: {error}") from None
    return redis.Redis(connection_pool=pool)


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
    scheme: str,
    rest: str,
    options: dict[str, Any],
    timeout: float,
    connections: int,
) -> "redis.Redis":
    # By hand: of several hosts with IPv6 addresses among them urllib makes nothing.
    place, _, asked = rest.partition("?")
    query = dict(parse_qsl(asked))
    netloc, _, path = place.partition("/")
    login, _, hosts = netloc.rpartition("@")
    user, _, password = login.partition(":")
    addresses = []
    for host in hosts.split(","):
        address = urlsplit(f"//{host}")
        addresses.append((unquote(address.hostname or "localhost"), address.port or 26379))
    service, _, db = path.strip("/").partition("/")
    if not service:
        raise ConfigError("a Sentinel URL names the service: redis+sentinel://host:26379/mymaster")
    tls: dict[str, Any] = {}
    if scheme.startswith("rediss"):
        # As redis-py reads them in the URL of a server.
        url = f"rediss://h?{urlencode({k: v for k, v in query.items() if k in TLS_OPTIONS})}"
        tls = {"ssl": True} | redis.connection.parse_url(url)  # type: ignore[no-untyped-call]
        del tls["host"], tls["connection_class"]
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        addresses,
        sentinel_kwargs={
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),
            "username": query.get("sentinel_username"),
            "password": query.get("sentinel_password"),
        }
        | tls,
    )
    client: redis.Redis = sentinel.master_for(  # type: ignore[no-untyped-call]
        unquote(service),
        connection_pool_class=_SentinelPool,
        db=int(query.get("db") or db or 0),
        # That pool does not wait for a connection, but fails: so there are some to spare.
        max_connections=2 * connections,
        username=query.get("username") or unquote(user) or None,
        password=query.get("password") or unquote(password) or None,
        **options,
        **tls,
    )
    return client
