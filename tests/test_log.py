"""The log against a naive one: resume or gap, and every batch of every reader."""

import math
import tracemalloc
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from hybrid.audience import EVERYONE, Audience, Identity, visible
from hybrid.events import MAX_OFFSET, ORIGIN, Cursor, Event
from hybrid.log import UNSEEN, Entry, Log, Reading, Start

AUDIENCES = [EVERYONE, Audience.of(users=["alice"]), Audience.of(roles=["staff"]), Audience.of([])]
READERS = [Identity(), Identity("alice"), Identity("bob", {"staff"}), Identity("alice", {"staff"})]
NO_TOPICS: frozenset[str] = frozenset()
BIG = 1 << 30


def an_event(number: int, *, at: int = 0, audience: Audience = EVERYONE, size: int = 1) -> Event:
    return Event(f"id-{number}", "tick", "1" * size, at, audience)


def a_log(events: int = 0, *, max_events: int = 100, max_seconds: float = 60) -> Log:
    """A log with so many events, one a second."""
    log = Log("e", max_events=max_events, max_seconds=max_seconds)
    for number in range(1, events + 1):
        log.append(an_event(number, at=number * 1000), number * 1000)
    return log


def place(offset: int) -> Cursor:
    """Where the event of that number is in such a log."""
    cursor = Cursor("e", 0, ORIGIN)
    for number in range(1, offset + 1):
        cursor = cursor.next(f"id-{number}")
    return cursor


def read_all(log: Log, after: int, *, max_events: int = BIG, max_bytes: int = BIG) -> Reading:
    return log.read(after, log.last, lambda _: True, max_events=max_events, max_bytes=max_bytes)


def offsets(reading: Reading) -> list[int]:
    return [entry.offset for entry in reading.entries]


# -- against a model


@dataclass
class Follower:
    """A client that comes back now and then with the cursor it has."""

    identity: Identity
    cursor: str
    position: int
    saw: list[int] = field(default_factory=list)


class LogMachine(RuleBasedStateMachine):
    """Everything that was ever appended is known to the model; the log must answer like it."""

    @initialize(
        max_events=st.integers(1, 8),
        max_seconds=st.integers(2, 20),
        max_bytes=st.sampled_from([math.inf, 1, 2500, 5000]),
        start=st.none() | st.integers(0, 5),
    )
    def begin(self, max_events: int, max_seconds: int, max_bytes: float, start: int | None) -> None:
        self.start = Cursor("e", 0, ORIGIN) if start is None else Cursor("e", start, "start")
        self.log = Log(
            "e",
            max_events=max_events,
            max_seconds=max_seconds,
            max_bytes=max_bytes,
            start=None if start is None else self.start,
        )
        self.max_events = max_events
        self.max_bytes = max_bytes
        self.weights: dict[int, int] = {}
        self.max_ms = max_seconds * 1000
        self.now = 100_000
        self.events: dict[int, Event] = {}
        self.cursors = {self.start.offset: self.start}
        self.held: list[int] = []
        self.followers: list[Follower] = []

    # -- the model

    @property
    def anchor(self) -> int:
        return self.held[0] - 1 if self.held else self.last

    @property
    def last(self) -> int:
        return max(self.cursors)

    @property
    def bytes(self) -> int:
        return sum(self.weights[offset] for offset in self.held)

    def model_expire(self, upto: int | None = None) -> None:
        while self.held and (
            len(self.held) > self.max_events
            or (self.bytes > self.max_bytes and len(self.held) > 1)
            or (
                self.events[self.held[0]].at < self.now - self.max_ms
                and (upto is None or self.held[0] <= upto)
            )
        ):
            del self.held[0]

    def model_sees(self, identity: Identity, after: int, upto: int) -> list[int]:
        return [
            offset
            for offset in range(after + 1, upto + 1)
            if visible(self.events[offset], identity, NO_TOPICS)
        ]

    # -- what happens

    @rule(
        step=st.integers(-3000, 3000),
        sent=st.lists(
            st.tuples(
                st.sampled_from([0, 0, 0, 0, 0, -7000, -1500, 1500]),
                st.sampled_from(AUDIENCES),
                st.integers(1, 200),
            ),
            min_size=1,
            max_size=5,
        ),
    )
    def emit(self, step: int, sent: list[tuple[int, Audience, int]]) -> None:
        """Clocks may go back, and the emitter's need not be the log's."""
        self.now += step
        for skew, audience, size in sent:
            self.append(skew, audience, size)

    def append(self, skew: int, audience: Audience, size: int) -> None:
        number = len(self.events) + 1
        event = an_event(number, at=self.now + skew, audience=audience, size=size)
        offset = self.last + 1
        before = self.log.head
        entry = self.log.append(event, self.now)
        assert entry.offset == offset
        assert entry.event.cursor == before.next(event.id)
        assert f"id: e.{offset}.{event.id}.".encode() in entry.frame
        self.events[offset] = event
        self.weights[offset] = entry.weight
        self.cursors[offset] = before.next(event.id)
        self.held.append(offset)
        self.model_expire()

    @rule(step=st.integers(-3000, 9000), back=st.none() | st.integers(0, 5))
    def expire(self, step: int, back: int | None) -> None:
        """All of it, or up to an offset that has been handed on."""
        self.now += step
        upto = None if back is None else self.last - back
        self.log.expire(self.now, upto)
        self.model_expire(upto)

    @rule(identity=st.sampled_from(READERS), back=st.booleans())
    def come(self, identity: Identity, back: bool) -> None:
        """A new client starts at now, or with what is kept."""
        position = self.anchor if back else self.last
        start = self.log.resolve("0" if back else None)
        assert start == Start(self.cursors[position], resumed=back)
        self.followers.append(Follower(identity, str(start.cursor), position))

    @precondition(lambda self: self.followers)
    @rule(data=st.data(), max_events=st.integers(1, 4), max_bytes=st.integers(1, 400))
    def come_back(self, data: st.DataObject, max_events: int, max_bytes: int) -> None:
        """Reads to the end in batches, or stops half way, or was away too long and is told."""
        follower = data.draw(st.sampled_from(self.followers))
        start = self.log.resolve(follower.cursor)
        if follower.position < self.anchor:
            assert start == Start(self.cursors[self.last], gap="expired")
            follower.position = self.last
            follower.cursor = str(start.cursor)
            return
        assert start == Start(self.cursors[follower.position], resumed=True)
        batches = data.draw(st.integers(1, 5) | st.just(100))
        position = follower.position
        for _ in range(batches):
            reading = self.log.read(
                position,
                self.log.last,
                lambda event: visible(event, follower.identity, NO_TOPICS),
                max_events=max_events,
                max_bytes=max_bytes,
            )
            assert not reading.overflow
            assert len(reading.entries) <= max_events
            size = sum(len(entry.frame) for entry in reading.entries)
            assert len(reading.entries) <= 1 or size <= max_bytes
            # order, no loss, no repetition: exactly the visible ones up to where it looked
            seen = offsets(reading)
            assert seen == self.model_sees(follower.identity, position, reading.cursor.offset)
            assert reading.cursor == self.cursors[reading.cursor.offset]
            if not seen:
                # what one may not see moves one's position all the same
                assert reading.cursor.offset == self.last
                break
            follower.saw += seen
            position = reading.cursor.offset
        follower.position = reading.cursor.offset
        follower.cursor = str(reading.cursor)
        assert follower.saw == sorted(set(follower.saw))

    # -- what is asked

    @rule(data=st.data(), max_replay=st.none() | st.integers(0, 10))
    def resolve_a_true_cursor(self, data: st.DataObject, max_replay: int | None) -> None:
        """Every cursor that was ever handed out resumes exactly while history reaches."""
        offset = data.draw(st.sampled_from(sorted(self.cursors)))
        start = self.log.resolve(str(self.cursors[offset]), max_replay=max_replay)
        if offset < self.anchor:
            gap = "expired"
        elif max_replay is not None and self.last - offset > max_replay:
            gap = "too_far"
        else:
            assert start == Start(self.cursors[offset], resumed=True)
            return
        assert start == Start(self.cursors[self.last], gap=gap)

    @rule(data=st.data(), change=st.sampled_from(["epoch", "id", "ahead"]))
    def resolve_a_false_cursor(self, data: st.DataObject, change: str) -> None:
        """A position that cannot be proved is never replayed from, and the reason is right."""
        offset = data.draw(st.sampled_from(sorted(self.cursors)))
        true = self.cursors[offset]
        if change == "epoch":
            false, gap = Cursor("other", offset, true.mark), "epoch"
        elif change == "id":
            false = Cursor("e", offset, "forged")
            gap = "expired" if offset < self.anchor else "forked"
        else:
            false = Cursor("e", self.last + data.draw(st.integers(1, 1000)), true.mark)
            gap = "rollback"
        assert self.log.resolve(str(false)) == Start(self.cursors[self.last], gap=gap)

    @rule(data=st.data(), max_replay=st.none() | st.integers(0, 10))
    def resolve_a_time(self, data: st.DataObject, max_replay: int | None) -> None:
        """Every held event emitted later is replayed, or it is said that some are gone."""
        times = sorted(event.at for event in self.events.values())
        near = (
            st.sampled_from(times).flatmap(lambda at: st.integers(at - 1, at + 1))
            if times
            else st.nothing()
        )
        since = data.draw(near | st.integers(1, 300_000) | st.just(0))
        start = self.log.resolve(str(since), max_replay=max_replay)
        dropped_later = [
            offset
            for offset, event in self.events.items()
            if offset <= self.anchor and event.at > since
        ]
        if since and dropped_later:
            assert start == Start(self.cursors[self.last], gap="expired")
            return
        later = [offset for offset in self.held if self.events[offset].at > since]
        position = later[0] - 1 if later else self.last
        if max_replay is not None and self.last - position > max_replay:
            assert start == Start(self.cursors[self.last], gap="too_far")
        else:
            assert start == Start(self.cursors[position], resumed=True)

    @rule(text=st.text(max_size=20).filter(lambda text: not (text.isascii() and text.isdigit())))
    def resolve_anything(self, text: str) -> None:
        start = self.log.resolve(text)
        assert start.cursor == self.cursors[self.last]
        assert not start.resumed
        assert start.gap == ("invalid" if Cursor.parse(text) is None else "epoch")

    @rule(data=st.data())
    def read_from_where_nothing_is_held(self, data: st.DataObject) -> None:
        """A reader that fell out of the log is told so and goes on where it was to read to."""
        gone = [offset for offset in self.cursors if offset < self.anchor]
        if not gone:
            return
        after = data.draw(st.sampled_from(gone))
        upto = data.draw(st.integers(after, self.last))
        reading = self.log.read(after, upto, lambda _: True, max_events=BIG, max_bytes=BIG)
        assert reading.overflow
        assert not reading.entries
        held = upto >= self.anchor
        assert reading.cursor == self.cursors[upto if held else self.last]

    @rule(data=st.data())
    def between(self, data: st.DataObject) -> None:
        after = data.draw(st.sampled_from(sorted(self.cursors)))
        upto = data.draw(st.integers(after, self.last))
        entries = self.log.between(after, upto)
        if after < self.anchor and upto > after:
            assert entries is None
        else:
            assert entries is not None
            assert [entry.offset for entry in entries] == list(range(after + 1, upto + 1))

    # -- what always holds

    @invariant()
    def holds_what_it_should(self) -> None:
        assert len(self.log) == len(self.held)
        assert self.log.bytes == self.bytes
        assert self.log.last == self.last
        assert self.log.head == self.cursors[self.last]
        assert self.log.anchor == self.cursors[self.anchor]
        for offset, cursor in self.cursors.items():
            wanted = cursor if offset >= self.anchor else None
            assert self.log.cursor_at(offset) == wanted
        assert self.log.cursor_at(self.last + 1) is None
        reading = read_all(self.log, self.anchor)
        assert offsets(reading) == self.held

    @invariant()
    def an_up_to_date_client_resumes(self) -> None:
        """Also when age has emptied the log: the anchor proves the last event."""
        head = self.cursors[self.last]
        assert self.log.resolve(str(head), max_replay=0) == Start(head, resumed=True)


def test_r26_r30_r31_r40_r41_the_log_answers_like_the_model() -> None:
    """Order, no loss, no repetition; a gap exactly when history does not reach, rightly named."""
    run_state_machine_as_test(
        LogMachine, settings=settings(max_examples=150, stateful_step_count=40)
    )


# -- the promises, one by one


def test_r26_a_reader_gets_the_slice_of_the_log() -> None:
    """From any position: all that came after it, in order, once."""
    log = a_log(10)
    for after in range(11):
        assert offsets(read_all(log, after)) == list(range(after + 1, 11))


def test_r30_a_dropped_position_is_a_gap() -> None:
    """By count or by age; the last dropped event is still proof enough."""
    log = a_log(10, max_events=3)
    assert log.resolve(str(place(6))).gap == "expired"
    assert log.resolve(str(place(7))) == Start(place(7), resumed=True)
    assert offsets(read_all(log, 7)) == [8, 9, 10]
    log.expire(9_001 + 60_000)
    assert log.resolve(str(place(8))).gap == "expired"
    assert log.resolve(str(place(9))).resumed


def test_r30_a_client_that_saw_everything_outlives_the_log() -> None:
    """Age empties the log over a quiet night; nobody is told of a loss that was none."""
    log = a_log(10)
    log.expire(10**9)
    assert len(log) == 0
    assert log.resolve(str(place(10))) == Start(log.head, resumed=True)
    assert log.resolve(str(place(9))).gap == "expired"
    assert log.resolve("e.10.other").gap == "forked"


def test_r31_a_cursor_ahead_of_the_log_is_a_gap_at_once() -> None:
    """It does not wait for the log to catch up, and does not come true when it has."""
    log = a_log(3)
    assert log.resolve("e.4.id-x") == Start(log.head, gap="rollback")
    assert log.resolve(f"e.{MAX_OFFSET}.id-x").gap == "rollback"
    log.append(an_event(4), 0)
    assert log.resolve("e.4.id-x").gap == "forked"
    assert log.resolve(str(place(4))).resumed


@pytest.mark.parametrize("size", [200, 60_000])
def test_r30_the_log_takes_the_memory_it_may_and_no_more(size: int) -> None:
    """Counted with every encoding of every event; what was dropped for it is a gap like any."""
    most = 4 << 20
    log = Log("e", max_events=100_000, max_seconds=60, max_bytes=most)
    tracemalloc.start()
    try:
        for number in range(4 * most // size // 4):
            entry = log.append(Event(f"{number:016}", "tick", "1" * size, 0, EVERYONE), 0)
            assert entry.chunk
            assert entry.poll_item
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert log.bytes <= most
    assert 0.8 * most < taken < 1.1 * most
    before = log.anchor.offset
    assert before > 0
    assert log.resolve(f"e.{before - 1}.{before - 2:016}") == Start(log.head, gap="expired")
    assert log.resolve(str(log.anchor)).resumed
    assert read_all(log, before - 1).overflow


def test_one_event_is_held_whatever_its_size() -> None:
    """Else nobody would ever be sent it."""
    log = Log("e", max_events=10, max_seconds=60, max_bytes=10)
    for number in (1, 2):
        log.append(an_event(number, size=5000), 0)
        assert offsets(read_all(log, number - 1)) == [number]


def test_names_count_as_well() -> None:
    """An audience of thousands is more than the event that it gets."""
    log = Log("e", max_events=10, max_seconds=60)
    log.append(an_event(1, audience=Audience.of(users=[f"user{n}" for n in range(1000)])), 0)
    assert log.bytes > 100_000


def test_an_event_that_is_stored_once_more_is_found_after_the_first_has_gone() -> None:
    """Redis may have forgotten an id that is tried again; the log has both then."""
    log = Log("e", max_events=2, max_seconds=60)
    for number in (1, 2, 1):
        log.append(an_event(number), 0)
    assert log.find("id-1") == log.head == place(2).next("id-1")


def test_a_reading_comes_past_so_many_of_others_and_no_more() -> None:
    """It says where it has come to and that there is more; step by step nothing is left out."""
    log = Log("e", max_events=10_000, max_seconds=60)
    for number in range(1, 2000):
        audience = EVERYONE if number in (700, 1999) else Audience.of(users=["bob"])
        log.append(an_event(number, audience=audience), 0)
    looked = 0

    def sees(event: Event) -> bool:
        nonlocal looked
        looked += 1
        return event.audience.everyone

    position, found = 0, []
    for _ in range(10):
        looked = 0
        reading = log.read(position, log.last, sees, max_events=9, max_bytes=BIG)
        assert looked == reading.cursor.offset - position
        assert looked <= UNSEEN + len(reading.entries)
        assert reading.paused == (reading.cursor.offset < log.last)
        found += offsets(reading)
        position = reading.cursor.offset
        if not reading.paused:
            break
    assert found == [700, 1999]
    assert position == log.last


def test_the_origin_is_a_position_before_the_first_event() -> None:
    """A client that came before anything happened misses nothing."""
    log = a_log()
    before = str(log.resolve(None).cursor)
    assert log.resolve(before).resumed
    log.append(an_event(1), 0)
    assert log.resolve(before).resumed
    assert offsets(read_all(log, 0)) == [1]


@given(
    st.lists(st.tuples(st.sampled_from(AUDIENCES), st.integers(1, 300)), max_size=25),
    st.sampled_from(READERS),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 700)), min_size=1, max_size=6),
)
def test_r39_batches_of_any_size_give_the_same_sequence(
    sent: list[tuple[Audience, int]], reader: Identity, bounds: list[tuple[int, int]]
) -> None:
    """Streams read in kilobytes, polls in counts, and both end up with the same events."""
    log = Log("e", max_events=100, max_seconds=60)
    for number, (audience, size) in enumerate(sent):
        log.append(an_event(number, audience=audience, size=size), 0)

    def sees(event: Event) -> bool:
        return visible(event, reader, NO_TOPICS)

    whole = log.read(0, log.last, sees, max_events=BIG, max_bytes=BIG)
    position, turn = 0, 0
    found: list[Entry] = []
    while position < log.last:
        max_events, max_bytes = bounds[turn % len(bounds)]
        reading = log.read(position, log.last, sees, max_events=max_events, max_bytes=max_bytes)
        assert reading.cursor.offset > position, "a reader that does not get on"
        assert len(reading.entries) <= max_events
        assert log.resolve(str(reading.cursor)).resumed
        found += reading.entries
        position = reading.cursor.offset
        turn += 1
    assert found == list(whole.entries)


@pytest.mark.parametrize("since", [str(place(4)), "4000", "0"])
def test_r40_too_much_to_replay_is_a_gap(since: str) -> None:
    """The cap is exact, for cursors and for times alike."""
    log = a_log(10)
    first = 0 if since == "0" else 4
    assert log.resolve(since, max_replay=10 - first).resumed
    start = log.resolve(since, max_replay=9 - first)
    assert start == Start(log.head, gap="too_far")


def test_r41_a_filtered_event_moves_the_position_and_shows_nothing() -> None:
    """Else a client whose filter lets little through falls out of the log for no reason."""
    log = Log("e", max_events=100, max_seconds=60)
    for number in range(1, 6):
        log.append(an_event(number, audience=Audience.of(users=["bob"])), 0)
    reading = log.read(
        0,
        log.last,
        lambda event: visible(event, Identity("alice"), NO_TOPICS),
        max_events=1,
        max_bytes=1,
    )
    assert reading == Reading([], log.head)
    assert log.resolve(str(reading.cursor), max_replay=0).resumed


def test_a_reader_that_fell_out_goes_on_at_the_end_it_was_given() -> None:
    """`overflow` names a cursor that can be resumed and shows nothing out of order."""
    log = a_log(10, max_events=3)
    reading = read_all(log, 2)
    assert reading == Reading((), log.head, overflow=True)
    assert log.resolve(str(reading.cursor)).resumed


def test_the_largest_event_is_read_alone() -> None:
    """A bound in bytes never keeps an event back for ever."""
    log = Log("e", max_events=10, max_seconds=60)
    for number in range(1, 4):
        log.append(an_event(number, size=1000), 0)
    assert offsets(read_all(log, 0, max_bytes=10)) == [1]
    assert offsets(read_all(log, 1, max_bytes=10)) == [2]


@pytest.mark.parametrize(
    ("since", "gap"),
    [
        ("", "invalid"),
        ("e.1", "invalid"),
        (f"{place(1)}\n", "invalid"),
        ("-1", "invalid"),
        ("1.5", "invalid"),
        ("\u0661", "invalid"),
        ("\u00b2", "invalid"),
        ("\0", "invalid"),
        ("x" * 8192, "invalid"),
        (f"e.{2**53}.id", "invalid"),
        ("f.1.id-1", "epoch"),
        ("e.1.id-1", "forked"),
        ("e.1.id-2", "forked"),
        ("9" * 5000, None),
        ("0" * 5000, None),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_r35_whatever_is_asked_for_has_an_answer(since: str, gap: str | None) -> None:
    """Nothing raises; what is no cursor is a gap at the head."""
    log = a_log(3)
    start = log.resolve(since)
    assert start.gap == gap
    assert start.resumed == (gap is None)
    if gap:
        assert start.cursor == log.head


def test_an_entry_is_encoded_once() -> None:
    """A thousand readers share the bytes: encoding is not what fan-out costs."""
    (entry,) = read_all(a_log(1), 0).entries
    assert entry.frame is entry.frame
    assert entry.chunk is entry.chunk
    assert entry.poll_item is entry.poll_item


def test_clocks_that_go_back_change_no_order() -> None:
    """Offsets order the log; the time of an event decides only when it is dropped."""
    log = Log("e", max_events=10, max_seconds=1)
    for number, at in enumerate([5000, 1000, 9000, 0], 1):
        log.append(an_event(number, at=at), 5000)
    assert offsets(read_all(log, 0)) == [1, 2, 3, 4]
    log.expire(6001)
    assert offsets(read_all(log, 2)) == [3, 4]
    assert log.resolve("4999").gap == "expired"
    started: Any = log.resolve("5000")
    assert started == Start(place(2), resumed=True)
