"""Two users, every way to read, rights that change: not one event to the wrong reader."""

import json
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from redises import redis_server
from servers import DEADLINE, PREFIX, Server, gunicorn, tracebacks

pytestmark = pytest.mark.server
WAYS = ["sse", "header", "poll", "long"]
PHASES = 8
EVENTS = 60
ROLES = ["manager", "clerk", "nobody-has-this"]
TOPICS = ["red", "blue", "nobody-may-read-this"]
USERS = ["alice", "bob"]
Rights = dict[str, Any]


class Hunt:
    """What may be seen, and what was. Rights change in phases; between two, either may hold."""

    def __init__(self, server: Server, dice: random.Random) -> None:
        self.server = server
        self.dice = dice
        self.allowed: list[Rights] = []
        """The rights that may hold now: one, or two in the middle of a change."""
        self.seen: Counter[str] = Counter()
        self.withheld = 0
        self.wrong: list[Any] = []
        self.readers: list[str] = []
        self.marks: dict[str, int] = {}
        self.over = False
        self.lock = threading.Lock()

    def judge(self, reader: "Reader", topics: list[str], way: str, data: Any) -> None:
        user = reader.user
        with self.lock:
            if "mark" in data:
                self.marks[reader.name] = data["mark"]
                return
            self.seen[way] += 1
            if not any(admits(rights[user], user, topics, data) for rights in self.allowed):
                self.wrong.append((user, topics, way, data, self.allowed))

    def change(self, number: int) -> None:
        """New rights, and the wait until they hold for all that is still to come."""
        new = {
            user: {
                "roles": [role for role in ROLES[:2] if self.dice.random() < 0.5],
                "topics": [topic for topic in TOPICS[:2] if self.dice.random() < 0.5],
            }
            for user in USERS
        }
        with self.lock:
            self.allowed = [*self.allowed[-1:], new]
        before = self.server.call("POST", "/rights", new)[1]["rounds"]
        # Three wraps: a whole round has begun after the change, and its answers are there.
        self.server.until(
            lambda: self.server.call("GET", "/rounds")[1]["rounds"] >= before + 3, "no look"
        )
        # What was sent before the look is on its way; the mark is behind it in every reader.
        self.server.emit("tick", data={"mark": number})
        end = time.monotonic() + DEADLINE
        while any(self.marks.get(name) != number for name in self.readers):
            assert time.monotonic() < end, f"a reader is stuck: {self.marks}"
            time.sleep(0.01)
        with self.lock:
            self.allowed = [new]

    def emit(self) -> None:
        dice = self.dice
        audience = {
            "users": dice.sample(USERS, dice.randrange(2)),
            "roles": dice.sample(ROLES, dice.randrange(2)),
            "topics": dice.sample(TOPICS, dice.randrange(2)),
        }
        readers = [user for user in USERS if admits(self.allowed[-1][user], user, TOPICS, audience)]
        self.withheld += len(USERS) - len(readers)
        self.server.emit("tick", data=audience, **audience)


def admits(rights: Rights, user: str, topics: list[str], audience: Any) -> bool:
    """The rule, written a second time."""
    return (
        user in audience["users"]
        or bool(set(rights["roles"]) & set(audience["roles"]))
        or bool(set(rights["topics"]) & set(topics) & set(audience["topics"]))
    )


class Reader(threading.Thread):
    """One user who reads in every way, with one cursor; or who stays on each stream."""

    def __init__(self, hunt: Hunt, user: str, seed: int, *, stays: bool) -> None:
        super().__init__(name=f"{user} {'stays' if stays else 'hops'}", daemon=True)
        self.hunt, self.user, self.stays = hunt, user, stays
        hunt.readers.append(self.name)
        self.dice = random.Random(seed)
        self.cursor = "0"
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.hunt.over:
                self.read("sse" if self.stays else self.dice.choice(WAYS))
        except BaseException as error:
            self.failed = error

    def read(self, way: str) -> None:
        topics = self.dice.sample(TOPICS, self.dice.randrange(3))
        query = [("topic", topic) for topic in topics]
        if way in ("poll", "long"):
            wait = [("wait", "0.5")] if way == "long" else []
            full = urlencode([*query, *wait, ("since", self.cursor)])
            status, answer = self.hunt.server.call(
                "GET", f"{PREFIX}/polling?{full}", headers={"X-User": self.user}
            )
            if status == 403:
                return
            assert status == 200, answer
            assert answer["gap"] is None
            for event in answer["events"]:
                self.hunt.judge(self, topics, way, event["data"])
            self.cursor = answer["cursor"]
            return
        headers = {"X-User": self.user}
        if way == "header":
            headers["Last-Event-ID"] = self.cursor
        else:
            query.append(("since", self.cursor))
        with self.hunt.server.stream(urlencode(query), headers=headers) as stream:
            if stream.read_head() == 403:
                return
            done = 0
            for _ in range(self.dice.randrange(1, 400 if self.stays else 12)):
                stream._receive()
                stream._feed()
                for block in stream.blocks[done:]:
                    assert block.type != "hybrid.gap"
                    if block.type == "tick":
                        self.hunt.judge(self, topics, way, json.loads(block.data))
                done = len(stream.blocks)
                if stream.ended or self.hunt.over:
                    break
            self.cursor = stream.parser.last_event_id or self.cursor


def test_r04_the_leak_hunt(tmp_path: Path, seed: int) -> None:
    """Random audiences, roles and topics given and taken, reconnects, streams and polls.

    A change of rights counts from the end of one whole round of looks after it.
    """
    dice = random.Random(seed)
    with gunicorn(tmp_path / "log", app="hunt_app:app", heartbeat_seconds=0.3) as server:
        hunt = Hunt(server, dice)
        nothing: Rights = {user: {"roles": [], "topics": []} for user in USERS}
        hunt.allowed = [nothing]
        server.call("POST", "/rights", nothing)
        readers = [
            Reader(hunt, user, dice.randrange(2**32), stays=stays)
            for user in USERS
            for stays in (False, True)
        ]
        for reader in readers:
            reader.start()
        try:
            for number in range(PHASES):
                hunt.change(number)
                for _ in range(EVENTS):
                    hunt.emit()
        finally:
            hunt.over = True
            for reader in readers:
                reader.join(DEADLINE)
        assert [reader.failed for reader in readers] == [None] * 4
        print(f"seen {dict(hunt.seen)}, withheld {hunt.withheld}")
        assert hunt.wrong == []
        assert min(hunt.seen[way] for way in WAYS) > 0
        assert hunt.withheld > EVENTS
    assert tracebacks(tmp_path / "log") == []


def test_r85_slow_look_ups_keep_nobody_connected(tmp_path: Path) -> None:
    """Users whose look-up takes longer than this test waits: who is shut out is gone meanwhile."""
    fair: Rights = {"roles": [], "topics": []}
    slow = [f"slow{number}" for number in range(6)]
    with gunicorn(tmp_path / "log", app="hunt_app:app", heartbeat_seconds=2) as server:
        server.call("POST", "/rights", dict.fromkeys([*slow, "alice", "bob"], fair))
        streams = {
            user: server.stream(headers={"X-User": user}) for user in [*slow, "alice", "bob"]
        }
        for stream in streams.values():
            stream.hello()
        late: Rights = fair | {"slow": 2 * DEADLINE}
        server.call("POST", "/rights", {"bob": fair, **dict.fromkeys(slow, late)})
        for user, reason in [("alice", "revoked"), *((user, "unavailable") for user in slow)]:
            (bye,) = streams[user].take(1, "hybrid.bye")
            assert json.loads(bye.data)["reason"] == reason
        server.emit(data=1, users=["bob"])
        streams["bob"].take(1)


def test_r85_a_revocation_reaches_every_instance(tmp_path: Path) -> None:
    """Streams of one user on two instances end with `revoked`; those of another go on."""
    with (
        redis_server(tmp_path / "redis") as redis,
        gunicorn(tmp_path / "log", url=redis.url, heartbeat_seconds=5) as one,
        gunicorn(tmp_path / "log", url=redis.url, heartbeat_seconds=5) as other,
    ):
        hers = [server.stream("user=alice") for server in (one, other) for _ in range(6)]
        his = [server.stream("user=bob") for server in (one, other)]
        for stream in hers + his:
            stream.hello()
        assert one.call("POST", "/revoke?user=alice")[1]["told"] == 6
        for stream in hers:
            (bye,) = stream.take(1, "hybrid.bye")
            assert json.loads(bye.data)["reason"] == "revoked"
            stream.rest()
        one.emit(data=1, users=["bob"])
        for stream in his:
            stream.take(1)
