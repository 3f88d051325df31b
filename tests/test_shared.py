"""Several instances, one shared log, stepped by hand: what the Redis bus decides, and when.

The bus, the hub and the streams are the real ones; Redis is a model of the three scripts. Its
connections break before and after a command has taken effect, its messages get lost, it forgets,
it turns back to an older copy. Clients hop between instances. After each history every promise
of docs/protocol.md is checked for every client, from the bytes that it received.
"""

import json
import os
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from greenlet import getcurrent, greenlet

import stage
from hybrid.audience import EVERYONE, Audience, Identity, visible
from hybrid.bus import Bus
from hybrid.bus import redis as bus_redis
from hybrid.bus.redis import RedisBus
from hybrid.bus.store import Page, Stored, decode, encode
from hybrid.errors import OutboxFull
from hybrid.events import ORIGIN, Cursor, Event, make_event
from hybrid.hub import Hub
from hybrid.log import Entry, Log, Start
from hybrid.wire import to_json
from stage import Client, Stage
from whatwg import Block


def give_way() -> None:
    parent = getcurrent().parent
    if parent is not None:
        parent.switch()


# -- Redis


@dataclass
class FakeRedis:
    """What the scripts do, without Redis; and everything that was ever stored."""

    history: int
    epoch: str | None = None
    entries: list[tuple[int, str, Event]] = field(default_factory=list)
    last: int = 0
    last_id: str = ORIGIN
    down: bool = False
    subscribers: list["FakeSubscription"] = field(default_factory=list)
    events: dict[str, Event] = field(default_factory=dict)
    """By cursor."""
    before: dict[str, str] = field(default_factory=dict)
    """The cursor of each event's predecessor."""
    trimmed: set[str] = field(default_factory=set)
    """Ids that Redis no longer knows: an event that was tried before may be stored again."""
    ever: Counter[str] = field(default_factory=Counter)
    """How often each event id was stored."""

    def holds(self, cursor: Cursor) -> bool:
        return cursor.epoch == self.epoch and any(
            offset == cursor.offset and event.id == cursor.id for offset, _, event in self.entries
        )

    def publish(self, events: Sequence[Event], new_epoch: str) -> list[Stored]:
        self.found(new_epoch)
        assert self.epoch is not None
        answer = []
        for event in events:
            known = [offset for offset, _, held in self.entries if held.id == event.id]
            if known:
                answer.append(Stored(self.epoch, known[0], None))
                continue
            before = Cursor(self.epoch, self.last, self.last_id)
            self.last += 1
            cursor = Cursor(self.epoch, self.last, event.id)
            self.entries.append((self.last, self.last_id, event))
            self.events[str(cursor)] = event
            self.before[str(cursor)] = str(before)
            self.ever[event.id] += 1
            answer.append(Stored(self.epoch, self.last, self.last_id))
            message = f"e {self.epoch} {self.last} {self.last_id} {event.id} "
            self.last_id = event.id
            for subscriber in self.subscribers:
                subscriber.queue.append(("events", message, event))
        surplus = max(0, len(self.entries) - self.history)
        self.trimmed |= {event.id for _, _, event in self.entries[:surplus]}
        del self.entries[:surplus]
        return answer

    def found(self, epoch: str) -> None:
        if self.epoch is None:
            self.epoch, self.entries, self.last, self.last_id = epoch, [], 0, ORIGIN

    def read(self, position: Cursor | None) -> Page:
        if self.epoch is None:
            return Page("empty", None, ())
        head = Cursor(self.epoch, self.last, self.last_id)
        if position is None:
            return Page("ok", head, tuple(self.entries[:7]))
        rest = [entry for entry in self.entries if entry[0] > position.offset]
        verdict = "ok"
        if position.epoch != self.epoch:
            verdict = "epoch"
        elif position.offset > self.last:
            verdict = "rollback"
        elif position.offset == self.last:
            verdict = "ok" if position.id == self.last_id else "forked"
        elif not rest or rest[0][0] != position.offset + 1:
            verdict = "expired"
        elif rest[0][1] != position.id:
            verdict = "forked"
        return Page(verdict, head, tuple(rest[:7]) if verdict == "ok" else ())

    def forget(self) -> None:
        self.epoch, self.entries, self.last, self.last_id = None, [], 0, ORIGIN

    def lose_tail(self, count: int) -> None:
        """A replica that lagged is promoted: what came last was acknowledged and is gone."""
        for _ in range(min(count, len(self.entries) - 1)):
            offset, prev, _ = self.entries.pop()
            self.last, self.last_id = offset - 1, prev

    def copy(self) -> Any:
        return (self.epoch, list(self.entries), self.last, self.last_id)

    def restore(self, copy: Any) -> None:
        self.epoch, entries, self.last, self.last_id = copy
        self.entries = list(entries)


class FakeSubscription:
    """A subscriber's connection; time passes while it has nothing to say."""

    def __init__(self, store: "FakeStore", channels: Sequence[str]) -> None:
        self.store = store
        self.queue: deque[tuple[str, str, Event | None]] = deque()
        self.confirmations = len(channels)
        self.broken = False
        self.channels = channels
        store.world.redis.subscribers.append(self)

    def get_message(self, timeout: float) -> dict[str, Any] | None:
        give_way()
        self.store.check()
        if self.broken:
            raise redis.ConnectionError("cut")
        if self.confirmations:
            self.confirmations -= 1
            return {"type": "subscribe", "channel": "", "data": 1}
        if not self.queue:
            return None
        channel, text, event = self.queue.popleft()
        if event is not None:
            text += encode(event)
        return {"type": "message", "channel": channel, "data": text}

    def close(self) -> None:
        if self in self.store.world.redis.subscribers:
            self.store.world.redis.subscribers.remove(self)


class FakeStore:
    """One instance's way to Redis."""

    channel = "events"

    def __init__(self, world: "World") -> None:
        self.world = world
        self.cut = False

    def check(self) -> None:
        if self.world.redis.down or self.cut:
            raise redis.ConnectionError("out of reach")

    def _do(self, act: Any) -> Any:
        dice = self.world.dice
        give_way()
        self.check()
        if dice.random() < self.world.faults:
            raise redis.TimeoutError("before it was done")
        answer = act()
        give_way()
        if self.world.redis.down or dice.random() < self.world.faults:
            raise redis.TimeoutError("after it was done")
        return answer

    def publish(self, events: Sequence[Event], *, new_epoch: str) -> list[Stored]:
        stored: list[Stored] = self._do(lambda: self.world.redis.publish(events, new_epoch))
        return stored

    def found(self, epoch: str) -> None:
        self._do(lambda: self.world.redis.found(epoch))

    def read(self, position: Cursor | None) -> Page:
        page: Page = self._do(lambda: self.world.redis.read(position))
        return page

    def probe(self, channel: str, message: str) -> Cursor | None:
        def ring() -> Cursor | None:
            fake = self.world.redis
            for subscriber in fake.subscribers:
                if channel in subscriber.channels:
                    subscriber.queue.append((channel, message, None))
            return None if fake.epoch is None else Cursor(fake.epoch, fake.last, fake.last_id)

        head: Cursor | None = self._do(ring)
        return head

    def subscribe(self, *channels: str) -> FakeSubscription:
        self.check()
        return FakeSubscription(self, [self.channel, *channels])


class SteppedBus(RedisBus):
    """The real bus, whose waiting gives way to the stage."""

    def _rest(self, seconds: float) -> None:
        end = self._monotonic() + seconds
        while self._running and self._monotonic() < end:
            give_way()


# -- the world


class Worker(Stage):
    """One instance: its stage, its bus, its listener."""

    def __init__(self, world: "World", seed: int, outbox: int) -> None:
        self.world = world
        self.store = FakeStore(world)

        def make_bus(_stage: Stage, log: Log) -> RedisBus:
            bus = SteppedBus(
                self.store,  # type: ignore[arg-type]
                self.hub,
                make_log=self.make_log,
                log=log,
                clock=self.wall,
                outbox=outbox,
                probe=world.probe,
                monotonic=lambda: self.now,
                random=world.dice.random,
                new_id=world.new_id,
            )
            bus._running = True
            return bus

        super().__init__(
            seed,
            history=world.history,
            heartbeat=1,
            writes_per_turn=world.dice.choice([1, 2, 5]),
            make_bus=make_bus,
        )
        assert isinstance(self.bus, RedisBus)
        self.listener = greenlet(self.bus._run)
        self.emitters: list[greenlet] = []
        world.ever.append(self)

    def emit_soon(self, event: Event) -> None:
        """As a request would: it may take its time."""

        def emit() -> None:
            world = self.world
            try:
                (receipt,) = self.bus.publish([event])
            except OutboxFull:
                world.refused.add(event.id)
                return
            if receipt.stored == "log":
                assert receipt.cursor is not None
                world.acknowledged[event.id] = str(receipt.cursor)
                assert str(receipt.cursor) in world.redis.events, "an ack of what is not stored"
            else:
                world.promised[event.id] = self

        self.emitters.append(greenlet(emit))

    def step_emitter(self) -> None:
        if self.emitters:
            emitter = self.world.dice.choice(self.emitters)
            emitter.switch()
            if emitter.dead:
                self.emitters.remove(emitter)


class World:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.ids = 0
        self.faults = 0.0
        self.probe = self.dice.choice([0.5, 5.0])
        self.history = self.dice.choice([8, 60, 1000])
        self.redis = FakeRedis(self.history)
        self.outbox = self.dice.choice([3, 1000])
        self.ever: list[Worker] = []
        """All workers, those too that were killed."""
        self.workers = [
            Worker(self, seed * 7 + n, self.outbox) for n in range(self.dice.choice([1, 2, 3]))
        ]
        self.clients: list[Hopper] = []
        self.events: dict[str, Event] = {}
        self.acknowledged: dict[str, str] = {}
        self.promised: dict[str, Worker] = {}
        self.refused: set[str] = set()

    def new_id(self) -> str:
        self.ids += 1
        return f"id{self.ids}"

    def event(self, audience: Audience) -> Event:
        event = make_event(
            "tick",
            len(self.events),
            audience,
            text=None,
            at=0,
            max_bytes=1 << 20,
            encode=to_json,
            new_id=self.new_id,
        )
        self.events[event.id] = event
        return event

    def pass_time(self, seconds: float) -> None:
        for worker in self.workers:
            worker.now += seconds

    def settle(self) -> None:
        """Good weather until everything has come to rest."""
        self.faults = 0.0
        self.redis.down = False
        for worker in self.workers:
            worker.store.cut = False
        for _ in range(1500):
            self.pass_time(0.1)
            for worker in self.workers:
                worker.listener.switch()
                worker.step_emitter()
                worker.step_pump()
            for client in self.clients:
                if client.worker is not None and client not in client.worker.servers:
                    client.go_to(client.worker)  # it was cut, having read nothing for long
                client.work()
            if self.at_rest():
                return
        raise AssertionError(f"it never comes to rest: {self.unrest()}")

    def unrest(self) -> list[str]:
        found = []
        head = Cursor(self.redis.epoch or "", self.redis.last, self.redis.last_id)
        for worker in self.workers:
            bus = worker.bus
            assert isinstance(bus, RedisBus)
            if bus.state != "ok" or bus.log.head != head or bus.waiting or worker.emitters:
                found.append(f"{bus.state} {bus.trouble} {bus.log.head} of {head}")
            if worker.hub.position != worker.log.last or worker.hub._settle_due:
                found.append("a pump")
        for client in self.clients:
            if client.worker is None or client.worker.log.head != head:
                found.append("a client elsewhere")
            elif client.position != str(head):
                found.append(f"a client at {client.position} of {head}")
        return found

    def at_rest(self) -> bool:
        return not self.unrest()


class Hopper(Client):
    """A client that goes from worker to worker; checks what it is told as it comes."""

    def __init__(self, world: World, identity: Identity, topics: frozenset[str]) -> None:
        super().__init__(identity, topics)
        self.world = world
        self.worker: Worker | None = None
        self.position: str | None = None
        self.had: set[str] = set()
        """Ids of events, provisional ones too, as the bundled client remembers them."""
        self.here: set[str] = set()
        """Ids of provisional events had on this very connection."""
        self.since_gap: set[str] = set()
        self.done = 0
        self.beaten = 0
        self.repeats = 0
        self.gaps = 0

    def go_to(self, worker: Worker) -> None:
        dice = self.world.dice
        self.leave()
        self.worker = worker
        self.here = set()
        worker.connect(
            self,
            room=dice.choice([300, 2000, 1 << 20]),
            direct=dice.random() < 0.7,
            chunked=dice.random() < 0.5,
        )

    def leave(self) -> None:
        if self.worker is not None and self in self.worker.servers:
            self.worker.hang_up(self)
            self.worker.step_server(self)
        self.worker = None

    def work(self) -> None:
        if self.worker is None:
            return
        self.worker.step_server(self)
        if self.pipe is not None:
            self.receive(1 << 20)
        self.judge()

    def judge(self) -> None:
        """Look at what came since the last time."""
        while True:
            beat = self.beaten < len(self.beats) and self.beats[self.beaten][0] <= self.done
            if beat:
                self._move(self.beats[self.beaten][1], arrives=None)
                self.beaten += 1
            elif self.done < len(self.told):
                self._judge(self.told[self.done])
                self.done += 1
            else:
                return

    def _judge(self, block: Block) -> None:
        if block.type == "hybrid.gap":
            assert block.id, "a gap without a place to go on from"
            self.position = block.id
            self.since_gap = set()
            self.here = set()
            self.gaps += 1
        elif block.type == "hybrid.hello":
            if block.id:
                self._move(block.id, arrives=None)
        elif block.type == "tick":
            fields = dict(block.fields)
            if block.id is None:
                self._provisional(fields["eid"])
            else:
                event = self.world.redis.events[block.id]
                assert json.loads(event.body) == json.loads(block.data), "another event's place"
                assert visible(event, self.identity, self.topics), "the wrong person"
                again = event.id in self.world.redis.trimmed
                assert again or event.id not in self.since_gap, f"{event.id} came twice"
                assert again or event.id not in self.here, f"{event.id} came twice here"
                self._move(block.id, arrives=event.id)
                self.had.add(event.id)
                self.since_gap.add(event.id)
        else:
            assert block.type in ("hybrid.status", "hybrid.bye"), block

    def _provisional(self, id: str) -> None:
        event = self.world.events[id]
        assert visible(event, self.identity, self.topics), "the wrong person"
        assert id not in self.here, "provisional twice on one connection"
        assert id not in self.since_gap, "provisional after it was stored"
        self.here.add(id)
        self.had.add(id)

    def _move(self, cursor: str, arrives: str | None) -> None:
        """To a new position, without a gap: nothing visible may lie in between unseen."""
        if self.position is None:
            self.position = cursor
            return
        step = cursor
        while step != self.position:
            event = self.world.redis.events.get(step)
            assert event is not None, f"from {self.position} to {cursor} without a gap"
            unseen = event.id not in self.had and event.id != arrives
            assert not (unseen and visible(event, self.identity, self.topics)), (
                f"{event.id} was lost between {self.position} and {cursor}"
            )
            step = self.world.redis.before[step]
        self.position = cursor


AUDIENCES = [
    EVERYONE,
    Audience.of(users=["alice"]),
    Audience.of(users=["bob"]),
    Audience.of(roles=["staff"], topics=["t"]),
    Audience.of(topics=["t"]),
]


def one_history(seed: int, steps: int = 1200) -> Counter[str]:
    """Live one random history; what happened in it. Raises AssertionError where a promise broke."""
    world = World(seed)
    try:
        return live(world, steps)
    finally:
        for worker in world.ever:
            for left in (*worker.servers.values(), *worker.emitters, worker.listener, worker.pump):
                left.throw()


def live(world: World, steps: int) -> Counter[str]:
    dice = world.dice
    count: Counter[str] = Counter()
    copies: list[Any] = []
    for number in range(dice.choice([2, 5])):
        identity = Identity(["alice", "bob", "carol"][number % 3], {"staff"} if number == 3 else ())
        world.clients.append(Hopper(world, identity, frozenset({"t"} if number % 2 else ())))
    harsh = dice.random() < 0.5
    for _ in range(steps):
        act = dice.random()
        worker = dice.choice(world.workers)
        client = dice.choice(world.clients)
        if act < 0.13:
            worker.emit_soon(world.event(dice.choice(AUDIENCES)))
        elif act < 0.30:
            worker.step_emitter()
        elif act < 0.50:
            worker.listener.switch()
        elif act < 0.62:
            worker.step_pump()
        elif act < 0.80:
            if client.worker is not None:
                client.worker.step_server(client)
        elif act < 0.88:
            if client.pipe is not None:
                client.receive(dice.choice([1, 30, 400, 100_000]))
                client.judge()
        elif act < 0.90:
            client.go_to(worker)
        elif act < 0.95:
            world.pass_time(dice.choice([0.05, 0.3, 2]))
        elif act < 0.96:
            world.redis.down = not world.redis.down
            count["outages"] += 1
        elif act < 0.97:
            worker.store.cut = not worker.store.cut
        elif act < 0.975:
            world.faults = dice.choice([0, 0, 0.05, 0.3])
        elif act < 0.98:
            for subscriber in list(world.redis.subscribers):
                if dice.random() < 0.5:
                    subscriber.broken = True
        elif act < 0.985:
            # redis-py reconnects by itself: what was said is lost, a confirmation tells
            for subscriber in world.redis.subscribers:
                if dice.random() < 0.5 and not subscriber.confirmations:
                    subscriber.queue.clear()
                    subscriber.confirmations = 1
        elif act < 0.988:
            # lost without a trace, as behind a node that gets no more traffic
            for subscriber in world.redis.subscribers:
                if subscriber.queue:
                    subscriber.queue.popleft()
        elif act < 0.991:
            copies.append(world.redis.copy())
        elif act < 0.993 and harsh:
            if copies:
                world.redis.restore(dice.choice(copies))
                count["restores"] += 1
        elif act < 0.994 and harsh:
            world.redis.forget()
            count["flushes"] += 1
        elif act > 0.995 and harsh:
            world.redis.lose_tail(dice.choice([1, 1, 2, 5]))
            count["failovers"] += 1
            if dice.random() < 0.5:  # and the new master has other subscribers for a moment
                others = dice.sample(world.workers, dice.randrange(len(world.workers) + 1))
                for _ in range(dice.choice([1, 2, 3])):
                    event = world.event(dice.choice(AUDIENCES))
                    world.redis.publish([event], world.new_id())
                for subscriber in world.redis.subscribers:
                    if any(subscriber.store is other.store for other in others):
                        subscriber.queue.clear()
        elif act < 0.995 and harsh and len(world.workers) > 1:
            # killed: what was in its outbox dies with it
            world.workers.remove(worker)
            assert isinstance(worker.bus, RedisBus)
            for id in [id for id, kept_by in world.promised.items() if kept_by is worker]:
                del world.promised[id]
            for other in world.clients:
                if other.worker is worker:
                    other.receive(1 << 20)
                    other.judge()
                    other.leave()
            world.workers.append(Worker(world, dice.randrange(1 << 30), world.outbox))
            world.workers[-1].now = worker.now
            count["kills"] += 1
        elif client.worker is not None and dice.random() < 0.02:
            client.leave()
        if client.worker is None and dice.random() < 0.1:
            client.go_to(dice.choice(world.workers))
    for client in world.clients:
        if client.worker is None or client not in client.worker.servers:
            client.go_to(dice.choice(world.workers))
    world.settle()
    # Once more from rest: everybody is live, and what is emitted now reaches who may see it.
    last = [world.event(audience) for audience in AUDIENCES]
    for event in last:
        dice.choice(world.workers).emit_soon(event)
    world.settle()
    for client in world.clients:
        for event in last:
            seen = event.id in client.had
            assert seen == visible(event, client.identity, client.topics), "not live at the end"
        count["repeats"] += client.repeats
        count["gaps"] += client.gaps
        count["events"] += len(client.had)
    for id in world.promised:
        assert world.redis.ever[id], f"{id} was kept in an outbox and never stored"
    for id in world.refused:
        assert not world.redis.ever[id] or id in world.acknowledged
    if not count["restores"] + count["flushes"] + count["failovers"] and world.history == 1000:
        assert max(world.redis.ever.values(), default=0) <= 1, "stored twice"
    for worker in world.workers:
        assert worker.hub.faults == 0
    return count


HISTORIES = int(os.environ.get("HISTORIES", "150"))


def test_r71_random_histories_keep_every_promise(seed: int) -> None:
    """I1 to I11: order, nothing lost without a gap, nothing twice, nobody else's, all at rest.

    HISTORIES=10000 for a long run; a failure names the seed that shows it alone.
    """
    total: Counter[str] = Counter()
    for number in range(seed, seed + HISTORIES):
        try:
            total += one_history(number)
        except Exception as error:
            raise AssertionError(f"{error} (SEED={number} HISTORIES=1)") from error
    print(dict(total))
    # It would show nothing if nothing happened.
    if HISTORIES >= 100:
        for what in ("outages", "restores", "flushes", "failovers", "kills", "gaps"):
            assert total[what] > HISTORIES / 10, what
        assert total["events"] > 20 * HISTORIES


def test_a_history_is_the_same_for_the_same_seed() -> None:
    """Otherwise a failure could not be looked at again."""
    assert one_history(7) == one_history(7)


# -- mutants: what the checker above must notice

Patch = Callable[[pytest.MonkeyPatch], None]


def epoch_and_offset_only(patch: pytest.MonkeyPatch) -> None:
    """A cursor is believed by its numbers."""
    original = Log.resolve

    def resolve(self: Log, since: str | None, *, max_replay: int | None = None) -> Start:
        cursor = Cursor.parse(since or "")
        if cursor and cursor.epoch == self.epoch:
            since = str(self.cursor_at(cursor.offset) or cursor)
        return original(self, since, max_replay=max_replay)

    patch.setattr(Log, "resolve", resolve)


def begin_at_the_end(patch: pytest.MonkeyPatch) -> None:
    """After a break the stream is read from its end (`$`), and nobody is told."""

    def catch_up(self: RedisBus) -> None:
        page = self._store.read(None)
        if page.head is None or not self._known:
            self._begin_anew("epoch")
        elif page.head != self.log.head:
            with self._lock:
                self.log = self.log.__class__(
                    page.head.epoch, max_events=1000, max_seconds=1e9, start=page.head
                )
                hub = self._local
                assert isinstance(hub, Hub)
                hub.log, hub.position = self.log, self.log.last

    patch.setattr(RedisBus, "_catch_up", catch_up)


def id_on_provisional_events(patch: pytest.MonkeyPatch) -> None:
    """A local number passes for a place in the shared log."""
    original = Hub.provisional

    def provisional(self: Hub, event: Event) -> None:
        original(self, event.at_cursor(Cursor(self.log.epoch, self.log.last + 1, event.id)))

    patch.setattr(Hub, "provisional", provisional)


def no_idempotency(patch: pytest.MonkeyPatch) -> None:
    """A repeated event is stored again."""
    original = FakeRedis.publish

    def publish(self: FakeRedis, events: Sequence[Event], new_epoch: str) -> list[Stored]:
        held, self.entries = self.entries, []
        try:
            answer = original(self, events, new_epoch)
        finally:
            self.entries = (held + self.entries)[-self.history :]
        return answer

    patch.setattr(FakeRedis, "publish", publish)


def believe_the_offset(patch: pytest.MonkeyPatch) -> None:
    """The predecessor's id is not looked at."""

    def place(log: Log, epoch: str, offset: int, prev: str, id: str) -> str:
        if epoch == log.epoch and offset == log.last + 1:
            return "next"
        return "repeat" if epoch == log.epoch and offset <= log.last else "sync"

    patch.setattr(bus_redis, "place", place)


def trust_the_subscription(patch: pytest.MonkeyPatch) -> None:
    """A gap between two messages is not noticed."""

    def hear(self: RedisBus, message: str) -> None:
        epoch, offset, _, id, text = message.split(" ", 5)[1:]
        cursor = Cursor(epoch, int(offset), id)
        if epoch == self.log.epoch and cursor.offset > self.log.last:
            event = decode(id, text, 0).at_cursor(cursor)
            self.log._entries[cursor.offset] = Entry(cursor.offset, event)
            self.log.head = cursor
            self._local.ring()

    patch.setattr(RedisBus, "_hear", hear)


def ok_before_the_outbox_is_stored(patch: pytest.MonkeyPatch) -> None:
    """The outbox is forgotten on the way back."""
    original = RedisBus._recover

    def recover(self: RedisBus) -> None:
        self._outbox.clear()
        original(self)

    patch.setattr(RedisBus, "_recover", recover)


def swap_silently(patch: pytest.MonkeyPatch) -> None:
    """The log is another one, and connections are not told."""

    def swap(self: Hub, log: Log, reason: str) -> None:
        self.log, self.position = log, log.last

    patch.setattr(Hub, "swap", swap)


def forget_what_was_heard(patch: pytest.MonkeyPatch) -> None:
    """Stored copies go to who has had them as provisional events."""
    patch.setattr(Hub, "_unheard", lambda self, connection: connection.sees)


def judge_while_degraded(patch: pytest.MonkeyPatch) -> None:
    """A cursor that another worker gave is called a rollback because this one has not heard."""

    def begin(bus: Bus, since: str | None, *, max_replay: int | None) -> tuple[Start, None]:
        start = bus.log.resolve(since, max_replay=max_replay)
        return (Start(bus.log.head) if start.gap else start), None

    patch.setattr(stage, "begin", begin)


@pytest.mark.parametrize(
    "mutate",
    [
        epoch_and_offset_only,
        begin_at_the_end,
        id_on_provisional_events,
        no_idempotency,
        believe_the_offset,
        trust_the_subscription,
        ok_before_the_outbox_is_stored,
        swap_silently,
        forget_what_was_heard,
        judge_while_degraded,
    ],
)
def test_r71_a_mutant_is_caught(mutate: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checker that lets a known mistake pass would prove nothing."""
    mutate(monkeypatch)
    for seed in range(200):
        try:
            one_history(seed)
        except Exception as error:
            print(f"caught by seed {seed}: {error}")
            return
    pytest.fail("nobody noticed")
