"""The hub, stepped by hand: every order of events, joins, writes and departures is possible."""

import json
import random
import tracemalloc
from collections import deque
from typing import Any

import pytest

from hybrid.audience import EVERYONE, Audience, Identity
from hybrid.connection import NEVER
from hybrid.errors import TooManyConnections
from hybrid.events import Cursor
from hybrid.hub import CATCH_UP_BYTES, PASS_BYTES, WRITES_PER_TURN
from stage import Client, Stage

ALICE = Identity("alice", {"staff"})
BOB = Identity("bob")


def ticks(client: Client) -> list[Any]:
    return [json.loads(block.data)[0] for block in client.told if block.type == "tick"]


def kinds(client: Client) -> list[str]:
    return [block.type for block in client.told]


def check_history(stage: Stage, client: Client, kept: dict[int, Any]) -> None:
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
            assert event.id == cursor.id
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
    stage.hub.step()
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

        def counted(data: bytes, flags: int, send: Any = send) -> int:
            writes.append(len(data))
            return int(send(data, flags))

        connection.send = counted
    for n in range(10):
        stage.emit(Audience.of(users=["alice"]) if n % 3 == 0 else EVERYONE)
    stage.hub.step()
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
    stage.hub.step()
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
    stage.step_server(client)
    assert connection.closed is not None
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
    assert stage.hub.step()
    assert client.pipe.sent - before <= PASS_BYTES
    stage.settle([client])
    assert ticks(client) == list(range(1, 9))


def test_catching_up_is_bounded_in_bytes() -> None:
    """A reader holds about 16 KB at once, not its whole backlog."""
    stage = Stage()
    for _ in range(200):
        stage.emit(EVERYONE, pad=1000)
    stage.hub.step()
    client = Client(ALICE)
    client.cursor = "stage.0.origin"
    connection = stage.connect(client)
    largest = 0
    while (frames := stage.hub.read(connection)) is not None:
        largest = max(largest, len(frames))
    assert 1000 < largest <= CATCH_UP_BYTES


@pytest.mark.parametrize("run", range(20))
def test_random_interleavings_keep_every_promise(run: int, seed: int) -> None:
    """Order, no loss without gap, nothing twice, no wrong reader: whoever runs when.

    Emits, joins, reads, partial reads, vanishing clients, kicks and heartbeats in random order,
    switching in the middle of passes.
    """
    dice = random.Random(seed + run)
    stage = Stage(
        seed + run,
        history=dice.choice([5, 50, 10_000]),
        heartbeat=dice.choice([1, 15]),
        writes_per_turn=dice.choice([1, 2, 5]),
    )
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
        elif act < 0.97:
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
    assert stage.hub.faults == 0
