"""The hub, stepped by hand: every order of events, joins, writes and departures is possible."""

import json
import math
import random
import sys
import threading
import time
import tracemalloc
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from hybrid import fanout, live
from hybrid.audience import EVERYONE, Audience, Identity
from hybrid.bus.memory import MemoryBus
from hybrid.connection import NEVER, Connection
from hybrid.errors import TooManyConnections
from hybrid.events import Cursor, Event
from hybrid.fanout import Batch
from hybrid.hub import Hub
from hybrid.log import UNSEEN, Claim, Log
from hybrid.pump import WRITES_PER_TURN, Pump
from hybrid.readers import CATCH_UP_BYTES, PASS_BYTES, RING_BYTES
from hybrid.routes.reading import Poll
from hybrid.stream import Stream, greeting
from stage import Client, Pipe, Stage
from whatwg import Parser

ALICE = Identity("alice", {"staff"})
BOB = Identity("bob")


def ticks(client: Client) -> list[Any]:
    return [json.loads(block.data)[0] for block in client.told if block.type == "tick"]


def kinds(client: Client) -> list[str]:
    return [block.type for block in client.told]


def check_history(stage: Any, client: Client, kept: dict[int, Any]) -> None:
    """The promises, for one client: order, nothing twice, nothing missing without a gap.

    `kept` maps every offset ever given to its event.
    """

    def missed(after: int, upto: int) -> list[int]:
        return [
            offset
            for offset in range(after + 1, upto + 1)
            if kept[offset].audience.admits(client.identity, client.topics)
        ]

    position: int | None = None
    beats = deque(client.beats)
    for place, block in enumerate(client.told):
        before = client.told[place - 1] if place else None
        while beats and beats[0][0] == place:
            beat = Cursor.parse(beats.popleft()[1])
            assert beat is not None
            if position is not None:
                assert not missed(position, beat.offset), "a heartbeat ran ahead of an event"
                position = max(position, beat.offset)
        if before is not None and before.type == "hybrid.bye":
            assert block.type == "hybrid.hello", "something after the goodbye"
        cursor = Cursor.parse(block.id or "")
        if block.type == "hybrid.hello":
            if cursor is not None and position is None:
                position = cursor.offset
        elif block.type == "hybrid.gap":
            assert cursor is not None
            position = cursor.offset
        elif block.type == "tick":
            assert cursor is not None
            assert position is not None, "an event before the hello"
            assert cursor.offset > position, f"{cursor} after position {position}"
            lost = missed(position, cursor.offset - 1)
            assert not lost, f"offsets {lost} were never seen and no gap was said"
            event = kept[cursor.offset]
            assert event.id == str(cursor).split(".")[2]
            assert json.loads(event.body) == json.loads(block.data)
            assert event.audience.admits(client.identity, client.topics), "the wrong person"
            position = cursor.offset
    if position is not None and client in stage.servers:
        assert not missed(position, stage.log.last), "an event never came"


def test_an_event_reaches_its_readers_and_nobody_else() -> None:
    """Everyone, users, roles and topics: any match admits, no match does not."""
    stage = Stage()
    alice, bob = Client(ALICE), Client(BOB)
    carol = Client(Identity("carol"), frozenset({"report:1"}))
    for client in (alice, bob, carol):
        stage.connect(client)
    stage.settle([alice, bob, carol])
    stage.emit(EVERYONE)
    stage.emit(Audience.of(users=["alice"]))
    stage.emit(Audience.of(roles=["staff"]))
    stage.emit(Audience.of(topics=["report:1"]))
    stage.emit(Audience.of(users=["bob"], topics=["report:1"]))
    stage.emit(Audience.of(users=[]))
    stage.settle([alice, bob, carol])
    assert ticks(alice) == [1, 2, 3]
    assert ticks(bob) == [1, 5]
    assert ticks(carol) == [1, 4, 5]


def test_the_cost_of_an_event_is_that_of_its_readers() -> None:
    """A targeted event writes to its one reader, whatever the number of others."""
    stage = Stage()
    clients = [Client(Identity(f"user{n}")) for n in range(300)]
    for client in clients:
        stage.connect(client)
    stage.settle(clients)
    sent = [client.pipe.sent for client in clients if client.pipe]
    stage.emit(Audience.of(users=["user7"]))
    stage.pump.step()
    changed = [n for n, client in enumerate(clients) if client.pipe and client.pipe.sent != sent[n]]
    assert changed == [7]


def test_events_that_gather_during_a_pass_leave_as_one_write() -> None:
    """Under load events batch by themselves, and stay in order over mixed audiences."""
    stage = Stage()
    alice, bob = Client(ALICE), Client(BOB)
    for client in (alice, bob):
        stage.connect(client)
    stage.settle([alice, bob])
    writes: list[int] = []
    for client in (alice, bob):
        connection = stage.streams[client].connection
        send = connection.send

        def counted(data: bytes | memoryview, flags: int, send: Any = send) -> int:
            writes.append(len(data))
            return int(send(data, flags))

        connection.send = counted
    for n in range(10):
        stage.emit(Audience.of(users=["alice"]) if n % 3 == 0 else EVERYONE)
    stage.pump.step()
    stage.settle([alice, bob])
    assert len(writes) == 2
    assert ticks(alice) == list(range(1, 11))
    assert ticks(bob) == [2, 3, 5, 6, 8, 9]


@pytest.mark.parametrize("direct", [True, False], ids=["socket", "iterator"])
@pytest.mark.parametrize("chunked", [True, False], ids=["http11", "http10"])
def test_both_framings_and_both_ways_out_deliver_the_same(direct: bool, chunked: bool) -> None:
    """Direct writes and the iterator give a client the same blocks in HTTP/1.1 and HTTP/1.0."""
    stage = Stage()
    client = Client(ALICE)
    stage.connect(client, direct=direct, chunked=chunked)
    stage.settle([client])
    for _ in range(5):
        stage.emit(EVERYONE)
        stage.settle([client])
    assert kinds(client) == ["hybrid.hello"] + ["tick"] * 5
    assert ticks(client) == [1, 2, 3, 4, 5]


def test_a_full_socket_lags_and_catches_up_from_the_log() -> None:
    """A frame cut in the middle is finished, the rest is read from the log, the pump resumes."""
    stage = Stage()
    client = Client(ALICE)
    connection = stage.connect(client, room=700)
    stage.settle([client])
    for _ in range(20):
        stage.emit(EVERYONE, pad=50)
    stage.pump.step()
    assert connection.live_since == NEVER
    assert connection.rest is not None
    stage.settle([client])
    assert ticks(client) == list(range(1, 21))
    assert connection.live_since != NEVER
    assert stage.hub.lags == 1


def test_r08_a_client_that_never_reads_holds_no_memory_and_delays_nobody() -> None:
    """Its cursor stays, its events stay in the log: memory is flat whatever is emitted."""
    stage = Stage(history=200, stall=30)
    stuck, reader = Client(ALICE), Client(BOB)
    connection = stage.connect(stuck, room=2000)
    stage.connect(reader)
    stage.settle([reader])
    stage.step_server(stuck)

    def emit_and_read() -> int:
        for _ in range(400):
            stage.emit(EVERYONE, pad=200)
            stage.step_pump()
            stage.step_server(stuck)
            stage.step_server(reader)
            assert reader.pipe is not None
            reader.receive(1 << 30)
        reader.told.clear()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        emit_and_read()
        first = emit_and_read()
        for _ in range(5):
            last = emit_and_read()
    finally:
        tracemalloc.stop()
    assert last - first < 100_000, "memory grew with the events that a stuck client does not read"
    assert stuck.pipe is not None
    assert len(stuck.pipe.buffer) == 2000
    # it is cut when it has not moved for `stall` seconds, in its heartbeat's turn
    stage.now += 31
    stage.step_pump()
    stage.now += 15
    stage.step_pump()
    assert connection.closed == "slow"
    stage.step_server(stuck)
    assert stuck not in stage.servers
    assert stage.hub.held() == 1


def test_a_client_is_not_slow_because_the_process_stood_still() -> None:
    """It has read what there was while nothing ran here, and the loop has not said so yet."""
    stage = Stage(stall=30)
    client = Client(ALICE)
    connection = stage.connect(client, room=2000, direct=True)
    stage.settle([client])
    for _ in range(20):
        stage.emit(EVERYONE, pad=200)
    stage.step_pump()
    stage.step_pump()
    assert connection.writing_since is not None, "its socket is full"
    pipe = client.pipe
    assert pipe is not None
    told, pipe.on_room = pipe.on_room, None
    client.receive(1 << 30)
    pipe.on_room = told
    stage.now += 60
    stage.pump.beat()
    assert connection.closed is None
    stage.settle([client])
    assert ticks(client) == list(range(1, 21))


def test_a_lagging_client_that_falls_out_of_the_log_is_told_once() -> None:
    """hybrid.gap (overflow) with the new position as its id; then live events again."""
    stage = Stage(history=10)
    client = Client(ALICE)
    stage.connect(client, room=500)
    stage.settle([client])
    for _ in range(60):
        stage.emit(EVERYONE, pad=100)
        stage.step_pump()
        stage.step_server(client)
    stage.settle([client])
    stage.emit(EVERYONE)
    stage.settle([client])
    assert kinds(client).count("hybrid.gap") == 1
    gap = next(block for block in client.told if block.type == "hybrid.gap")
    assert json.loads(gap.data) == {"reason": "overflow", "cursor": gap.id}
    assert ticks(client)[-1] == 61
    assert stage.hub.gaps == {"overflow": 1}


def test_a_pump_that_the_log_outran_says_gap_to_all() -> None:
    """More events between two passes than the log keeps: nobody is skipped in silence."""
    stage = Stage(history=10)
    clients = [Client(ALICE), Client(BOB)]
    for client in clients:
        stage.connect(client)
    stage.settle(clients)
    for _ in range(50):
        stage.emit(EVERYONE)
    stage.settle(clients)
    for client in clients:
        assert kinds(client) == ["hybrid.hello", "hybrid.gap"]
    stage.emit(EVERYONE)
    stage.settle(clients)
    assert ticks(clients[0]) == ticks(clients[1]) == [51]


def test_a_client_that_vanishes_in_mid_frame_resumes_without_loss() -> None:
    """What was cut off is not the client's yet: its cursor is that of the last whole block."""
    stage = Stage()
    client = Client(ALICE)
    connection = stage.connect(client, room=900)
    stage.settle([client])
    for _ in range(10):
        stage.emit(EVERYONE, pad=60)
    stage.step_pump()
    client.receive(1 << 30)
    stage.hang_up(client)
    stage.step_pump()
    assert connection.closed == "client"
    assert stage.hub.held() == 0
    stage.connect(client)
    stage.settle([client])
    assert ticks(client) == list(range(1, 11))
    assert kinds(client).count("hybrid.gap") == 0


def test_r19_heartbeats_are_written_bytes_and_move_the_cursor() -> None:
    """Every connection gets an id-only block once an interval, the socketless ones too."""
    stage = Stage(heartbeat=15)
    live, pulled, other = Client(ALICE), Client(BOB), Client(Identity("carol"))
    stage.connect(live)
    stage.connect(pulled, direct=False)
    stage.connect(other, chunked=False)
    clients = [live, pulled, other]
    stage.settle(clients)
    stage.emit(Audience.of(users=["nobody"]))
    stage.settle(clients)
    beats = dict.fromkeys(clients, 0)
    for client in clients:
        client.told.clear()
    for _ in range(60):
        sent = {client: client.pipe.sent for client in clients if client.pipe}
        stage.now += 0.75
        stage.settle(clients)
        for client in clients:
            if client.pipe and client.pipe.sent > sent[client]:
                beats[client] += 1
    assert all(count == 3 for count in beats.values()), beats.values()
    for client in clients:
        assert client.told == []
        assert client.parser.last_event_id == str(stage.log.head)


def test_a_heartbeat_never_overtakes_an_event() -> None:
    """While a pass is paused half way, no id of its events reaches those it has not come to."""
    stage = Stage(heartbeat=15)
    clients = [Client(Identity(f"u{n}")) for n in range(WRITES_PER_TURN + 50)]
    for client in clients:
        stage.connect(client)
    stage.settle(clients)
    stage.emit(EVERYONE)
    stage.now += 15
    stage.step_pump()  # pauses after WRITES_PER_TURN writes, in the middle of the pass
    waiting = [client for client in clients if client.pipe and not client.pipe.buffer]
    assert len(waiting) == 50
    stage.step_pump()
    for client in clients:
        client.receive(1 << 30)
        assert ticks(client) == [1]
        ids = [block.id for block in client.told if block.id]
        assert ids[-1] == str(stage.log.head)


def test_joining_during_a_pass_neither_misses_nor_repeats() -> None:
    """The seam: a stream that opens while a pass is paused gets each event once."""
    stage = Stage()
    crowd = [Client(Identity(f"u{n}")) for n in range(WRITES_PER_TURN + 10)]
    for client in crowd:
        stage.connect(client)
    stage.settle(crowd)
    stage.emit(EVERYONE)
    stage.step_pump()  # half way
    late = Client(ALICE)
    late.cursor = "stage.0.origin"
    stage.connect(late)
    stage.step_server(late)
    stage.emit(EVERYONE)
    stage.settle([*crowd, late])
    assert ticks(late) == [1, 2]


def test_who_leaves_during_a_pass_is_written_nothing_more() -> None:
    """A stream that ended while the pass was paused gets its goodbye and no event after all."""
    stage = Stage(writes_per_turn=1)
    clients = [Client(ALICE), Client(BOB)]
    for client in clients:
        stage.connect(client)
    stage.settle(clients)
    stage.emit(EVERYONE)
    stage.step_pump()
    (second,) = [client for client in clients if client.pipe and not client.pipe.buffer]
    stage.hub.end(stage.streams[second].connection, "kicked", after=0)
    stage.settle(clients)
    assert kinds(second) == ["hybrid.hello", "hybrid.bye"]


def test_the_slot_cap_is_exact_and_a_slot_comes_back_once() -> None:
    """max_connections streams, not one more; closing twice frees one slot."""
    stage = Stage(max_connections=2)
    clients = [Client(ALICE), Client(BOB)]
    connections = [stage.connect(client) for client in clients]
    with pytest.raises(TooManyConnections):
        stage.connect(Client(ALICE))
    assert stage.hub.refused == 1
    stage.hub.close(connections[0], "client")
    stage.hub.close(connections[0], "slow")
    assert stage.hub.held() == 1
    assert stage.hub.closed == {"client": 1}
    stage.connect(Client(ALICE))
    with pytest.raises(TooManyConnections):
        stage.connect(Client(ALICE))


def test_end_says_bye_and_frees_the_slot() -> None:
    """hybrid.bye is the last block, after whatever frame was under way."""
    stage = Stage()
    client = Client(ALICE)
    connection = stage.connect(client, room=600)
    stage.settle([client])
    for _ in range(9):
        stage.emit(EVERYONE, pad=60)
    stage.step_pump()
    stage.hub.end(connection, "kicked", after=250)
    stage.hub.end(connection, "shutdown", after=1)
    stage.settle([client])
    assert kinds(client)[-1] == "hybrid.bye"
    assert json.loads(client.told[-1].data) == {"reason": "kicked", "after": 250}
    assert stage.hub.held() == 0
    assert stage.hub.closed == {"kicked": 1}


@pytest.mark.parametrize("direct", [True, False], ids=["socket", "iterator"])
def test_who_may_see_one_of_thousands_stops_nobody(direct: bool) -> None:
    """It comes past what is for others in small steps, and others run in between."""
    stage = Stage()
    for _ in range(5000):
        stage.emit(Audience.of(users=["bob"]))
    stage.emit(EVERYONE)
    client, other = Client(ALICE), Client(Identity("carol"))
    stage.connect(other)
    stage.settle([other])
    client.cursor = "stage.0.origin"
    connection = stage.connect(client, direct=direct)
    looked = 0

    class Counting(Identity):
        """Counts how often it is asked for its user."""

        def __getattribute__(self, name: str) -> Any:
            nonlocal looked
            looked += name == "user"
            return super().__getattribute__(name)

    connection.identity = Counting("alice")
    turns = 0
    while connection.live_since == NEVER:
        looked, turns = 0, turns + 1
        stage.step_server(client)
        assert looked <= UNSEEN + 2
        looked = 0
        stage.step_pump()
        assert looked <= UNSEEN + 2
        if turns == 5:
            stage.emit(Audience.of(users=["carol"]))
            stage.step_pump()
            other.receive(1 << 30)
            assert ticks(other)[-1] == 5002, "it waited for somebody else's reading"
    assert turns > 5000 / UNSEEN
    stage.settle([client, other])
    assert ticks(client) == [5001]


def test_r30_an_idle_log_grows_old_all_the_same() -> None:
    """Nothing is replayed that is older than history goes, though nothing was emitted since."""
    stage = Stage(history_seconds=60)
    client = Client(ALICE)
    stage.connect(client)
    stage.emit(EVERYONE)
    stage.settle([client])
    stage.now += 61
    assert len(stage.log) == 1
    stage.pump.beat()
    assert len(stage.log) == 0
    late = Client(BOB)
    late.cursor = "stage.0.origin"
    stage.connect(late)
    stage.settle([client, late])
    assert kinds(late) == ["hybrid.hello", "hybrid.gap"]
    assert ticks(client) == [1]
    stage.emit(EVERYONE)
    stage.settle([client, late])
    assert ticks(client) == [1, 2]
    assert ticks(late) == [2]


def test_age_takes_nothing_that_is_still_to_be_handed_on() -> None:
    """An event of a host whose clock is late arrives old, and reaches who is connected."""
    stage = Stage(history_seconds=60)
    client = Client(ALICE)
    stage.connect(client)
    stage.settle([client])
    old = stage.now
    stage.now += 1000
    event = Event("late", "tick", "[1]", int(old * 1000), EVERYONE)
    stage.log.append(event, event.at)
    stage.pump.beat()
    stage.settle([client])
    assert ticks(client) == [1]
    stage.pump.beat()
    assert len(stage.log) == 0


def test_a_pass_is_bounded_in_bytes() -> None:
    """Big events do not add up to one huge write."""
    stage = Stage()
    client = Client(ALICE)
    stage.connect(client)
    stage.settle([client])
    for _ in range(8):
        stage.emit(EVERYONE, pad=30_000)
    assert client.pipe is not None
    before = client.pipe.sent
    assert stage.pump.step()
    assert client.pipe.sent - before <= PASS_BYTES
    stage.settle([client])
    assert ticks(client) == list(range(1, 9))


def test_catching_up_is_bounded_in_bytes() -> None:
    """A reader holds about 16 KB at once, not its whole backlog."""
    stage = Stage()
    for _ in range(200):
        stage.emit(EVERYONE, pad=1000)
    stage.pump.step()
    client = Client(ALICE)
    client.cursor = "stage.0.origin"
    connection = stage.connect(client)
    largest = 0
    while (frames := stage.hub.next(connection)) is not None:
        largest = max(largest, len(frames))
    assert 1000 < largest <= CATCH_UP_BYTES


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a fault")


@pytest.mark.parametrize("run", range(20))
def test_random_interleavings_keep_every_promise(
    run: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order, no loss without gap, nothing twice, no wrong reader: whoever runs when.

    Emits, joins, reads, partial reads, vanishing clients, kicks, heartbeats, a log that is trimmed
    by count, bytes and age, and faults of a socket or of a whole pass, in random order, switching
    in the middle of passes.
    """
    dice = random.Random(seed + run)
    stage = Stage(
        seed + run,
        history=dice.choice([5, 50, 10_000]),
        history_bytes=dice.choice([20_000, math.inf, math.inf]),
        history_seconds=dice.choice([7, 1e9]),
        heartbeat=dice.choice([1, 15]),
        writes_per_turn=dice.choice([1, 2, 5]),
    )
    faults, address = 0, fanout.address

    def once(*_: Any) -> Any:
        monkeypatch.setattr(live, "address", address)
        raise RuntimeError("a fault")

    names = ["alice", "bob", "carol"]
    clients = [
        Client(
            Identity(dice.choice(names), {"staff"} if dice.random() < 0.3 else ()),
            frozenset({"t"} if dice.random() < 0.5 else ()),
        )
        for _ in range(dice.choice([3, 12]))
    ]
    kept: dict[int, Any] = {}

    def some_audience() -> Audience:
        return dice.choice(
            [
                EVERYONE,
                Audience.of(users=[dice.choice(names)]),
                Audience.of(roles=["staff"], topics=["t"]),
                Audience.of(topics=["t"]),
            ]
        )

    for _ in range(1500):
        act = dice.random()
        client = dice.choice(clients)
        if act < 0.25:
            event = stage.emit(some_audience(), pad=dice.choice([0, 0, 40, 400]))
            kept[stage.log.last] = event
        elif act < 0.45:
            stage.step_pump()
        elif act < 0.75:
            stage.step_server(client)
        elif act < 0.9:
            if client.pipe is not None:
                client.receive(dice.choice([1, 17, 300, 100_000]))
        elif act < 0.93:
            if client in stage.servers and dice.random() < 0.5:
                stage.hang_up(client)
                stage.step_server(client)
        elif act < 0.94:
            if client in stage.servers:
                stage.hub.end(stage.streams[client].connection, "kicked", after=0)
        elif act < 0.943:
            connection = stage.streams[client].connection if client in stage.streams else None
            if connection is not None and connection.summon is not None:
                connection.send = broken
                faults += 1
        elif act < 0.946:
            monkeypatch.setattr(live, "address", once)
            faults += 1
        elif act < 0.976:
            stage.now += dice.choice([0.01, 0.3, 5])
        if client not in stage.servers:
            stage.connect(
                client,
                room=dice.choice([300, 2000, 1 << 20]),
                direct=dice.random() < 0.7,
                chunked=dice.random() < 0.5,
            )
    stage.settle(clients)
    for client in clients:
        if client not in stage.servers:
            stage.connect(client)
    stage.settle(clients)
    for client in clients:
        check_history(stage, client, kept)
    assert stage.hub.held() == len(stage.servers)
    assert stage.hub.faults <= faults


# -- long polls


def waiting(stage: Stage, identity: Identity = ALICE, claim: Claim | None = None) -> Connection:
    """A long poll whose answer is only that there is news, a gap, or an event to read."""
    connection = Connection(
        "poll",
        identity,
        frozenset(),
        position=stage.log.last,
        transport="polling",
        opened_at=0.0,
    )

    def answer(connection: Connection, news: bool) -> bytes | None:
        reading = stage.log.read(
            connection.position, stage.log.last, connection.sees, max_events=9, max_bytes=9999
        )
        connection.position = reading.cursor.offset
        if reading.overflow or connection.lost:
            return b"gap"
        return b"events" if reading.entries else b"news" if news else None

    connection.answer = answer
    stage.hub.open(connection, claim)
    assert stage.hub.next(connection) is None
    assert connection.live_since != NEVER
    return connection


def test_a_long_poll_is_answered_by_its_event_and_by_no_other() -> None:
    """Others' events do not end its wait; its own does, once, and gives back its slot."""
    stage = Stage()
    poll = waiting(stage)
    stage.emit(Audience.of(users=["bob"]))
    stage.pump.step()
    assert poll.live_since != NEVER
    stage.emit(Audience.of(users=["alice"]))
    stage.pump.step()
    assert poll.live_since == NEVER
    assert stage.hub.next(poll) == b"events"
    assert stage.hub.next(poll) is None
    assert dict(stage.hub.closed) == {"polled": 1}


@pytest.mark.parametrize("what", ["announce", "end", "provisional"])
def test_a_long_poll_is_answered_when_something_else_is_to_be_said(what: str) -> None:
    """The bus' state and the end of the instance are news; another's provisional event is none."""
    stage = Stage()
    poll = waiting(stage)
    if what == "announce":
        stage.hub.announce("degraded", 0)
    elif what == "end":
        stage.hub.end(poll, "shutdown", after=0)
    else:
        stage.hub.provisional(stage.emit(Audience.of(users=["bob"])))
    stage.pump.step()
    assert stage.hub.next(poll) == (None if what == "provisional" else b"news")


def test_that_the_log_is_back_is_said_with_what_it_says_of_a_cursor() -> None:
    """A poll that nobody could judge is not sent away a moment before somebody can: a thread that
    hears the news may be faster than the pump."""
    stage = Stage()
    stage.hub.announce("degraded", 0)
    poll = waiting(stage, claim=Claim("elsewhere.7.id", certain=False))
    stage.hub.settle()
    stage.hub.announce("ok", 0)
    stage.hub.readers.take_notice()
    assert poll.live_since == NEVER
    turns: list[bool] = []
    stage.hub.pause = lambda: turns.append(stage.pump.step())
    assert stage.hub.next(poll) == b"gap"
    assert turns


def test_a_long_poll_is_woken_when_its_time_is_over() -> None:
    """At the first beat after it; one that was answered before is not looked for."""
    stage = Stage()
    poll = waiting(stage)
    stage.hub.wait(poll, 5.0)
    stage.now = 4.9
    stage.pump.beat()
    assert poll.live_since != NEVER
    stage.now = 5.0
    stage.pump.beat()
    assert poll.live_since == NEVER
    stage.hub.close(poll, "client")
    other = waiting(stage, BOB)
    stage.hub.wait(other, 6.0)
    stage.hub.close(other, "client")
    stage.now = 7.0
    stage.pump.beat()


class Poller:
    """A client that polls as the bundled one does, a quarter of a second at a time."""

    def __init__(self, stage: Stage, identity: Identity = ALICE) -> None:
        self.stage = stage
        self.identity = identity
        self.answers: list[Any] = []
        self.heard: dict[str, None] = {}
        """Ids, each once, in the order in which they came."""
        self.largest = 0
        self.waiting: Connection | None = None

    def run(self, seconds: float) -> None:
        """Time passes in steps as long as the client's pause between two polls."""
        for _ in range(round(seconds / 0.25)):
            if self.waiting is None:
                self._ask()
            self.stage.now += 0.25
            self.stage.pump.step()
            self.stage.pump.beat()
            if self.waiting is not None and self.waiting.live_since == NEVER:
                self._take(self.stage.hub.next(self.waiting))

    def _ask(self) -> None:
        stage = self.stage
        instance: Any = SimpleNamespace(hub=stage.hub, log=stage.log, bus=stage.bus)
        connection = Connection(
            f"poll{len(self.answers)}",
            self.identity,
            frozenset(),
            position=stage.log.last,
            transport="polling",
            opened_at=stage.now,
            opened_ms=stage.wall(),
        )
        poll = Poll.begin(instance, connection, 1000, 20)
        if (answer := poll(connection)) is not None:
            self._take(answer)
            return
        self.waiting, connection.answer = connection, poll
        stage.hub.open(connection)
        stage.hub.wait(connection, poll.until)
        self._take(stage.hub.next(connection))

    def _take(self, answer: bytes | None) -> None:
        if answer is not None:
            if self.waiting is not None:
                self.stage.hub.close(self.waiting, "polled")
            self.waiting = None
            self.largest = max(self.largest, len(answer))
            self.answers.append(json.loads(answer))
            self.heard |= dict.fromkeys(event["id"] for event in self.answers[-1]["events"])


def provisional(stage: Stage, *ids: str, pad: int = 0) -> None:
    for id in ids:
        event = Event(id, "tick", f'"{"x" * pad}"', stage.wall(), EVERYONE)
        stage.hub.provisional(event)


def test_a_client_that_polls_is_no_storm_while_redis_is_away() -> None:
    """Every poll tells again what is provisional, but old news are told in no hurry."""
    stage = Stage()
    stage.now = 100
    provisional(stage, "a", "b")
    client = Poller(stage)
    client.run(60)
    assert list(client.heard) == ["a", "b"]
    assert 10 <= len(client.answers) <= 15, "as often as one that cannot wait is told to poll"
    assert all(len(answer["events"]) == 2 for answer in client.answers)


def test_a_poll_is_answered_at_once_by_what_is_provisional_and_new() -> None:
    """Also by what came between two polls: within a second or so."""
    stage = Stage()
    stage.now = 100
    provisional(stage, "old")
    client = Poller(stage)
    client.run(30)
    for n in range(20):
        provisional(stage, f"new{n}")
        client.run(0.25)
        between = client.waiting is None
        if between:
            provisional(stage, f"between{n}")
        client.run(1.25 if between else 0.25)
        assert list(client.heard)[-1] == (f"between{n}" if between else f"new{n}")
        client.run(n % 3)


def test_what_a_poll_is_told_of_an_outage_is_bounded() -> None:
    """The newest, in their order; an event larger than the bound comes alone."""
    stage = Stage()
    provisional(stage, *(f"e{n:03}" for n in range(300)), pad=60_000)
    client = Poller(stage)
    client.run(10)
    assert list(client.heard) == [f"e{n:03}" for n in range(296, 300)]
    assert client.largest < RING_BYTES + 1000
    provisional(stage, "large", pad=2 * RING_BYTES)
    client.run(2)
    assert [event["id"] for event in client.answers[-1]["events"]] == ["large"]


class Asker:
    """A client that polls and holds every answer against what there was."""

    def __init__(self, stage: Stage, identity: Identity, kept: dict[int, Any]) -> None:
        self.stage = stage
        self.identity = identity
        self.kept = kept
        self.cursor = stage.log.head
        self.gaps = self.asked = 0
        self.waiting: Connection | None = None

    def step(self) -> None:
        """Ask; or take the answer, if it is there."""
        hub = self.stage.hub
        if self.waiting is None:
            self._ask()
        elif self.waiting.live_since == NEVER and (answer := hub.next(self.waiting)) is not None:
            hub.close(self.waiting, "polled")
            self.waiting = None
            self._check(json.loads(answer))

    def _ask(self) -> None:
        stage = self.stage
        start = stage.log.resolve(str(self.cursor))
        if start.gap:
            self._check({"events": [], "cursor": str(start.cursor), "gap": {"reason": start.gap}})
            return
        self.asked += 1
        connection = Connection(
            f"{id(self)}-{self.asked}",
            self.identity,
            frozenset(),
            position=start.cursor.offset,
            transport="polling",
            opened_at=stage.now,
            opened_ms=stage.wall(),
        )
        instance: Any = SimpleNamespace(hub=stage.hub, log=stage.log, bus=stage.bus)
        poll = Poll.begin(instance, connection, 3, 20)
        poll.look(connection)
        if (answer := poll(connection)) is not None:
            self._check(json.loads(answer))
            return
        connection.answer = poll
        stage.hub.open(connection, Claim(str(self.cursor)))
        stage.hub.wait(connection, poll.until)
        self.waiting = connection

    def _check(self, answer: Any) -> None:
        events = [Cursor.parse(event["cursor"]) for event in answer["events"]]
        cursor = Cursor.parse(answer["cursor"])
        assert cursor is not None
        if answer["gap"]:
            self.gaps += 1
            assert not events
            assert self.cursor.offset < self.stage.log.anchor.offset, "a gap where nothing is gone"
        else:
            mine = [
                offset
                for offset in range(self.cursor.offset + 1, cursor.offset + 1)
                if self.kept[offset].audience.admits(self.identity, frozenset())
            ]
            assert [event.offset for event in events if event] == mine
        self.cursor = cursor


@pytest.mark.parametrize("run", range(12))
def test_random_polls_miss_nothing_without_a_gap(run: int, seed: int) -> None:
    """Whatever comes while they ask, wait, are woken and answered, and however much is trimmed.

    Most events are for others, so that a poll that waits is passed by more than the log keeps.
    """
    dice = random.Random(seed + run)
    stage = Stage(
        seed + run,
        history=dice.choice([5, 40, 10_000]),
        history_seconds=dice.choice([7, 1e9]),
        history_bytes=dice.choice([20_000, math.inf]),
        heartbeat=dice.choice([1, 15]),
        writes_per_turn=dice.choice([1, 2]),
    )
    kept: dict[int, Any] = {}
    askers = [Asker(stage, dice.choice([ALICE, BOB, Identity("carol")]), kept) for _ in range(5)]
    for _ in range(3000):
        act = dice.random()
        if act < 0.35:
            audience = Audience.of(users=[dice.choice(["nobody"] * 12 + ["alice", "bob", "carol"])])
            event = stage.emit(audience, pad=dice.choice([0, 0, 2000]))
            kept[stage.log.last] = event
        elif act < 0.6:
            stage.step_pump()
        elif act < 0.9:
            dice.choice(askers).step()
        elif act < 0.92:
            stage.hub.announce("ok", 0)
        else:
            stage.now += dice.choice([0.01, 0.5, 2])
    for _ in range(200):
        stage.step_pump()
        stage.now += 0.5
        for asker in askers:
            asker.step()
    for asker in askers:
        assert asker.cursor.offset >= stage.log.last - len(stage.log)
        assert asker.asked > 10
    assert stage.hub.faults == 0


@pytest.mark.parametrize("when", ["its time is over", "it is ended"])
def test_a_poll_that_waited_while_all_went_to_others_is_told_of_no_gap(when: str) -> None:
    """What the log has dropped meanwhile was not for it, and the pump has shown it everything."""
    stage = Stage(history=5)
    poll = waiting(stage)
    stage.hub.wait(poll, 5.0)
    for _ in range(50):
        stage.emit(Audience.of(users=["bob"]))
        stage.pump.step()
    if when == "it is ended":
        stage.hub.end(poll, "shutdown", after=0)
    else:
        stage.now = 5.0
        stage.pump.beat()
    assert poll.live_since == NEVER
    assert stage.hub.next(poll) == (b"news" if when == "it is ended" else None)
    assert poll.position == stage.log.last


def test_a_place_in_a_pass_counts_for_who_was_in_it_alone() -> None:
    """Who left and joined again while it was written stands where it has read to since."""
    stage = Stage()
    client = Client(ALICE)
    connection = stage.connect(client, direct=False)
    stage.settle([client])
    stage.emit(EVERYONE)
    taken = stage.hub.readers.take()
    assert taken is not None
    stage.hub.fall_behind(connection, None, number=taken.number, position=taken.start)
    stage.step_server(client)
    assert connection.live_since != NEVER
    position = connection.position
    stage.hub.fall_behind(connection, None, number=taken.number, position=taken.start)
    assert connection.live_since != NEVER
    assert connection.position == position


@pytest.mark.parametrize("trouble", ["a clock ahead", "set back", "set back while open"])
def test_r85_clocks_that_are_wrong_end_no_new_stream(trouble: str) -> None:
    """An end that another host's clock puts 10 minutes ahead, and a clock that is set back.

    What was open ends, what is opened later stays, and none is sent back at once.
    """
    stage = Stage()
    wall = [1_000_000_000_000]
    stage.hub.wall = lambda: wall[0]

    def stream(asked: int) -> Connection:
        connection = Connection(
            f"c{stage.hub.opened['sse']}",
            ALICE,
            frozenset(),
            position=0,
            transport="sse",
            opened_at=stage.now,
            opened_ms=asked,
        )
        stage.hub.open(connection)
        return connection

    first, asked = stream(wall[0]), wall[0]
    stage.now += 1
    wall[0] += 1000
    if trouble == "set back while open":
        wall[0] -= 600_000
    ahead = 600_000 if trouble == "a clock ahead" else 0
    order = Event("e", "hybrid.disconnect", '{"user":"alice"}', wall[0] + ahead, EVERYONE)
    stage.hub.control(order)
    assert first.farewell is not None
    assert b'"after":1000' in first.farewell
    if trouble != "set back while open":
        late = stream(asked)
        assert late.leaving == "kicked", "its request came before the end"
    if trouble == "set back":
        wall[0] -= 600_000
    stage.now += 0.1
    wall[0] += 100
    assert stream(wall[0]).farewell is None


def test_a_pass_that_breaks_loses_nothing_for_those_behind_it() -> None:
    """Whoever the pass had not come to reads the events for themselves, once."""
    stage = Stage()
    clients = [Client(Identity(user)) for user in ("u", "v", "w")]
    for client in clients:
        stage.connect(client)
    stage.settle(clients)
    tally = stage.pump._tally

    def broken(batch: Batch, taken: int) -> None:
        raise OverflowError

    stage.pump._tally = broken  # type: ignore[method-assign]  # a fault
    for user in ("u", "v", "w"):
        stage.emit(Audience.of(users=[user]))
    stage.pump.step()
    assert stage.hub.faults == 1
    stage.pump._tally = tally  # type: ignore[method-assign]
    stage.settle(clients)
    assert [ticks(client) for client in clients] == [[1], [2], [3]]


@pytest.mark.parametrize(
    "where", ["write", "cut", "bite", "notice", "beat", "provisional", "goodbye"]
)
def test_what_goes_wrong_with_one_stream_ends_that_one_alone(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed, counted and written down; everybody else gets everything, once, in order."""
    stage = Stage(heartbeat=15, stall=5)
    clients = [Client(Identity(f"u{n}")) for n in range(7)]
    connections = [stage.connect(client) for client in clients]
    stage.settle(clients)
    victim: Any = connections[3]
    others = [client for client in clients if client is not clients[3]]
    if where == "write":
        victim.send = broken
    elif where == "cut":
        victim.send = lambda data, flags: 1
        monkeypatch.setattr(Batch, "cut_at", broken)
    elif where == "bite":
        victim.sees = broken
        stage.hub.fall_behind(victim, None)
    elif where == "notice":
        tell = stage.hub.readers._bulletin.tell

        def told(connection: Connection) -> bytes:
            return bytes(broken()) if connection is victim else tell(connection)

        monkeypatch.setattr(stage.hub.readers._bulletin, "tell", told)
        stage.hub.announce("degraded", 0)
    elif where == "beat":
        send = victim.send
        victim.send = broken
        stage.now += 15
        stage.pump.beat()
        victim.send = send
    elif where == "provisional":
        victim.send = broken
        stage.hub.provisional(Event("p", "tick", "[0]", 0, EVERYONE))
        stage.pump.step()
        stage.hub.seal()
    else:
        monkeypatch.setattr(stage.hub, "_on_close", broken)
        stage.hang_up(clients[3])
    for _ in range(3):
        stage.emit(EVERYONE)
        stage.pump.step()
        stage.pump.beat()
    stage.settle(others)
    first = [0] if where == "provisional" else []
    assert [ticks(client) for client in others] == [[*first, 1, 2, 3]] * 6
    assert victim.closed == ("client" if where == "goodbye" else "lost")
    assert stage.hub.held() == 6
    assert stage.hub.faults == 1


@pytest.mark.parametrize("what", ["stored", "provisional"])
@pytest.mark.parametrize("direct", [True, False], ids=["socket", "iterator"])
def test_a_pass_that_cannot_be_made_loses_nothing(
    what: str, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody reads for themselves then, from where it would have begun, and nothing twice."""
    stage = Stage()
    clients = [Client(ALICE), Client(BOB)]
    for client in clients:
        stage.connect(client, direct=direct)
    stage.settle(clients)
    address = fanout.address

    def once(*arguments: Any) -> Any:
        monkeypatch.setattr(live, "address", address)
        raise RuntimeError("a fault")

    for n in range(4):
        if n == 2:
            monkeypatch.setattr(live, "address", once)
        if what == "stored":
            stage.emit(EVERYONE, [n])
        else:
            stage.hub.provisional(Event(f"p{n}", "tick", f"[{n}]", 0, EVERYONE))
        stage.settle(clients)
    assert stage.hub.faults == 1
    assert [ticks(client) for client in clients] == [[0, 1, 2, 3]] * 2
    assert stage.hub.held() == 2


@pytest.mark.parametrize("run", range(3))
def test_threads_that_switch_anywhere_keep_every_promise(run: int, seed: int) -> None:
    """Real threads, made to switch every few microseconds: streams, emits, ends, a small log."""
    dice = random.Random(seed + run)
    log = Log("e", max_events=dice.choice([20, 10_000]), max_seconds=3600)
    hub = Hub(
        log,
        heartbeat=0.1,
        max_connections=100,
        clock=time.monotonic,
        wall=lambda: int(time.time() * 1000),
        random=random.random,
        pause=lambda: time.sleep(1e-9),
    )
    pump, bus = Pump(hub, stall=30, writes_per_turn=1), MemoryBus(log, hub, clock=hub.wall)
    kept: dict[int, Any] = {}
    emitted, trouble = threading.Event(), []

    def emit(chances: random.Random) -> None:
        for n in range(1000):
            audience = chances.choice([EVERYONE, Audience.of(users=["alice"]), Audience.of([])])
            event = Event(f"{id(chances)}-{n}", "tick", str(n), hub.wall(), audience)
            (receipt,) = bus.publish([event])
            assert receipt.cursor is not None
            kept[receipt.cursor.offset] = event
            if n % 10 == 0:
                time.sleep(0.001)

    def follow(client: Client, chances: random.Random) -> None:
        for turn in range(10_000):
            connection = Connection(
                f"{id(client)}-{turn}",
                client.identity,
                client.topics,
                position=0,
                transport="sse",
                opened_at=hub.clock(),
            )
            start = hub.open(connection, Claim(client.cursor))
            stream = Stream(hub, connection, greeting(hub, connection, start))
            client.pipe, client.parser = Pipe(1 << 30), Parser()
            lifetime = chances.randrange(2, 20)
            for number, piece in enumerate(stream):
                client.pipe.buffer += piece
                client.receive(1 << 30)
                here = Cursor.parse(client.cursor or "")
                if emitted.is_set() and here is not None and here.offset >= log.last:
                    stream.close()
                    return
                if number == lifetime:
                    if chances.random() < 0.5:
                        break
                    hub.end(connection, "kicked", after=0)
            stream.close()

    def guarded(act: Any, *arguments: Any) -> None:
        try:
            act(*arguments)
        except BaseException as error:
            trouble.append(error)

    clients = [Client(ALICE if n % 2 else BOB) for n in range(6)]
    emitters = [threading.Thread(target=guarded, args=(emit, random.Random(n))) for n in range(2)]
    followers = [
        threading.Thread(target=guarded, args=(follow, client, random.Random(seed + n)))
        for n, client in enumerate(clients)
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        pump.start()
        for thread in followers:
            thread.start()
        while hub.held() < len(clients) and not trouble:
            time.sleep(0.001)
        for thread in emitters:
            thread.start()
        for thread in emitters:
            thread.join()
        emitted.set()
        for thread in followers:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
        pump.stop()
    if trouble:
        raise trouble[0]
    assert hub.held() == 0
    assert hub.faults == 0
    assert sum(len(client.told) for client in clients) > 200, "hardly anything was tried"
    for client in clients:
        check_history(SimpleNamespace(servers=clients, log=log), client, kept)
