"""The Redis bus against real Redis servers that are killed, frozen, emptied and turned back."""

import itertools
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from hybrid.audience import EVERYONE, Audience
from hybrid.bus.connect import connect
from hybrid.bus.redis import RedisBus
from hybrid.bus.store import LUA, PAGE_BYTES, Store, decode
from hybrid.errors import ConfigError, OutboxFull
from hybrid.events import ORIGIN, Cursor, Event, random_id
from hybrid.log import Log
from redises import Proxy, RedisServer, redis_server
from servers import DEADLINE, ROOT
from test_versions import find

NAMESPACE = "shop"


class Recorder:
    """The instance that a bus serves, as a list of what the bus asked of it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.asked: list[tuple[str, Any]] = []

    def _note(self, what: str, value: Any = None) -> None:
        with self.changed:
            self.asked.append((what, value))
            self.changed.notify_all()

    def ring(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def swap(self, log: Log, reason: str) -> None:
        self._note("swap", reason)

    def provisional(self, event: Event) -> None:
        self._note("provisional", event.id)

    def seal(self) -> None:
        self._note("seal")

    def settle(self) -> None:
        self._note("settle")

    def announce(self, state: str, since: int) -> None:
        self._note("announce", state)

    def control(self, event: Event) -> None:
        self._note("control", event.data)

    def of(self, what: str) -> list[Any]:
        return [value for each, value in self.asked if each == what]


class Worker:
    """One process's bus, without the process."""

    numbers = itertools.count(1)

    def __init__(self, url: str, **settings: Any) -> None:
        self.ears = Recorder()
        self.history = settings.pop("history", 10_000)
        self.store = Store(url, NAMESPACE, max_events=self.history, max_seconds=3600)
        self.bus = RedisBus(
            self.store,
            self.ears,
            make_log=self._log,
            log=self._log(Cursor(random_id(), 0, ORIGIN)),
            clock=lambda: time.time_ns() // 1_000_000,
            outbox=settings.pop("outbox", 1000),
            outbox_bytes=settings.pop("outbox_bytes", 64 << 20),
            probe=settings.pop("probe", 0.5),
        )
        assert not settings

    def _log(self, start: Cursor) -> Log:
        return Log(start.epoch, max_events=self.history, max_seconds=3600, start=start)

    def start(self) -> "Worker":
        self.bus.start(DEADLINE)
        return self

    def emit(self, count: int = 1, audience: Audience = EVERYONE) -> list[str]:
        """Emit numbered events one by one; what became of each."""
        stored: list[str] = []
        for _ in range(count):
            number = next(self.numbers)
            at = time.time_ns() // 1_000_000
            event = Event(f"n{number}", "tick", str(number), at, audience)
            (receipt,) = self.bus.publish([event])
            stored.append(receipt.stored)
        return stored

    def until(self, what: Callable[[], Any], why: str) -> None:
        """Wait for something that the bus makes true."""
        end = time.monotonic() + DEADLINE
        with self.ears.changed:
            while not what():
                left = end - time.monotonic()
                assert left > 0, f"{why}; {self.bus.state} {self.bus.trouble} {self.ears.asked}"
                self.ears.changed.wait(min(left, 0.05))

    def until_ok(self) -> None:
        self.until(lambda: self.bus.state == "ok", "it never recovers")

    def until_degraded(self) -> None:
        self.until(lambda: self.bus.state == "degraded", "it never notices")

    def numbers_held(self) -> list[int]:
        log = self.bus.log
        entries = log.between(log.anchor.offset, log.last)
        assert entries is not None
        return [int(entry.event.body) for entry in entries if entry.event.type == "tick"]

    def stop(self) -> None:
        self.bus.stop()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(autouse=True)
def _soon_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener looks often whether it is to end."""
    monkeypatch.setattr("hybrid.bus.listener.LISTEN", 0.05)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        yield server


Start = Callable[..., Worker]


@pytest.fixture
def start(stack: ExitStack) -> Start:
    """Start workers that are stopped at the end."""

    def start(url: str, **settings: Any) -> Worker:
        worker = Worker(url, **settings)
        stack.callback(worker.stop)
        return worker.start()

    return start


def agree(*workers: Worker, count: int | None = None) -> None:
    """Wait until all have the same log; `count` is how many events it ends with at least."""
    first = workers[0]

    def same() -> bool:
        heads = {worker.bus.log.head for worker in workers}
        states = {worker.bus.state for worker in workers}
        # the state is there a moment before it is said
        said = all(worker.ears.of("announce")[-1:] in ([], ["ok"]) for worker in workers)
        enough = count is None or len(first.numbers_held()) >= count
        return len(heads) == 1 and states == {"ok"} and said and enough

    first.until(same, f"they never agree: {[str(worker.bus.log.head) for worker in workers]}")
    assert len({tuple(worker.numbers_held()) for worker in workers}) == 1


# -- the log


def test_workers_share_one_log(server: RedisServer, start: Start) -> None:
    """The same events in the same order with the same cursors, whoever emits."""
    workers = [start(server.url) for _ in range(3)]
    threads = [threading.Thread(target=worker.emit, args=(50,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    agree(*workers, count=150)
    assert sorted(workers[0].numbers_held()) == sorted(set(workers[0].numbers_held()))
    assert not any(worker.ears.of("provisional") for worker in workers)


def test_a_new_worker_has_the_history(server: RedisServer, start: Start) -> None:
    """A cursor from one worker resumes on another that has just been started."""
    old = start(server.url)
    old.emit(10)
    cursor = old.bus.log.cursor_at(4)
    young = start(server.url)
    found = young.bus.log.resolve(str(cursor))
    assert found.resumed
    assert found.cursor == cursor
    assert young.numbers_held() == old.numbers_held()
    assert young.ears.of("announce") == []


def test_a_late_worker_knows_what_was_trimmed(server: RedisServer, start: Start) -> None:
    """Redis keeps what the application says and no more."""
    old = start(server.url, history=20)
    first = old.bus.log.head
    old.emit(50)
    with server.client() as client:
        assert client.xlen(f"{{{NAMESPACE}}}:log") == 20
        assert client.hlen(f"{{{NAMESPACE}}}:ids") == 20
    young = start(server.url, history=20)
    assert len(young.numbers_held()) == 20
    assert young.bus.log.resolve(str(first)).gap == "expired"
    assert young.bus.log.resolve(str(young.bus.log.anchor)).resumed


def test_an_emit_can_be_read_at_once(server: RedisServer, start: Start) -> None:
    """What this worker has stored is in its log when the emit returns."""
    worker = start(server.url)
    for _ in range(50):
        worker.emit()
        assert worker.numbers_held()[-1] == next(iter(worker.numbers_held()[-1:]))
        assert worker.bus.log.head == worker.bus.log.find(f"n{worker.numbers_held()[-1]}")


def test_a_repeated_event_is_stored_once(server: RedisServer, start: Start) -> None:
    """By its id: whoever repeats it, alone or among others, gets its old place."""
    one, other = start(server.url), start(server.url)
    event = Event("same", "tick", "1", 1, EVERYONE)
    (first,) = one.bus.publish([event])
    (again,) = other.bus.publish([event])
    among = one.bus.publish([Event("new", "tick", "2", 1, EVERYONE), event])
    assert first.cursor == again.cursor == among[1].cursor
    agree(one, other)
    assert one.numbers_held() == [1, 2]


def test_a_disconnect_reaches_every_worker(server: RedisServer, start: Start) -> None:
    """Through the log: also those that could not hear just then."""
    proxy = Proxy(server.port)
    try:
        near, far = start(server.url), start(proxy.url)
        proxy.refuse = True
        proxy.cut()
        far.until_degraded()
        order = Event(random_id(), "hybrid.disconnect", '{"user":"eve"}', 1, Audience.of(users=()))
        near.bus.publish([order])
        proxy.refuse = False
        far.until(lambda: far.ears.of("control"), "it never hears of it")
        assert far.ears.of("control") == near.ears.of("control") == [{"user": "eve"}]
    finally:
        proxy.close()


def test_what_others_write_cannot_harm(server: RedisServer, start: Start) -> None:
    """An entry that is no event takes a place and is seen by nobody."""
    worker = start(server.url)
    store = Store(server.url, NAMESPACE)
    publish = store._publish
    for number, junk in enumerate(
        [
            *("", "{", "[]", "null", '{"type":5}', '{"type":"a\\nb"}', '{"type":"x","users":"al"}'),
            *('{"type":"x","text":5}', '{"type":"x","at":"soon"}', '{"type":"x","at":1e999}'),
        ]
    ):
        publish(keys=store.keys, args=[store.channel, "e", "", "", "", f"junk{number}", junk])
    with pytest.raises(redis.ResponseError, match="event id"):
        publish(keys=store.keys, args=[store.channel, "e", "", "", "", "a.b", '{"type":"x"}'])
    worker.emit()
    agree(worker, count=1)
    assert worker.bus.log.last == 11
    entries = worker.bus.log.between(0, 10) or []
    assert {entry.event.type for entry in entries} == {"hybrid.invalid"}
    assert not any(entry.event.audience.everyone for entry in entries)
    store.close()


# -- connections that break


def test_r53_subscribers_that_are_killed_miss_nothing(server: RedisServer, start: Start) -> None:
    """In the middle of traffic, again and again: no loss, no gap."""
    workers = [start(server.url) for _ in range(2)]
    swaps = [len(worker.ears.of("swap")) for worker in workers]
    with server.client() as client:
        for _ in range(10):
            workers[0].emit(5)
            client.client_kill_filter(_type="pubsub")
            workers[1].emit(5)
    agree(*workers, count=100)
    assert [len(worker.ears.of("swap")) for worker in workers] == swaps


def test_r54_a_subscriber_that_is_cut_for_its_buffer_misses_nothing(
    server: RedisServer, start: Start
) -> None:
    """Redis drops a subscriber that is too slow for it, in the middle of a message."""
    workers = [start(server.url) for _ in range(2)]
    swaps = [len(worker.ears.of("swap")) for worker in workers]
    with server.client() as client:
        client.config_set("client-output-buffer-limit", "pubsub 20000 0 0")
        big = Event(random_id(), "tick", '"' + "x" * 60_000 + '"', 1, EVERYONE)
        workers[0].bus.publish([big])
        client.config_set("client-output-buffer-limit", "pubsub 0 0 0")
    for worker in workers:
        worker.until(lambda worker=worker: worker.bus.log.find(big.id), "it is lost")  # type: ignore[misc]
        worker.until_ok()
    assert [len(worker.ears.of("swap")) for worker in workers] == swaps


def test_r56_a_subscription_that_went_deaf_is_found(server: RedisServer, start: Start) -> None:
    """Healthy to look at, and nothing arrives: each process rings its own bell to know."""
    proxy = Proxy(server.port)
    try:
        near, far = start(server.url), start(proxy.url)
        proxy.deafen = True
        near.emit(3)
        far.until(lambda: far.bus.deaf, "it never notices that it is deaf")
        assert far.bus.state == "degraded"
        proxy.deafen = False
        proxy.cut()
        agree(near, far, count=3)
        assert not far.bus.deaf
    finally:
        proxy.close()


def test_r57_a_link_that_swallows_everything_is_found(server: RedisServer, start: Start) -> None:
    """Half open: nothing comes back, nothing breaks."""
    proxy = Proxy(server.port)
    try:
        near, far = start(server.url), start(proxy.url)
        proxy.swallow = True
        near.emit(3)
        far.until_degraded()
        assert far.emit(2) == ["outbox", "outbox"]
        proxy.swallow = False
        proxy.cut()
        agree(near, far, count=5)
    finally:
        proxy.close()


def test_r45_an_event_whose_answer_was_lost_is_stored_once(
    server: RedisServer, start: Start
) -> None:
    """Done in Redis, unknown here: it is sent again with its id, and stays one event."""
    proxy = Proxy(server.port)
    try:
        near, far = start(server.url), start(proxy.url)
        proxy.swallow = True
        far.emit(1)
        near.until(lambda: len(near.numbers_held()) == 1, "it did not reach Redis")
        proxy.swallow = False
        proxy.cut()
        agree(near, far, count=1)
        assert len(near.numbers_held()) == 1
    finally:
        proxy.close()


# -- Redis that is far away


def test_r47_no_emit_waits_for_a_connection_that_is_made(server: RedisServer, start: Start) -> None:
    """Each of its seven questions is answered in time, all of them together are not."""
    proxy = Proxy(server.port)
    try:
        worker = start(proxy.url, probe=60)
        proxy.delay = 0.25
        proxy.cut()
        times: list[float] = []
        while len(times) < 2 or worker.bus.state == "degraded":
            assert len(times) < 300, "it never recovers"
            began = time.monotonic()
            worker.emit(1)
            times.append(time.monotonic() - began)
            time.sleep(0.1)  # between two requests
        print(f"{len(times)} emits, the slowest {max(times):.2f} s")
        assert max(times) < 2.2, "one alone is not to wait a second; the machine may be busy"
        worker.until(lambda: len(worker.numbers_held()) == len(times), "some are lost")
    finally:
        proxy.close()


def test_r47_many_emits_at_once_are_no_outage(server: RedisServer, start: Start) -> None:
    """They travel together: with Redis 100 ms away 200 of them take a few calls."""
    proxy = Proxy(server.port)
    try:
        worker = start(proxy.url, probe=60)
        proxy.delay = 0.1
        with server.client() as client:
            client.config_resetstat()
            stored: list[str] = []
            threads = [
                threading.Thread(target=lambda: stored.extend(worker.emit(1))) for _ in range(200)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        print(f"200 emits in {calls} calls")
        assert stored == ["log"] * 200
        assert worker.ears.of("announce") == []
        assert calls < 50
    finally:
        proxy.close()


def test_r47_no_emit_waits_for_a_name(
    server: RedisServer, start: Start, known: threading.Event
) -> None:
    """The look-up of a name has no bound of its own."""
    proxy = Proxy(server.port)
    try:
        worker = start(f"redis://redis.example:{proxy.port}/0", probe=60)
        known.clear()
        proxy.cut()
        began = time.monotonic()
        assert worker.emit(3) == ["outbox"] * 3
        assert worker.bus.refresh() is False
        print(f"answered after {time.monotonic() - began:.2f} s")
        assert time.monotonic() - began < DEADLINE / 2
        known.set()
        worker.until_ok()
        assert len(worker.numbers_held()) == 3
    finally:
        known.set()
        proxy.close()


def test_r51_who_waits_for_replicas_holds_up_nobody(server: RedisServer, start: Start) -> None:
    """They wait together, on a connection of their own."""
    worker = start(server.url)
    at = worker.bus._copy._clock()
    copies: list[int | None] = []

    def emit(number: int) -> None:
        event = Event(f"r{number}", "tick", "0", at, EVERYONE)
        (receipt,) = worker.bus.publish([event], replicas=1)
        copies.append(receipt.replicas)

    with server.client() as client:
        client.config_resetstat()
        threads = [threading.Thread(target=emit, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        assert worker.emit(20) == ["log"] * 20
        for thread in threads:
            thread.join()
        waits = client.info("commandstats")["cmdstat_wait"]["calls"]
    assert copies == [0] * 40
    assert waits < 10
    assert worker.ears.of("announce") == []


# -- Redis that goes and comes


@pytest.mark.parametrize("how", ["killed", "frozen", "paused"])
def test_r55_r60_an_outage_is_survived(
    server: RedisServer, start: Start, how: str, tmp_path: Path
) -> None:
    """Noticed, said, lived with, and over: what was emitted meanwhile is stored in order."""
    server.kill()
    server.start("--appendonly", "yes", "--appendfsync", "always")
    one, other = start(server.url), start(server.url)
    one.emit(3)
    agree(one, other)
    before = one.bus.log.head
    if how == "killed":
        server.kill()
    elif how == "frozen":
        server.stop()
    else:
        with server.client() as client:
            client.client_pause(4000)
    began = time.monotonic()
    kept = one.emit(5) + other.emit(5)
    print(f"{how}: ten emits took {time.monotonic() - began:.2f} s")
    assert kept == ["outbox"] * 10
    assert one.ears.of("announce") == other.ears.of("announce") == ["degraded"]
    assert len(one.ears.of("provisional")) == 5
    if how == "killed":
        server.start("--appendonly", "yes")
    elif how == "frozen":
        server.go_on()
    agree(one, other, count=13)
    for worker in (one, other):
        said = partial(worker.ears.of, "announce")
        worker.until(lambda said=said: said() == ["degraded", "ok"], "it is not said")  # type: ignore[misc]
        assert worker.bus.log.resolve(str(before)).resumed, "the log is the same one"
        held = worker.numbers_held()
        assert len(held) == len(set(held)) == 13
    mine = [number for number in one.numbers_held() if f"n{number}" in one.ears.of("provisional")]
    assert mine == sorted(mine), "R-52: in the order of the emits"
    assert set(one.emit(2)) == {"log"}


def test_r49_a_full_outbox_refuses(server: RedisServer, start: Start) -> None:
    """Aloud, and what it took before is kept."""
    worker = start(server.url, outbox=3)
    server.kill()
    worker.until_degraded()
    assert worker.emit(3) == ["outbox"] * 3
    for _ in range(2):
        with pytest.raises(OutboxFull, match="3 events wait"):
            worker.emit()
    server.start()
    agree(worker, count=3)
    assert len(worker.numbers_held()) == 3


def test_r49_an_outbox_is_bounded_by_bytes_too(server: RedisServer, start: Start) -> None:
    """Few large events fill it as many small ones do, and clients are given none beyond it.

    A logout comes through; and when Redis is back there is room again.
    """
    large, bound = "x" * 10_000, 100_000
    worker = start(server.url, outbox_bytes=bound)
    server.kill()
    worker.until_degraded()

    def emit(id: str, type: str = "tick", body: str = f'"{large}"') -> str:
        (receipt,) = worker.bus.publish([Event(id, type, body, time.time_ns() // 10**6, EVERYONE)])
        return receipt.stored

    kept = [emit(f"l{number}") for number in range(bound // (4 * len(large)))]
    assert kept == ["outbox"] * len(kept)
    with pytest.raises(OutboxFull, match=r"events of \d+ bytes wait for it, .* 100000 may"):
        emit("full")
    assert len(worker.ears.of("provisional")) == len(kept)
    assert emit("bye", "hybrid.disconnect", '{"user":"eve"}') == "outbox"
    assert emit("small", body="1") == "outbox", "there is room for this one"
    server.start()
    worker.until_ok()
    server.kill()
    worker.until(lambda: worker.bus.state == "degraded", "it never notices")
    again = [emit(f"m{number}") for number in range(len(kept))]
    assert again == ["outbox"] * len(kept)


def test_r62_a_flush_ends_in_time_and_says_what_is_left(server: RedisServer, start: Start) -> None:
    """For who is about to go: Redis is tried more often, and nobody is held up for it."""
    worker = start(server.url)
    assert worker.bus.flush(DEADLINE) == 0
    server.stop()
    worker.emit(2)
    began = time.monotonic()
    assert worker.bus.flush(0.3) == 2
    print(f"a flush of 0.3 s took {time.monotonic() - began:.2f} s")
    server.go_on()
    assert worker.bus.flush(DEADLINE) == 0
    assert len(worker.numbers_held()) == 2


def test_r49_who_is_shut_out_is_told_behind_a_full_outbox(
    server: RedisServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A logout finds a place of its own, and even that has an end."""
    monkeypatch.setattr("hybrid.bus.outbox.CONTROL_ROOM", 2)
    worker = start(server.url, outbox=1)
    server.kill()
    worker.until_degraded()
    worker.emit(1)

    def shut_out(user: str) -> str:
        at = time.time_ns() // 1_000_000
        body = f'{{"user":"{user}"}}'
        order = Event(random_id(), "hybrid.revoke", body, at, Audience.of(users=()))
        (receipt,) = worker.bus.publish([order])
        return receipt.stored

    assert [shut_out(user) for user in "ab"] == ["outbox"] * 2
    with pytest.raises(OutboxFull):
        shut_out("c")
    server.start()
    worker.until(lambda: len(worker.ears.of("control")) == 2, "they were never told")


def test_a_worker_that_starts_without_redis_finds_it_later(
    server: RedisServer, start: Start, tmp_path: Path
) -> None:
    """It serves its own clients until then, and keeps what is emitted."""
    other = start(server.url)
    other.emit(2)
    server.stop()
    worker = Worker(server.url)
    began = time.monotonic()
    worker.bus.start(1.0)
    try:
        print(f"a start without Redis took {time.monotonic() - began:.2f} s")
        assert worker.emit(2) == ["outbox"] * 2
        server.go_on()
        agree(worker, other, count=4)
    finally:
        worker.stop()


def lost(worker: Worker) -> list[str]:
    """The reasons for which the worker's clients were told of a gap."""
    return list(worker.ears.of("swap"))[1:]  # the first is the start


@pytest.mark.parametrize(
    "disaster", ["restarted empty", "FLUSHALL", "log evicted", "meta evicted", "all evicted"]
)
def test_r58_a_log_that_is_gone_is_a_gap(server: RedisServer, start: Start, disaster: str) -> None:
    """Nobody goes on as if nothing had happened; both workers agree on the new log."""
    one, other = start(server.url), start(server.url)
    one.emit(5)
    agree(one, other)
    before = one.bus.log.head
    keys = [f"{{{NAMESPACE}}}:{name}" for name in ("log", "meta", "ids")]
    if disaster == "restarted empty":
        server.kill()
        server.start()
    else:
        with server.client() as client:
            if disaster == "FLUSHALL":
                client.flushall()
            else:
                chosen = {"log evicted": keys[:1], "meta evicted": keys[1:2]}
                client.delete(*chosen.get(disaster, keys))
    one.until_ok()
    one.emit(1)
    for worker in (one, other):
        worker.until(lambda worker=worker: lost(worker), "it never notices")  # type: ignore[misc]
    agree(one, other, count=1)
    for worker in (one, other):
        assert set(lost(worker)) == {"epoch"}
        assert worker.bus.log.resolve(str(before)).gap == "epoch"


def test_ids_that_are_gone_are_found_again(server: RedisServer, start: Start) -> None:
    """The ids are a copy of what the log says; without them it is read."""
    worker = start(server.url)
    event = Event("kept", "tick", "0", 1, EVERYONE)
    worker.bus.publish([event])
    with server.client() as client:
        client.delete(f"{{{NAMESPACE}}}:ids")
    (receipt,) = worker.bus.publish([event])
    assert receipt.cursor == worker.bus.log.find("kept")
    assert worker.bus.log.last == 1
    assert lost(worker) == []


def test_r71_a_call_that_comes_through_late_is_no_second_event(
    server: RedisServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer under way than an emit waits: it is kept, then it is stored after all, once."""
    worker = start(server.url, probe=60)
    publish, go_on = worker.store.publish, threading.Event()

    def slow(events: Any, **how: Any) -> Any:
        go_on.wait(DEADLINE)
        return publish(events, **how)

    monkeypatch.setattr(worker.store, "publish", slow)
    began = time.monotonic()
    assert worker.emit(1) == ["outbox"]
    print(f"answered after {time.monotonic() - began:.2f} s")
    assert worker.bus.state == "degraded"
    assert worker.emit(2) == ["outbox"] * 2
    go_on.set()
    worker.until_ok()
    assert len(worker.numbers_held()) == 3
    assert worker.numbers_held() == sorted(worker.numbers_held())
    assert worker.emit(1) == ["log"]


def test_the_ids_of_a_long_log_are_read_in_steps(server: RedisServer, start: Start) -> None:
    """Nobody waits long for Redis because of it, and what is in the log is not stored again."""
    store = Store(server.url, NAMESPACE)
    at = time.time_ns() // 1_000_000
    events = [Event(f"i{number}", "tick", str(number), at, EVERYONE) for number in range(10_000)]
    for place in range(0, len(events), 500):
        store.publish(events[place : place + 500], new_epoch="e")
    store.close()
    worker = start(server.url)
    with server.client() as client:
        client.config_set("slowlog-log-slower-than", 0)
        client.config_set("slowlog-max-len", 100_000)
        client.delete(f"{{{NAMESPACE}}}:ids")
        client.slowlog_reset()
        (again,) = worker.bus.publish([events[5]])
        assert again.cursor == worker.bus.log.cursor_at(6)
        assert worker.emit(1) == ["log"]
        calls = [
            each["duration"] for each in client.slowlog_get(100_000) if b"EVAL" in each["command"]
        ]
        assert client.hlen(f"{{{NAMESPACE}}}:ids") == client.xlen(f"{{{NAMESPACE}}}:log")
    print(f"{len(calls)} calls, the longest {max(calls) / 1000:.1f} ms")
    assert len(calls) >= 8


def test_an_id_that_is_in_the_log_twice_stops_nobody(server: RedisServer, start: Start) -> None:
    """Somebody else may have put it there: the ids are read again once, and not for ever."""
    worker = start(server.url)
    log, _, ids = worker.store.keys
    with server.client() as client:
        worker.emit(3)
        again = client.xrange(log, count=1)[0][1]
        client.xtrim(log, maxlen=2)
        client.delete(ids)
        client.xadd(log, again | {"id": "n"}, id="4-0")
        worker.emit(1)
        assert client.hget(worker.store.keys[1], "indexed") is None


def test_the_log_is_bounded_by_bytes(server: RedisServer) -> None:
    """In Redis as well: large events make it shorter, and never empty."""
    store = Store(server.url, NAMESPACE, max_events=1000, max_seconds=3600, max_bytes=100_000)
    for number in range(20):
        store.publish(
            [Event(f"b{number}", "big", f'"{number:020000}"', 1, EVERYONE)], new_epoch="e"
        )
    entries = store.read(None).entries
    assert [event.id for _, event in entries] == ["b16", "b17", "b18", "b19"]
    huge = f'"{0:0200000}"'
    store.publish([Event("huge", "big", huge, 1, EVERYONE)], new_epoch="e")
    assert [event.id for _, event in store.read(None).entries] == ["huge"]
    store.publish([Event("small", "small", "1", 1, EVERYONE)], new_epoch="e")
    assert [event.id for _, event in store.read(None).entries] == ["small"]
    with server.client() as client:
        assert int(client.hget(store.keys[1], "bytes") or 0) < 500
    store.close()


def test_pages_are_bounded_by_bytes(server: RedisServer, start: Start) -> None:
    """A log of large events is read in many answers, none of them larger than a line takes."""
    worker = start(server.url)
    at = worker.bus._copy._clock()
    for number in range(30):
        worker.bus.publish([Event(f"p{number}", "big", f'"{number:060000}"', at, EVERYONE)])
    page = worker.store.read(None)
    assert 1 < len(page.entries) <= PAGE_BYTES / 60_000
    late = start(server.url)
    assert late.bus.log.head == worker.bus.log.head
    assert late.bus.log.cursor_at(1) == worker.bus.log.cursor_at(1)


def test_a_flushed_script_cache_is_nobodys_trouble(server: RedisServer, start: Start) -> None:
    """The scripts are loaded again, within the same emit."""
    worker = start(server.url)
    with server.client() as client:
        for _ in range(3):
            client.script_flush()
            assert worker.emit(2) == ["log", "log"]
    assert worker.ears.of("announce") == []


def test_r33_a_log_that_turns_back_is_a_gap(
    server: RedisServer, start: Start, tmp_path: Path
) -> None:
    """Restored from an older copy: the same epoch, fewer events; then others in their places."""
    one, other = start(server.url), start(server.url)
    one.emit(5)
    common = one.bus.log.head
    with server.client() as client:
        client.save()
    shutil.copy(server.folder / "dump.rdb", tmp_path / "old.rdb")
    one.emit(5)
    agree(one, other, count=10)
    ahead = one.bus.log.head
    between = one.bus.log.cursor_at(8)
    server.kill()
    shutil.copy(tmp_path / "old.rdb", server.folder / "dump.rdb")
    server.start()
    for worker in (one, other):
        worker.until(lambda worker=worker: lost(worker), "it never notices")  # type: ignore[misc]
        assert set(lost(worker)) <= {"rollback", "forked"}
    agree(one, other, count=5)
    assert one.bus.log.resolve(str(ahead)).gap == "rollback"
    other.emit(4)
    agree(one, other, count=9)
    for worker in (one, other):
        assert worker.bus.log.resolve(str(between)).gap == "forked"
        assert worker.bus.log.resolve(str(common)).resumed, "what both lives share is provable"


def test_r33_an_event_that_is_stored_again_behind_others_is_another_place(
    server: RedisServer, start: Start, tmp_path: Path
) -> None:
    """Its storing was not answered, and lost: now it has the same offset and another past."""
    x, lost_before, came_before = (Event(id, "tick", "1", 1, EVERYONE) for id in "xab")
    store = Store(server.url, NAMESPACE)
    (common,) = store.publish([Event("common", "tick", "0", 1, EVERYONE)], new_epoch="e")
    with server.client() as client:
        client.save()
    shutil.copy(server.folder / "dump.rdb", tmp_path / "old.rdb")
    _, first = (stored.cursor for stored in store.publish([lost_before, x], new_epoch="e"))
    server.kill()
    shutil.copy(tmp_path / "old.rdb", server.folder / "dump.rdb")
    server.start()
    _, second = (stored.cursor for stored in store.publish([came_before, x], new_epoch="e"))
    assert (first.epoch, first.offset) == (second.epoch, second.offset)
    assert store.read(first).verdict == "forked"
    assert store.read(second).verdict == store.read(common.cursor).verdict == "ok"
    worker = start(server.url)
    assert worker.bus.log.resolve(str(first)).gap == "forked"
    assert worker.bus.log.resolve(str(second)).resumed
    (again,) = store.publish([x], new_epoch="e")
    assert (again.cursor, again.prev) == (second, None), "a repeat has its place and its proof"


def test_r32_r68_a_promoted_replica_that_lost_the_tail_is_a_gap(
    server: RedisServer, start: Start, stack: ExitStack, tmp_path: Path
) -> None:
    """Acknowledged by a master that died before its replica heard: told, not hidden."""
    replica = stack.enter_context(redis_server(tmp_path / "replica"))
    # What the workers see as Redis is an address that changes hands.
    proxy, link = Proxy(server.port), Proxy(server.port)
    stack.callback(proxy.close)
    stack.callback(link.close)
    with replica.client() as follower:
        follower.replicaof("127.0.0.1", link.port)
        one, other = start(proxy.url), start(proxy.url)
        one.emit(5)
        one.until(lambda: follower.xlen(f"{{{NAMESPACE}}}:log") == 5, "the replica does not follow")
        common = one.bus.log.head
        link.swallow = True
        one.emit(3)
        agree(one, other, count=8)
        lost_one = one.bus.log.head
        server.kill()
        follower.execute_command("REPLICAOF", "NO", "ONE")
    proxy.retarget(replica.port)
    for worker in (one, other):
        worker.until(lambda worker=worker: lost(worker), "it never notices")  # type: ignore[misc]
    other.until_ok()
    other.emit(4)
    agree(one, other, count=9)
    for worker in (one, other):
        assert worker.bus.log.resolve(str(common)).resumed
        assert worker.bus.log.resolve(str(lost_one)).gap == "forked"


def test_r68_sentinel_leads_to_the_new_master(
    server: RedisServer, start: Start, stack: ExitStack, tmp_path: Path
) -> None:
    """A real Sentinel, a real failover: the workers find the new master by themselves."""
    replica = stack.enter_context(redis_server(tmp_path / "replica"))
    with replica.client() as follower:
        follower.replicaof("127.0.0.1", server.port)
    conf = tmp_path / "sentinel" / "sentinel.conf"
    conf.parent.mkdir()
    conf.write_text(
        f"sentinel monitor main 127.0.0.1 {server.port} 1\n"
        "sentinel down-after-milliseconds main 500\n"
        "sentinel failover-timeout main 2000\n"
    )
    sentinel = RedisServer(tmp_path / "sentinel")
    sentinel.sentinel(conf)
    stack.callback(sentinel.kill)
    with sentinel.client() as client, replica.client() as follower:
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"
        one, other = start(url), start(url)
        one.emit(5)
        agree(one, other)
        one.until(
            lambda: client.sentinel_slaves("main") and follower.xlen(f"{{{NAMESPACE}}}:log") == 5,
            "Sentinel does not know the replica",
        )
        server.kill()
        one.until_degraded()
        one.emit(2)
        agree(one, other, count=7)
        assert client.sentinel_get_master_addr_by_name("main")[1] == replica.port


@pytest.mark.parametrize("error", ["OOM", "READONLY", "NOAUTH"])
def test_r64_errors_of_redis_are_outages(server: RedisServer, start: Start, error: str) -> None:
    """Out of memory, demoted, locked: kept in the outbox, never an exception."""
    one, other = start(server.url), start(server.url)
    with server.client() as client:
        if error == "OOM":
            client.config_set("maxmemory", "1")
        elif error == "READONLY":
            client.replicaof("127.0.0.1", 1)
        else:
            client.config_set("requirepass", "secret")
            client.client_kill_filter(_type="normal", skipme=True)
            client.client_kill_filter(_type="pubsub")
        assert one.emit(2) == ["outbox", "outbox"]
        assert one.bus.state == "degraded"
        named = {"OOM": "memory", "READONLY": "read-only"}.get(error, "login")
        # A connection that was broken may be noticed before the reason is heard.
        one.until(lambda: re.search(named, one.bus.trouble), "the reason is not told")
        if error == "OOM":
            client.config_set("maxmemory", "0")
        elif error == "READONLY":
            client.execute_command("REPLICAOF", "NO", "ONE")
        else:
            client.config_set("requirepass", "")
    agree(one, other, count=2)


def test_r64_a_redis_that_is_loading_is_waited_for(
    server: RedisServer, start: Start, stack: ExitStack
) -> None:
    """It accepts connections and refuses commands; that is an outage like another."""
    one, other = start(server.url), start(server.url)
    one.emit(30)
    agree(one, other, count=30)
    with server.client() as client:
        for number in range(1500):
            client.set(f"other:{number}", "x" * 2000)
        client.save()
    server.kill()
    # Microseconds for each key that is loaded, and bytes after which it answers in between.
    slow = ["--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024"]
    loading = threading.Thread(target=server.start, args=slow)
    loading.start()
    stack.callback(loading.join)
    one.until(lambda: "loading" in one.bus.trouble, "it is not loading")
    assert one.emit(2) == ["outbox", "outbox"]
    with server.client() as client:
        client.config_set("key-load-delay", 0)
    agree(one, other, count=32)
    assert lost(one) == lost(other) == []


def test_all_keys_are_in_one_slot_of_a_cluster(
    tmp_path: Path, start: Start, stack: ExitStack
) -> None:
    """A node of a cluster runs the scripts; one that lost the slot says MOVED: an outage."""
    node = stack.enter_context(
        redis_server(
            tmp_path / "node",
            *("--cluster-enabled", "yes", "--cluster-node-timeout", "500"),
        )
    )
    with node.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        end = time.monotonic() + DEADLINE
        while "cluster_state:ok" not in str(client.execute_command("CLUSTER", "INFO")):
            assert time.monotonic() < end
        one, other = start(node.url), start(node.url)
        assert one.emit(5) == ["log"] * 5
        agree(one, other, count=5)
        slots = {client.execute_command("CLUSTER", "KEYSLOT", key) for key in one.store.keys}
        (slot,) = slots | {client.execute_command("CLUSTER", "KEYSLOT", one.store.channel)}
        client.execute_command("CLUSTER", "DELSLOTS", slot)
        assert one.emit(1) == ["outbox"]
        one.until_degraded()
        client.execute_command("CLUSTER", "ADDSLOTS", slot)
        agree(one, other, count=6)


def test_r69_a_clock_that_is_set_back_changes_nothing(
    tmp_path: Path, start: Start, stack: ExitStack
) -> None:
    """An hour back, in the middle of it: order and ids are counted and not taken from a clock."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    libraries = list(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not libraries:
        assert not os.environ.get("CI"), "no faketime; under CI nothing is skipped"
        pytest.skip("no faketime here (on Debian: apt-get install faketime)")
    server = stack.enter_context(
        redis_server(
            tmp_path / "redis",
            # Debian's Redis comes with jemalloc, which asks for the time before this can answer.
            program=find("valkey-8"),
            environ={
                "LD_PRELOAD": str(libraries[0]),
                "FAKETIME_TIMESTAMP_FILE": str(clock),
                "FAKETIME_NO_CACHE": "1",
                "DONT_FAKE_MONOTONIC": "1",
            },
        )
    )
    one, other = start(server.url), start(server.url)
    with server.client() as client:
        one.emit(5)
        before = client.time()[0]
        clock.write_text("-3600")
        assert client.time()[0] < before - 3000, "the clock was not set back"
        one.emit(5)
        other.emit(5)
        clock.write_text("+0")
        other.emit(5)
    agree(one, other, count=20)
    assert one.bus.log.last == 20
    assert lost(one) == lost(other) == []


def test_r72_twenty_workers_that_come_back_at_once_are_gentle(
    server: RedisServer, start: Start
) -> None:
    """Each reads what it missed, once or twice, and not all in the same moment."""
    server.kill()
    server.start("--appendonly", "yes", "--appendfsync", "always")
    workers = [start(server.url) for _ in range(20)]
    workers[0].emit(10)
    agree(*workers, count=10)
    server.kill()
    for worker in workers:
        worker.until_degraded()
        assert worker.emit(2) == ["outbox", "outbox"]
    server.start("--appendonly", "yes", "--appendfsync", "always")
    began = time.monotonic()
    agree(*workers, count=50)
    took = time.monotonic() - began
    with server.client() as client:
        calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    returns = {worker.bus._health.since for worker in workers}
    print(f"20 workers back after {took:.1f} s: {calls} calls, {len(returns)} different moments")
    # A probe, a reading before and after, the outbox, and a reading for each that was overtaken.
    assert calls <= 20 * 12
    assert len(returns) > 5, "all at once"


def test_r66_nothing_reads_from_the_end_or_waits_in_redis() -> None:
    """No `$` after which something could be skipped, no command that blocks past a timeout."""
    sources = "".join(path.read_text() for path in (ROOT / "hybrid").rglob("*.py"))
    scripts = "".join(path.read_text() for path in (ROOT / "hybrid").rglob("*.lua"))
    for command in ("xread", "xreadgroup", "blpop", "brpop", "bzpopmin"):
        assert f".{command}(" not in sources.lower()
        assert f"'{command.upper()}'" not in scripts
    assert "'$'" not in scripts


def test_r59_a_flapping_redis_loses_nothing(server: RedisServer, start: Start) -> None:
    """Up and down, up and down: every emit is answered truly, and all is there at the end."""
    server.kill()
    server.start("--appendonly", "yes", "--appendfsync", "always")
    one, other = start(server.url), start(server.url)
    emitted = 0
    for _ in range(5):
        one.emit(3)
        server.kill()
        one.until_degraded()
        other.emit(3)
        server.start("--appendonly", "yes", "--appendfsync", "always")
        one.emit(3)
        emitted += 9
    agree(one, other, count=emitted)
    held = one.numbers_held()
    assert len(held) == len(set(held)) == emitted
    assert set(lost(one)) | set(lost(other)) == set()


# -- what it costs


def test_r65_idle_costs_a_few_commands_and_two_connections(
    server: RedisServer, start: Start
) -> None:
    """A probe now and then, nothing else, and no error in all that quiet."""
    worker = start(server.url, probe=0.5)
    worker.emit(5)
    with server.client() as client:
        client.config_resetstat()
        for _ in range(4):
            probes = worker.ears.changed
            with probes:
                probes.wait(0.6)
        calls = {
            name.removeprefix("cmdstat_"): figures["calls"]
            for name, figures in client.info("commandstats").items()
        }
        ours = [each for each in client.client_list() if each["name"] == "flask-hybrid"]
    assert len(ours) == 3, "one listens, one reads, one stores"
    assert calls.get("evalsha", 0) <= 6
    assert set(calls) <= {"evalsha", "publish", "hmget", "config|resetstat", "info", "client|list"}
    assert worker.bus.state == "ok"
    assert worker.ears.of("announce") == []


def test_r47_every_command_ends(server: RedisServer) -> None:
    """A frozen Redis answers nothing: the client says so by itself, and does not try again."""
    client = connect(server.url)
    retry = client.get_retry()
    assert retry is not None
    assert retry._retries == 0, "of redis-py, in all its versions"
    options = client.connection_pool.connection_kwargs
    assert 0 < options["socket_timeout"] < 0.5
    assert 0 < options["socket_connect_timeout"] < 0.5
    server.stop()
    with pytest.raises(redis.TimeoutError):
        client.ping()
    client.connection_pool.disconnect()


@pytest.mark.parametrize(
    "url",
    [
        *("http://h", "redis+sentinel://h:1", "redis+sentinel://h:x/main", "redis://h:port"),
        *("redis://h?max_connections=1", "redis+sentinel://h/main?socket_timeout=5"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused(url: str) -> None:
    """At the start, and without the password."""
    with pytest.raises((ConfigError, ValueError)):
        connect(url)


def test_a_log_that_is_another_one_is_a_line_in_the_log(
    server: RedisServer, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reason that clients are told, and what to do; not at the start of a process."""
    worker = start(server.url)
    worker.emit(3)
    assert "another one" not in caplog.text
    with server.client() as client:
        client.flushall()
    worker.emit(1)
    worker.until(lambda: "another one than before (epoch)" in caplog.text, "nothing is logged")
    assert "appendonly yes" in caplog.text


def test_a_probe_that_finds_the_connection_in_use_is_no_outage(
    server: RedisServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who stores has it all the time: that says nothing about Redis."""
    worker = start(server.url, probe=0.1)
    probe, failed = worker.store.probe, threading.Semaphore(0)

    def probe_and_tell(*arguments: str) -> Any:
        try:
            return probe(*arguments)
        except redis.ConnectionError:
            failed.release()
            raise

    monkeypatch.setattr(worker.store, "probe", probe_and_tell)
    pool = worker.store._storing.connection_pool
    connection = pool.get_connection()
    try:
        for _ in range(2):
            assert failed.acquire(timeout=DEADLINE)
    finally:
        pool.release(connection)
    assert worker.emit(1) == ["log"]
    assert worker.ears.of("announce") == []


def test_foreign_bytes_and_doorbells_are_no_outage(server: RedisServer, start: Start) -> None:
    """Who writes Latin-1 or nonsense harms nobody: not who is here, not who comes later."""
    worker = start(server.url, probe=60)
    with server.client() as client:
        client.publish(worker.store.channel, "e x")
        worker.until(lambda: worker.bus._copy.malformed == 1, "it is not counted")
        script = client.register_script((LUA / "publish.lua").read_text())
        latin = b'{"type":"t","data":"caf\xe9"}'
        script(keys=worker.store.keys, args=[worker.store.channel, "e", "", "", "", "raw", latin])
        with pytest.raises(redis.ResponseError, match="epoch"):
            script(keys=worker.store.keys, args=[worker.store.channel, "a b", "", "", ""])
    worker.until(lambda: worker.bus.log.find("raw"), "it is not taken in")
    late = start(server.url)
    assert late.bus.log.find("raw")
    assert worker.emit(1) == late.emit(1) == ["log"]
    assert worker.ears.of("announce") == late.ears.of("announce") == []


@pytest.mark.parametrize("taken", [3, 500, 600])
def test_a_log_with_a_hole_begins_after_it(server: RedisServer, start: Start, taken: int) -> None:
    """Somebody deletes one event: processes that start read on behind it."""
    worker = start(server.url)
    events = [
        Event(f"h{n}", "tick", str(n), worker.bus._copy._clock(), EVERYONE) for n in range(1, 601)
    ]
    worker.bus.publish(events)
    with server.client() as client:
        assert client.xdel(worker.store.keys[0], f"{taken}-0") == 1
    late = start(server.url)
    assert late.bus.state == "ok"
    assert late.numbers_held() == list(range(taken + 1, 601))
    assert late.emit(1) == ["log"]


def test_an_event_that_redis_refuses_blocks_nobody(
    server: RedisServer, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """It is dropped aloud; what stands behind it is stored, in order."""
    worker = start(server.url)
    server.stop()
    worker.emit(2)
    at = worker.bus._copy._clock()
    worker.bus.publish([Event("not an id", "tick", "0", at, EVERYONE)])
    worker.emit(2)
    server.go_on()
    worker.until_ok()
    assert len(worker.numbers_held()) == 4
    assert worker.numbers_held() == sorted(worker.numbers_held())
    assert worker.bus.dropped == 1
    assert "not an id" in caplog.text


def test_the_outbox_is_stored_in_calls_that_a_thin_line_takes(
    server: RedisServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded by bytes, and halved where a call did not come through."""
    worker = start(server.url)
    server.stop()
    at = worker.bus._copy._clock()
    for number in range(20):
        body = f'"{number:060000}"'
        worker.bus.publish([Event(f"big{number}", "big", body, at, EVERYONE)])
    for number in range(40):
        body = f'"{number:01000}"'
        worker.bus.publish([Event(f"small{number}", "small", body, at, EVERYONE)])
    sizes: list[int] = []
    original = worker.store.publish

    def publish(events: Any, **how: Any) -> Any:
        sizes.append(sum(len(event.body) for event in events))
        if sizes[-1] > 10_000 and len(events) > 1:
            raise redis.TimeoutError("the line is too thin")
        return original(events, **how)

    monkeypatch.setattr(worker.store, "publish", publish)
    server.go_on()
    worker.until(lambda: worker.bus.log.last >= 60 and worker.bus.state == "ok", "it is stuck")
    assert max(sizes) <= 1 << 16


def test_sentinels_are_asked_once(server: RedisServer) -> None:
    """No ten tries at a host that is gone, and no connections without a bound."""
    client = connect("redis+sentinel://127.0.0.1:1,127.0.0.1:2/main")
    pool: Any = client.connection_pool
    assert pool.max_connections < 1000
    for sentinel in pool.sentinel_manager.sentinels:
        assert sentinel.connection_pool.connection_kwargs["retry"].get_retries() == 0


@pytest.mark.parametrize("at", ["-1", "1e300", "9007199254740992"])
def test_a_time_that_nobody_can_count_is_now(at: str) -> None:
    """Clients in JavaScript read it."""
    assert decode("a", f'{{"type":"t","at":{at}}}', 17) == decode("a", '{"type":"t"}', 17)


def test_unix_sockets_work(tmp_path: Path, start: Start, stack: ExitStack) -> None:
    """For the Redis on the same machine."""
    path = Path(stack.enter_context(short_folder())) / "r.sock"
    stack.enter_context(redis_server(tmp_path / "redis", "--unixsocket", str(path)))
    worker = start(f"unix://{path}?db=0")
    assert worker.emit(2) == ["log", "log"]


def short_folder() -> Any:
    import tempfile

    return tempfile.TemporaryDirectory()  # a socket's path has 108 characters at most


def test_the_raw_form_of_the_documentation_works(
    server: RedisServer, start: Start, tmp_path: Path
) -> None:
    """What docs/redis.md shows to other languages, run as it stands there."""
    import subprocess

    text = (ROOT / "docs/redis.md").read_text()
    found = re.search(r"```sh\n(redis-cli.*?)```", text, re.DOTALL)
    assert found
    worker = start(server.url)
    command = (
        found[1]
        .replace("redis-cli", f"redis-cli -p {server.port}")
        .replace("{hybrid}", f"{{{NAMESPACE}}}")
    )
    for _ in range(2):  # twice: the id makes it one event
        done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "ERR" not in done.stdout, done.stdout
    worker.until(lambda: worker.bus.log.last == 1, "it never arrives")
    (entry,) = worker.bus.log.between(0, 1) or []
    assert entry.event.type == "order.shipped"
    assert entry.event.data == {"number": 17}
    assert entry.event.audience == Audience.of(users=["alice"], roles=(), topics=())
