"""The one connection of a process that hears, and the way back when something has failed.

The way back is always the same: give up all connections, subscribe, hear oneself, read what others
stored, then have the outbox stored. A frozen or detached subscription looks healthy: so the process
rings a bell of its own through Redis when it has heard nothing for long.

All connections, since any of them may lead to a server that is no longer the one: after a failover
behind one address the old primary keeps those that are open, and answers. So too those that were
made in a try that failed: the next one would store by a connection to one server and read by one to
the other. At a Redis whose answers take nearly `TIMEOUT`, that is some twenty in a row that have to
come in time.
"""

import itertools
import logging
import threading
from collections.abc import Callable

import redis

from hybrid.bus.connect import TIMEOUT
from hybrid.bus.copy import Copy
from hybrid.bus.diagnosis import is_crowded
from hybrid.bus.health import Health
from hybrid.bus.store import FAILURE, Store

logger = logging.getLogger("hybrid")

LISTEN = 0.5
"""Seconds until the listener looks whether an emit has failed meanwhile."""
RETRY_BASE, RETRY_CAP = 0.2, 5.0
HURRY = 0.1
"""Seconds between two tries where somebody waits for them, who is about to go."""
STEADY = 5.0
"""Seconds that a connection has to last until the delay before the next one is short again."""


class Deaf(redis.RedisError):
    """Redis answers commands, but what is published does not arrive here."""


class Listener:
    """See the module's docstring.

    `recover` stores what was kept and makes the state ok; `renew` gives up all connections of the
    process to this Redis; `on_aside` hears what processes tell each other besides events. `probe`
    is the seconds of silence after which the own bell is rung, `monotonic` a clock in seconds, and
    `rest` waits so many of them.
    """

    def __init__(
        self,
        store: Store,
        copy: Copy,
        health: Health,
        *,
        recover: Callable[[], None],
        renew: Callable[[], None],
        on_aside: Callable[[str], object],
        probe: float,
        monotonic: Callable[[], float],
        random: Callable[[], float],
        rest: Callable[[float], None],
        new_id: Callable[[], str],
    ) -> None:
        self.hurried = False
        """Whether somebody waits for the way back."""
        self._store = store
        self._copy = copy
        self._health = health
        self._recover = recover
        self._renew = renew
        self._on_aside = on_aside
        self._probe_after = probe
        self._monotonic = monotonic
        self._random = random
        self._rest = rest
        self._ear = f"{store.channel}:{new_id()}"
        self._token = itertools.count()
        self._running = True
        self._thread = threading.Thread(target=self.run, name="hybrid-bus", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let it end soon; `join` waits for that."""
        self._running = False

    def join(self, seconds: float) -> None:
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(seconds)

    def run(self) -> None:
        """What the thread does."""
        delay = RETRY_BASE
        while self._running:
            began = self._monotonic()
            failed: Exception | None = None
            try:
                self._attend()
            except FAILURE as error:
                failed = error
                self._health.lost(error)
            except Exception as error:
                logger.exception("the listener failed and goes on")
                self._health.lost(error)
            if not self._running:
                return
            if self._monotonic() - began > STEADY:
                delay = RETRY_BASE
            # Half of it is chance: the processes of a deployment lose Redis together.
            self._rest(HURRY if self.hurried else delay * (0.5 + self._random()))
            delay = min(RETRY_CAP, delay * 2)
            # One that somebody else makes, at a Redis far away, is about to be there: to give it
            # up would be to begin at the beginning.
            if failed is None or not is_crowded(failed):
                self._renew()

    def _attend(self) -> None:
        """One life of the subscription; ends when anything fails, or by `stop`."""
        subscription = self._store.subscribe(self._ear)
        try:
            self._await(subscription, "subscribe", 2)
            self._come_back(subscription)
            quiet_since = self._monotonic()
            # An emit may fail though nothing is heard of it: its connection leads elsewhere then.
            while self._running and self._health.state == "ok":
                message = subscription.get_message(timeout=LISTEN)
                now = self._monotonic()
                if message is not None:
                    quiet_since = now
                    if message["type"] == "subscribe":
                        # redis-py reconnected by itself, maybe to another server than the others.
                        raise redis.ConnectionError("the subscription was made anew")
                    if message["type"] == "message" and message["channel"] != self._ear:
                        self._hear(message["data"])
                elif now - quiet_since >= self._probe_after:
                    try:
                        self._probe(subscription)
                    except FAILURE as error:
                        # Who stores has the connection all the time, and finds out by itself.
                        if not is_crowded(error):
                            raise
                    quiet_since = self._monotonic()
        finally:
            subscription.close()

    def _come_back(self, subscription: "redis.client.PubSub") -> None:
        self._probe(subscription)
        self._copy.catch_up()
        self._recover()

    def _hear(self, message: str) -> None:
        kind, _, rest = message.partition(" ")
        if kind == "a":
            self._on_aside(rest)
        elif kind == "e":  # and nothing of a later version
            self._copy.hear(rest)

    def _await(self, subscription: "redis.client.PubSub", type: str, count: int) -> None:
        deadline = self._monotonic() + 2 * TIMEOUT
        while count:
            message = subscription.get_message(timeout=max(0.0, deadline - self._monotonic()))
            if message is None:
                if self._monotonic() >= deadline:
                    raise Deaf("Redis does not confirm the subscription")
            elif message["type"] == type:
                count -= 1

    def _probe(self, subscription: "redis.client.PubSub") -> None:
        """Ring the own bell and hear it, with everything that was said before; find the head."""
        token = str(next(self._token))
        head = self._store.probe(self._ear, token)
        deadline = self._monotonic() + 2 * TIMEOUT
        while True:
            message = subscription.get_message(timeout=max(0.0, deadline - self._monotonic()))
            if message is None:
                if self._monotonic() < deadline:
                    continue
                self._health.deaf = True
                raise Deaf("Redis answers, but messages do not arrive")
            if message["type"] != "message":
                continue
            if message["channel"] != self._ear:
                if self._copy.known:
                    self._hear(message["data"])
            elif message["data"] == token:
                break
        self._health.deaf = False
        # Whatever was stored before the probe has been heard by now, if all is well. Ours may be
        # ahead by what was stored since, or because Redis has turned back: reading tells.
        if self._copy.known and self._copy.log.head != head:
            self._copy.catch_up()
