"""One address, two servers: after a failover every connection finds the new primary by itself.

What leads to the servers is an address that changes hands and leaves open connections alone, as a
DNS name, a Kubernetes Service or a proxy does. The old primary is either a replica of the new one
from then on, or goes on taking writes, and only the subscriptions to it are cut.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from hybrid import Publisher
from hybrid.audience import Audience
from hybrid.bus.health import Health
from hybrid.bus.store import GivenUp, Store
from hybrid.config import Settings
from hybrid.events import Event, random_id
from hybrid.instance import Instance
from hybrid.monitor.records import Away
from hybrid.monitor.redis_records import RedisRecords
from redises import Proxy, RedisServer, redis_server
from servers import DEADLINE
from test_redis import NAMESPACE, Worker, agree

LOG = f"{{{NAMESPACE}}}:log"


class Pair:
    """A primary, its replica, and the address that leads to one of them."""

    def __init__(self, old: RedisServer, new: RedisServer) -> None:
        self.old: Any = old.client()
        self.new: Any = new.client()
        self._ports = old.port, new.port
        self.address = Proxy(old.port)
        self.new.replicaof("127.0.0.1", old.port)
        until(lambda: self.new.info("replication")["master_link_status"] == "up", "no replica")

    def catch_up(self) -> None:
        """Wait until the replica has all that the primary has."""
        wanted = self.old.info("replication")["master_repl_offset"]
        until(
            lambda: self.new.info("replication")["slave_repl_offset"] >= wanted,
            "the replica does not follow",
        )

    def fail_over(self, variant: str) -> None:
        self.catch_up()
        self.new.replicaof("NO", "ONE")
        self.address.repoint(self._ports[1])
        if variant == "replica":
            self.old.replicaof("127.0.0.1", self._ports[1])
        else:
            self.old.client_kill_filter(_type="pubsub")

    def close(self) -> None:
        self.address.close()
        self.old.close()
        self.new.close()


def until(true: Callable[[], Any], why: str) -> None:
    end = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < end, why
        time.sleep(0.02)


def ids(client: Any) -> list[str]:
    return [fields["id"] for _, fields in client.xrange(LOG)]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    diskless = ("--repl-diskless-sync-delay", "0")
    with (
        redis_server(tmp_path / "old", *diskless) as old,
        redis_server(tmp_path / "new", *diskless) as new,
    ):
        pair = Pair(old, new)
        yield pair
        pair.close()


variants = pytest.mark.parametrize("variant", ["replica", "writable"])


@variants
def test_workers_find_the_new_primary_and_lose_nothing(pair: Pair, variant: str) -> None:
    """Without a restart; nobody is told of a gap, and the outbox goes to the new one."""
    workers = [Worker(pair.address.url).start() for _ in range(2)]
    one, other = workers
    try:
        one.emit(5)
        agree(*workers, count=5)
        swaps = [len(worker.ears.of("swap")) for worker in workers]
        pair.fail_over(variant)
        if variant == "writable":
            for worker in workers:
                worker.until(lambda worker=worker: worker.ears.of("announce"), "not noticed")  # type: ignore[misc]
        one.emit(3)
        one.until_ok()
        other.emit(3)
        agree(*workers, count=11)
        assert ids(pair.new) == [f"n{number}" for number in one.numbers_held()]
        assert [len(worker.ears.of("swap")) for worker in workers] == swaps
    finally:
        for worker in workers:
            worker.stop()


@variants
def test_a_long_lived_publisher_finds_the_new_primary(
    pair: Pair, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a refusal at once. Where the old one takes what nobody hears of, once its connection is
    as old as one may become."""
    publisher = Publisher(pair.address.url, namespace=NAMESPACE, budget=DEADLINE)
    try:
        publisher.emit("tick", id="before")
        pair.fail_over(variant)
        if variant == "writable":
            monkeypatch.setattr("hybrid.publisher.LIFETIME", 0)
        publisher.emit("tick", id="after")
        assert ids(pair.new) == ["before", "after"]
    finally:
        publisher.close()


@variants
def test_limits_places_and_tickets_move_too(pair: Pair, variant: str) -> None:
    """They share one connection; what is refused there, or what the bus notices, moves it."""
    settings = Settings(url=pair.address.url, namespace=NAMESPACE)
    instance = Instance(settings, lambda *_: (None, ()), secret="s")
    try:
        instance.start()
        assert instance.rates.hit("polls", "before") is None
        pair.fail_over(variant)
        if variant == "replica":
            # An idle process hears all through the old one, which is a replica: nothing is wrong.
            instance.publish([Event(random_id(), "tick", "1", 1, Audience())])

        def counted_there() -> bool:
            instance.rates.hit("polls", f"after {time.monotonic()}")
            return len(list(pair.new.scan_iter(f"{{{NAMESPACE}}}:limits/*"))) > 1

        until(counted_there, "limits stay on the old one")
        instance.slots.take("alice", "10.0.0.1")
        assert pair.new.hlen(f"{{{NAMESPACE}}}:slots:held:{instance.id}") == 2
        until(lambda: instance.bus.state == "ok", "the bus stays on the old one")
        assert instance.alerts() == []
    finally:
        instance.stop()


def test_limits_alone_leave_a_replica(pair: Pair) -> None:
    """Also where the bus has nothing to store, and so does not notice."""
    settings = Settings(url=pair.address.url, namespace=NAMESPACE)
    instance = Instance(settings, lambda *_: (None, ()), secret="s")
    try:
        instance.start()
        assert instance.rates.hit("polls", "before") is None
        pair.fail_over("replica")

        def counted_there() -> bool:
            instance.rates.hit("polls", f"after {time.monotonic()}")
            return len(list(pair.new.scan_iter(f"{{{NAMESPACE}}}:limits/*"))) > 1

        until(counted_there, "limits stay on the old one")
    finally:
        instance.stop()


@variants
def test_the_monitors_records_move_too(pair: Pair, variant: str) -> None:
    """At a refusal, and when the bus has given its connections up."""
    worker = Worker(pair.address.url).start()
    records = RedisRecords(pair.address.url, NAMESPACE, "me")
    records.listen(worker.bus, lambda _: None)
    try:
        records.beat("{}", watched=False)
        pair.fail_over(variant)
        if variant == "writable":
            worker.until(lambda: worker.ears.of("announce")[-1:] == ["ok"], "the bus stays")
        else:
            with suppress(Away):
                records.beat('{"on":"a replica"}', watched=False)
        records.beat('{"on":"the new one"}', watched=False)
        assert pair.new.get(f"{{{NAMESPACE}}}:instance:me") == '{"on":"the new one"}'
    finally:
        records.close()
        worker.stop()


def test_a_late_answer_of_the_old_primary_counts_for_nothing(pair: Pair) -> None:
    """It took the event, and was given up before it said so: the new one has to have it as well."""
    store = Store(pair.address.url, NAMESPACE)
    event = Event("late", "tick", "1", 1, Audience.of())
    said: list[BaseException] = []

    def publish() -> None:
        try:
            store.publish([event], new_epoch="e")
        except redis.RedisError as error:
            said.append(error)

    try:
        store.found("e")  # the connection is there
        pair.catch_up()
        pair.new.replicaof("NO", "ONE")
        pair.address.repoint(pair._ports[1])
        pair.address.delay = 0.2  # half of what an answer may take
        publishing = threading.Thread(target=publish)
        publishing.start()
        until(lambda: ids(pair.old) == ["late"], "it is never stored")
        store.renew()
        publishing.join(DEADLINE)
        assert [type(error) for error in said] == [GivenUp]
        pair.address.delay = 0.0
        store.publish([event], new_epoch="e")
        assert ids(pair.new) == ["late"]
    finally:
        store.close()


def test_what_was_given_up_says_nothing_about_what_there_is_now() -> None:
    """No process becomes degraded by it a second time."""
    told: list[str] = []
    health = Health(
        threading.RLock(),
        clock=lambda: 1,
        announce=lambda state, _: told.append(state),
        on_lost=lambda _: None,
    )
    health.lost(redis.TimeoutError())
    health.back()
    health.lost(GivenUp())
    assert health.state == "ok"
    assert told == ["degraded"]
