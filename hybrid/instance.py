"""One worker process's share of the system: its log, its bus, its hub.

Made on first use in the process that uses it, never at import: a server that forks after
loading the application would otherwise share locks and greenlets between processes.
"""

import logging
import os
import random
import resource
import secrets
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hybrid.audience import Audience
from hybrid.auth import Tickets, application_mark
from hybrid.bus import Bus, Receipt
from hybrid.bus.memory import MemoryBus
from hybrid.config import Settings
from hybrid.connection import Connection
from hybrid.distinct import Distinct
from hybrid.errors import TooManyConnections
from hybrid.events import ORIGIN, Cursor, Event, random_id
from hybrid.hub import Hub
from hybrid.limits import Rates
from hybrid.log import Claim, Log, Start
from hybrid.pump import Pump
from hybrid.reach import Patience, Reach
from hybrid.recheck import Look, Recheck
from hybrid.shutout import ENDINGS
from hybrid.slots import LEASE, Slots
from hybrid.wire import to_json

if TYPE_CHECKING:
    import redis

logger = logging.getLogger("hybrid")

FRUGAL_PROBE, FRUGAL_LEASE = 30.0, 90.0
"""Seconds, where commands are paid for: a deaf process is found later, a dead one's places are."""
PATIENCE = 1.0
"""Seconds that the first request of a process waits for the shared log."""
RESERVED = 128
"""Descriptors that are not for streams: requests, the database, Redis. A server that has none
left cannot even accept a health check."""
MAX_TYPES = 1000
"""Types that are counted one by one; beyond that the rare ones are counted together."""
OTHER_TYPES = "(other types)"
NOBODY = Audience()
Tell = Callable[[str, Connection | None, str], None]
"""Hears that a stream was `disconnected` or that there was a `gap`, and why. May not block."""


def unix_ms() -> int:
    return int(time.time() * 1000)


def pause() -> None:
    """Let other greenlets or threads run, and let the event loop look at its sockets.

    Not 0: gevent then looks at none before it has gone round some fifty times, which would be a
    whole pass of the pump. A timer that is over at once comes after them, and costs no waiting.
    """
    time.sleep(1e-9)


def descriptors() -> int:
    """How many this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


class Instance:
    """See the module's docstring."""

    def __init__(
        self,
        settings: Settings,
        look: Look,
        *,
        secret: str | bytes | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = unix_ms,
        tell: Tell = lambda _what, _connection, _reason: None,
    ) -> None:
        self.id = random_id()
        self.pid = os.getpid()
        self.host = socket.gethostname()
        self.application = application_mark(secret)
        self.settings = settings
        self.wall = wall
        self._tell = tell
        self.started_at = time.time()
        self.emitted: Counter[str] = Counter()
        self.problems: Counter[int] = Counter()
        self.polls = 0
        self.pollers = Distinct()
        self.alone = True
        """False once it is known that other processes serve the same clients without a bus."""
        self.room = min(settings.max_connections, max(0, descriptors() - RESERVED))
        """Connections that this process can hold."""
        if self.room < settings.max_connections:
            logger.warning("%s", self.cramped())
        log = self._make_log(Cursor(random_id(), 0, ORIGIN))
        self.hub = Hub(
            log,
            heartbeat=settings.heartbeat_seconds,
            max_connections=self.room,
            max_replay=settings.max_replay_events,
            clock=clock,
            wall=wall,
            random=random.random,
            pause=pause,
            on_close=self._give_back,
            on_gap=lambda connection, reason: tell("gap", connection, reason),
        )
        self.pump = Pump(self.hub, stall=settings.stall_seconds, max_age=settings.max_age_seconds)
        self._client = client = self._make_client()
        self.reach = None if client is None else self._make_reach(client)
        """Of limits, slots and tickets to the bus's Redis."""
        self.bus = self._make_bus(log)
        prefix = f"{{{settings.namespace}}}"
        self.rates = Rates(
            {
                name.removeprefix("limit_"): getattr(settings, name)
                for name in Settings.__slots__
                if name.startswith("limit_")
            }
            | {"wrong_keys": settings.limit_ip_events},
            client=client,
            reach=self.reach,
            prefix=f"{prefix}:limits",
        )
        self.slots = Slots(
            per_user=settings.max_connections_per_user,
            per_address=settings.max_connections_per_ip,
            client=client,
            reach=self.reach,
            prefix=f"{prefix}:slots",
            me=self.id,
            lease=FRUGAL_LEASE if settings.frugal else LEASE,
        )
        self.tickets = Tickets(
            secret or secrets.token_bytes(),
            client=client,
            reach=self.reach,
            prefix=f"{prefix}:tickets",
        )
        self.no_streams = ""
        """Why the server cannot hold streams, once one was refused for that."""
        self.one_address = False
        """True once it is known that a proxy hides who the clients are."""
        self.recheck = Recheck(self.hub, heartbeat=settings.heartbeat_seconds, look=look)

    def _make_log(self, start: Cursor) -> Log:
        settings = self.settings
        return Log(
            start.epoch,
            max_events=settings.history_events,
            max_seconds=settings.history_seconds,
            max_bytes=settings.history_bytes,
            start=start,
        )

    def _make_bus(self, log: Log) -> Bus:
        settings = self.settings
        if settings.url == "memory://":
            return MemoryBus(log, self.hub, clock=self.wall)
        # Only now: who needs no Redis does not load its client.
        from hybrid.bus.redis import RedisBus
        from hybrid.bus.store import Store

        store = Store(
            settings.url,
            settings.namespace,
            max_events=settings.history_events,
            max_seconds=settings.history_seconds,
            max_bytes=settings.history_bytes,
        )
        bus = RedisBus(
            store,
            self.hub,
            make_log=self._make_log,
            log=log,
            clock=self.wall,
            outbox=settings.outbox_events,
            outbox_bytes=settings.outbox_bytes,
            probe=max(settings.probe_seconds, FRUGAL_PROBE if settings.frugal else 0.0),
        )
        # What one of them has waited for in vain, the other need not wait for again.
        assert self.reach is not None
        bus.on_lost = self._bus_lost
        self.reach.on_silence = bus.lost
        return bus

    def _bus_lost(self, error: BaseException) -> None:
        from hybrid.bus.diagnosis import diagnose

        # A command that is refused says nothing about limits.
        found = diagnose(error)
        if self.reach is not None and (found.elsewhere or not found.answers):
            self.reach.open(str(found), found.what)

    def _make_client(self) -> "redis.Redis | None":
        if self.settings.url == "memory://":
            return None
        from hybrid.bus.connect import connect

        return connect(self.settings.url, connections=1)

    def _make_reach(self, client: "redis.Redis") -> Reach:
        from hybrid.bus.connect import renew

        return Reach(client.ping, renew=lambda: renew(client))

    def admit(
        self, connection: Connection, address: str, claim: Claim, patience: Patience
    ) -> Start:
        """Take a slot for a connection; raises `TooManyConnections` when there is none for it.

        Returns where it begins, as the log is once the slot is there. `patience` is how long to
        wait for Redis.
        """
        user = connection.identity.user
        self.slots.take(user, address, patience)
        connection.address = address
        try:
            return self.hub.open(connection, claim)
        except TooManyConnections:
            self.slots.give_back(user, address)
            raise

    def _give_back(self, connection: Connection) -> None:
        if connection.transport == "sse":
            self._tell("disconnected", connection, connection.closed or "")
        if connection.address:
            self.slots.give_back(connection.identity.user, connection.address)

    @property
    def log(self) -> Log:
        return self.bus.log

    def cramped(self) -> str:
        return (
            f"room for {self.room} connections, not for the {self.settings.max_connections} of"
            f" HYBRID_MAX_CONNECTIONS: the process may open {descriptors()} descriptors. Fix: raise"
            " that (ulimit -n, LimitNOFILE=), or set HYBRID_MAX_CONNECTIONS lower"
        )

    def alerts(self) -> list[str]:
        """What somebody should look at, in words."""
        found = []
        if self.room < self.settings.max_connections:
            found.append(self.cramped())
        if not self.alone:
            found.append("several processes, and no bus between them: set HYBRID_URL=redis://…")
        if self.no_streams:
            found.append(self.no_streams)
        if self.one_address:
            found.append(
                "all clients seem to have one address, and share its limits: set"
                " HYBRID_TRUSTED_PROXIES to the number of proxies in front"
            )
        if self.bus.deaf:
            found.append("deaf: what is published does not arrive here")
        elif self.bus.state == "degraded":
            # Not where Redis is and why: the health checks tell this to anybody.
            found.append(self.bus.headline)
        elif self.reach is not None and self.reach.missing:
            found.append(f"limits are counted in each process alone: {self.reach.headline}")
        return found

    def start(self) -> None:
        """Begin to listen and to deliver; returns within about a second, whatever Redis does."""
        self.pump.start()
        self.recheck.start()
        if self.reach is not None:
            self.reach.start()
        self.slots.start()
        self.bus.start(PATIENCE)
        if self.reach is not None and self.reach.away and self.bus.state == "degraded":
            self.reach.lost(
                self.bus.trouble, self.bus.headline
            )  # no request waits for the first look

    def stop(self) -> None:
        """End what `start` began. For tests."""
        self.recheck.stop()
        self.slots.stop()
        self.rates.stop()
        if self.reach is not None:
            self.reach.stop()
        self.bus.stop()
        if self._client is not None:
            self._client.connection_pool.disconnect()
        self.pump.stop()
        self.hub.sockets.close()

    def publish(self, events: Sequence[Event], *, replicas: int = 0) -> list[Receipt]:
        """Store the events, all or none, and wake who may see them. Raises `OutboxFull`."""
        receipts = self.bus.publish(events, replicas=replicas)
        self.emitted.update(event.type for event in events)
        if len(self.emitted) > MAX_TYPES:
            # Types may be made up by whoever may send, and each would stay for ever.
            kept = Counter(dict(self.emitted.most_common(MAX_TYPES // 2)))
            kept[OTHER_TYPES] += self.emitted.total() - kept.total()
            self.emitted = kept
        return receipts

    def end(self, user: str, order: str = "hybrid.disconnect") -> int:
        """End a user's streams, here at once and everywhere through the log; how many here."""
        now = self.wall()
        told = self.hub.kick(user, now, ENDINGS[order])
        body = to_json({"user": user})
        # Behind events that wait for Redis there is still room for this: who is shut out stays so.
        (receipt,) = self.bus.publish([Event(random_id(), order, body, now, NOBODY)])
        if receipt.stored == "outbox":
            logger.warning(
                "%d streams of %.80a are ended in this process alone (%s): the other processes are"
                " told when the shared log is back, and let them go on until then",
                told,
                user,
                self.bus.headline,
            )
        return told
