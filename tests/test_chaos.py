"""Several gunicorn workers, one real Redis, and everything that can go wrong, at random.

Clients hop between servers, workers and transports; events come from every worker and from
outside; Redis is killed, frozen, paused, emptied and cut off; workers are killed. Afterwards every
client's history is held against what Redis has stored. CHAOS=600 runs for ten minutes.
"""

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
import pytest

from hybrid import HybridError, Publisher
from hybrid.audience import Audience
from hybrid.events import Cursor
from redises import Proxy, RedisServer, redis_server
from servers import DEADLINE, PREFIX, Server, gunicorn
from whatwg import Parser

SECONDS = float(os.environ.get("CHAOS", "20"))
PEOPLE = {"alice": ["boss"], "bob": [], "carol": []}
AUDIENCES: tuple[dict[str, list[str]], ...] = (
    {},
    {"users": ["alice"]},
    {"users": ["bob"]},
    {"roles": ["boss"]},
)
KEEP = ("--appendonly", "yes", "--appendfsync", "always")


@dataclass
class Truth:
    """What was ever stored, by epoch and offset."""

    events: dict[str, dict[int, tuple[str, Audience]]] = field(default_factory=dict)

    def learn(self, epoch: str | None, entries: list[Any]) -> None:
        if epoch is None:
            return
        known = self.events.setdefault(epoch, {})
        for place, fields in entries:
            event = json.loads(fields["event"])
            audience = Audience.of(event.get("users"), event.get("roles"), event.get("topics"))
            offset = int(place.split("-")[0])
            assert known.setdefault(offset, (fields["id"], audience))[0] == fields["id"], "I3"


class Someone(threading.Thread):
    """A client: hops, reads, remembers. Checks at once what needs no truth."""

    def __init__(self, name: str, ports: list[int], seed: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.user = name
        self.ports = ports
        self.dice = random.Random(seed)
        self.stop = stop
        self.cursor: str | None = None
        self.story: list[tuple[str, str, str]] = []
        """(what, cursor, event id or reason): `at`, `gap`, `event`, `provisional`."""
        self.trouble: str | None = None

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                self.visit(polite=False)
        except Exception as error:
            self.trouble = repr(error)

    def visit(self, *, polite: bool, until: str | None = None) -> None:
        """One connection somewhere, for a while."""
        query = [("user", self.user), *(("role", role) for role in PEOPLE[self.user])]
        if self.cursor:
            query.append(("since", self.cursor))
        connection = HTTPConnection("127.0.0.1", self.dice.choice(self.ports), timeout=1)
        try:
            if self.dice.random() < 0.4:
                self._poll(connection, query)
            else:
                self._stream(connection, query, until)
        except (OSError, HTTPException):
            if not polite:
                self.stop.wait(0.05)
        finally:
            connection.close()

    def _poll(self, connection: HTTPConnection, query: list[tuple[str, str]]) -> None:
        wait = self.dice.choice(["0", "0.5"])
        connection.request("GET", f"{PREFIX}/polling?{urlencode([*query, ('wait', wait)])}")
        response = connection.getresponse()
        body = json.loads(response.read())
        assert response.status == 200, body
        if body["gap"]:
            self._note("gap", body["cursor"], body["gap"]["reason"])
        for event in body["events"]:
            if event["cursor"]:
                self._note("event", event["cursor"], event["id"])
            else:
                self._note("provisional", "", event["id"])
        self._note("at", body["cursor"], "")

    def _stream(
        self, connection: HTTPConnection, query: list[tuple[str, str]], until: str | None
    ) -> None:
        connection.request("GET", f"{PREFIX}/sse?{urlencode(query)}")
        response = connection.getresponse()
        assert response.status == 200, response.read()
        parser = Parser()
        end = time.monotonic() + self.dice.choice([0.1, 0.5, 3])
        while not self.stop.is_set() or until:
            data = response.read1(4096)
            if not data:
                return
            for block in parser.feed(data):
                cursor = block.id or ""
                if block.type == "hybrid.gap":
                    self._note("gap", cursor, json.loads(block.data)["reason"])
                elif block.type == "tick" and cursor:
                    self._note("event", cursor, cursor.split(".")[2])
                elif block.type == "tick":
                    self._note("provisional", "", dict(block.fields)["eid"])
                elif cursor:
                    self._note("at", cursor, "")
            if parser.last_event_id and parser.last_event_id != self.cursor:
                self._note("at", parser.last_event_id, "")
            if time.monotonic() > end or (until and self.cursor == until):
                return

    def _note(self, what: str, cursor: str, id: str) -> None:
        self.story.append((what, cursor, id))
        if cursor:
            self.cursor = cursor

    def judge(self, truth: Truth) -> tuple[int, int]:
        """Hold the story against the truth; how many events and gaps it has."""
        had: set[str] = set()
        position: Cursor | None = None
        since_gap: set[str] = set()
        events = gaps = 0
        for what, text, id in self.story:
            if what == "provisional":
                had.add(id)
                continue
            cursor = Cursor.parse(text)
            assert cursor is not None, text
            if what == "gap":
                gaps += 1
                position, since_gap = cursor, set()
                continue
            stored = truth.events.get(cursor.epoch, {})
            if what == "event":
                events += 1
                assert stored[cursor.offset][0] == id == text.split(".")[2], "I3: another's place"
                audience = stored[cursor.offset][1]
                assert id not in since_gap, f"{id} came twice"
                since_gap.add(id)
                assert (
                    audience.everyone
                    or self.user in audience.users
                    or (set(PEOPLE[self.user]) & audience.roles)
                ), "the wrong person"
            if position is not None and cursor != position:
                assert cursor.epoch == position.epoch, f"from {position} to {cursor} without a gap"
                assert cursor.offset >= position.offset, f"back from {position} to {cursor}"
                last = cursor.offset - (what == "event")
                for offset in range(position.offset + 1, last + 1):
                    lost, audience = stored[offset]
                    mine = audience.everyone or self.user in audience.users
                    mine = mine or bool(set(PEOPLE[self.user]) & audience.roles)
                    assert not mine or lost in had or lost in since_gap, (
                        f"{self.user} lost {lost} between {position} and {cursor}"
                    )
            had.add(id)
            position = cursor
        return events, gaps


class Weather:
    """What goes wrong, and how it is made good again."""

    def __init__(
        self,
        dice: random.Random,
        redis: RedisServer,
        proxy: Proxy,
        servers: list[Server],
        truth: Truth,
    ) -> None:
        self.dice = dice
        self.redis = redis
        self.proxy = proxy
        self.servers = servers
        self.truth = truth
        self.count: dict[str, int] = {}

    def strike(self) -> None:
        what = self.dice.choice(
            ["kill", "freeze", "pause", "empty", "cut", "swallow", "deafen", "worker", "pubsub"]
        )
        self.count[what] = self.count.get(what, 0) + 1
        length = self.dice.choice([0.1, 0.7, 2.5])
        if what == "kill":
            self.redis.kill()
            time.sleep(length)  # how long Redis is away
            self.redis.start(*KEEP)
        elif what == "freeze":
            self.redis.stop()
            time.sleep(length)
            self.redis.go_on()
        elif what == "pause":
            with self.redis.client() as client:
                client.client_pause(int(length * 1000))
        elif what == "empty":
            self.learn(and_empty=True)
        elif what == "cut":
            self.proxy.refuse = True
            self.proxy.cut()
            time.sleep(length)
            self.proxy.refuse = False
        elif what in ("swallow", "deafen"):
            setattr(self.proxy, what, True)
            time.sleep(length)
            setattr(self.proxy, what, False)
            self.proxy.cut()
        elif what == "worker":
            workers = psutil.Process(self.dice.choice(self.servers).process.pid).children()
            if workers:
                self.dice.choice(workers).send_signal(signal.SIGKILL)
        else:
            with self.redis.client() as client:
                client.client_kill_filter(_type="pubsub")

    def learn(self, *, and_empty: bool = False) -> None:
        """Take down what is stored; in the same step, perhaps, delete it."""
        with self.redis.client() as client, client.pipeline(transaction=True) as pipe:
            pipe.hget("{hybrid}:meta", "epoch")
            pipe.xrange("{hybrid}:log")
            if and_empty:
                pipe.flushall()
            epoch, entries, *_ = pipe.execute()
        self.truth.learn(epoch, entries)


@pytest.mark.server
def test_r71_chaos(tmp_path: Path, seed: int) -> None:
    """Order, nothing lost without a gap, nothing twice, nobody else's; and all end at the head."""
    dice = random.Random(seed)
    truth = Truth()
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(tmp_path / "redis", *KEEP))
        proxy = Proxy(redis.port)
        stack.callback(proxy.close)
        servers = [
            stack.enter_context(
                gunicorn(
                    tmp_path / f"log{number}",
                    *("-w", "2"),
                    url=url,
                    probe_seconds=0.5,
                    heartbeat_seconds=0.5,
                    history_events=1_000_000,
                    publish_key="the key of the tests",
                )
            )
            for number, url in enumerate([redis.url, proxy.url])
        ]
        weather = Weather(dice, redis, proxy, servers, truth)
        stop = threading.Event()
        ports = [server.port for server in servers]
        people = [
            Someone(name, ports, dice.randrange(1 << 30), stop) for name in PEOPLE for _ in range(3)
        ]
        publisher = Publisher(redis.url, budget=0.5)
        stack.callback(publisher.close)
        answers: dict[str, int] = {}

        def emit() -> None:
            own = random.Random(seed)
            while not stop.is_set():
                audience: dict[str, Any] = own.choice(AUDIENCES)
                try:
                    if own.random() < 0.3:
                        publisher.emit("tick", own.random(), **audience)
                        outcome = "publisher"
                    else:
                        status, _ = own.choice(servers).call(
                            "POST",
                            f"{PREFIX}/publish",
                            {"type": "tick", "data": own.random(), **audience},
                            {"Authorization": "Bearer the key of the tests"},
                        )
                        outcome = str(status)
                except (OSError, HTTPException, HybridError) as error:
                    outcome = type(error).__name__
                answers[outcome] = answers.get(outcome, 0) + 1
                stop.wait(0.005)

        threads = [*people, threading.Thread(target=emit, daemon=True)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            weather.strike()
            stop.wait(dice.choice([0.2, 1, 2]))
        stop.set()
        for thread in threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()
        _calm(servers, redis)
        weather.learn()
        head = _head(redis)
        for person in people:
            assert person.trouble is None, person.trouble
            tries = time.monotonic() + DEADLINE
            while person.cursor != head:
                assert time.monotonic() < tries, f"{person.cursor} never comes to {head}"
                person.visit(polite=True, until=head)
        figures = [person.judge(truth) for person in people]
        reasons = Counter(id for person in people for what, _, id in person.story if what == "gap")
        print(f"SEED={seed}", weather.count, answers, "events and gaps:", figures, dict(reasons))
        # Redis never turned back here, and no worker may say so for being a moment behind.
        assert not {"rollback", "forked"} & reasons.keys()
        # It would show nothing in good weather.
        assert sum(events for events, _ in figures) > 100
        assert "500" not in answers
        assert answers.get("201", 0) > 50


def _head(redis: RedisServer) -> str:
    with redis.client() as client:
        return ".".join(client.hmget("{hybrid}:meta", "epoch", "offset", "mark"))


def _calm(servers: list[Server], redis: RedisServer) -> None:
    """Wait until every worker of every server is well and has stored what it kept."""
    end = time.monotonic() + 2 * DEADLINE
    calm = 0
    before = ""
    while calm < 12:
        assert time.monotonic() < end, [server.monitor()["instance"] for server in servers]
        well = True
        for server in servers:
            instance = server.monitor()["instance"]  # of whichever worker answers
            well = well and instance["bus"] == "ok" and instance["outbox"] == 0
        head = _head(redis)
        calm = calm + 1 if well and head == before else 0
        before = head
        time.sleep(0.05)  # between two looks: nobody tells when the last worker is well
