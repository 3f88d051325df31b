"""Cursors, events and audiences: what they refuse, and the one rule in its two forms."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hybrid.audience import EVERYONE, Audience, AudienceIndex, Identity, visible
from hybrid.errors import EventTooLarge, HybridError, InvalidEvent
from hybrid.events import (
    MAX_CURSOR,
    MAX_OFFSET,
    Cursor,
    Event,
    chain,
    check_type,
    make_event,
    random_id,
)
from hybrid.wire import to_json

ALPHABET = "ABCXYZabcxyz0189_~-"
parts = st.text(ALPHABET, min_size=1, max_size=64)
marks = parts | st.builds(chain, parts, parts)
cursors = st.builds(Cursor, parts, st.integers(0, MAX_OFFSET), marks)
anything = st.text(st.characters(exclude_categories=()), max_size=40)


# -- cursors


@given(cursors)
@example(Cursor("~" * 64, MAX_OFFSET, "-" * 64 + ".0123cdef"))
def test_r27_a_cursor_survives_its_text(cursor: Cursor) -> None:
    """What a client hands back is the position that it was given."""
    assert Cursor.parse(str(cursor)) == cursor


@given(
    anything
    | st.lists(anything | st.integers().map(str), min_size=3, max_size=3).map(".".join)
    | cursors.map(str).flatmap(lambda text: st.sampled_from([text + "\n", " " + text, text + "."]))
)
@example("")
@example("..")
@example("e.01.i")
@example("e.-1.i")
@example("e.+1.i")
@example("e.1_0.i")
@example("e.\u0661.i")
@example(f"e.{MAX_OFFSET + 1}.i")
@example(f"e.{'9' * 5000}.i")
@example("e.1.\0")
@example("\ud800.1.i")
@example("é.1.i")
@example("e.1.i\n")
@example("e.1.i.")
@example("e.1.i.0123cde")
@example("e.1.i.0123cdeF")
def test_r27_any_text_is_a_cursor_or_none(text: str) -> None:
    """A hostile cursor never raises, and nothing has two spellings."""
    cursor = Cursor.parse(text)
    assert cursor is None or str(cursor) == text


@given(cursors)
@example(Cursor("~" * 64, MAX_OFFSET, "-" * 64 + ".0123cdef"))
def test_r28_a_cursor_fits_everywhere(cursor: Cursor) -> None:
    """In a header, a URL and an id line without any escape, and within 256 characters."""
    text = str(cursor)
    assert len(text) <= MAX_CURSOR == 256
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-")
    assert Cursor.parse(text + "x" * MAX_CURSOR) is None


def test_r28_event_ids_fit_into_cursors() -> None:
    """Ids are 16 characters from the cursor's alphabet, and not the same twice."""
    ids = {random_id() for _ in range(1000)}
    assert len(ids) == 1000
    for id in ids:
        assert len(id) == 16
        assert Cursor.parse(f"{id}.1.{id}") == Cursor(id, 1, id)


# -- events


def make(
    type: Any = "tick",
    data: Any = None,
    *,
    text: Any = None,
    audience: Audience = EVERYONE,
    max_bytes: int = 100,
    encode: Callable[[Any], str] = to_json,
) -> Event:
    return make_event(type, data, audience, text=text, at=1700, max_bytes=max_bytes, encode=encode)


def test_an_event_is_what_was_given() -> None:
    """Every field arrives; the id is new; it has no place in the log yet."""
    audience = Audience.of(users=["alice"])
    event = make("tick", {"n": [1, None, True]}, audience=audience)
    assert (event.type, event.data, event.at, event.audience) == (
        "tick",
        {"n": [1, None, True]},
        1700,
        audience,
    )
    assert not event.is_text
    assert event.cursor is None
    assert event.id != make().id


def test_a_text_event_keeps_its_text() -> None:
    """Text goes out as it is and is never taken for JSON."""
    event = make(text='{"n":1}')
    assert event.is_text
    assert event.data == event.body == '{"n":1}'


def test_data_is_fixed_at_emit() -> None:
    """What the application changes afterwards does not change the event, nor does a reader."""
    data = {"n": [1]}
    event = make(data=data)
    data["n"].append(2)
    event.data["n"].append(3)
    assert event.data == {"n": [1]}


@pytest.mark.parametrize(
    "type",
    [
        None,
        1,
        b"tick",
        ["tick"],
        "",
        "x" * 257,
        "a\nb",
        "a\rb",
        "\0",
        "a\tb",
        "\x7f",
        "\x85",
        "\x9f",
        "\u2028",
        "\u2029",
        "\ud800",
        "hybrid.",
        "hybrid.bye",
        "hybrid.anything",
    ],
)
def test_a_type_that_cannot_be_sent_is_refused(type: Any) -> None:
    """Nothing that forges a line, and nothing that speaks for the protocol."""
    with pytest.raises(InvalidEvent, match="type"):
        check_type(type)
    with pytest.raises(InvalidEvent, match="type"):
        make(type)


@pytest.mark.parametrize(
    "type", ["x", "x" * 256, "hybrid", "Hybrid.bye", "a.b", " a ", "报告", "*"]
)
def test_any_other_type_is_taken(type: str) -> None:
    """A type is the application's own word."""
    assert check_type(type) == type
    assert make(type).type == type


def nested(depth: int) -> Any:
    value: Any = None
    for _ in range(depth):
        value = [value]
    return value


def circle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "data",
    [
        math.nan,
        [math.inf],
        {"a": -math.inf},
        object(),
        {1, 2},
        b"x",
        {(1, 2): 3},
        nested(100_000),
        circle(),
    ],
    ids=["nan", "inf", "-inf", "object", "set", "bytes", "key", "deep", "circular"],
)
def test_data_that_is_not_json_is_refused(data: Any) -> None:
    """An emit fails where it is called, not in every browser."""
    with pytest.raises(InvalidEvent, match="not JSON"):
        make(data=data)


@pytest.mark.parametrize("text", [1, b"x", ["x"], "\ud800", "a\udfffb"])
def test_text_that_is_not_text_is_refused(text: Any) -> None:
    """A lone surrogate has no UTF-8, and anything but a string is a mistake."""
    with pytest.raises(InvalidEvent, match="text"):
        make(text=text)


def test_data_and_text_at_once_are_refused() -> None:
    """One of them would be lost without a word."""
    with pytest.raises(InvalidEvent, match="not both"):
        make(data={}, text="")


@pytest.mark.parametrize(
    ("data", "text", "size"),
    [("x" * 8, None, 10), (None, "x" * 10, 10), (None, "é" * 5, 10), ("é", None, 8)],
)
def test_an_event_is_measured_in_bytes_as_sent(data: Any, text: Any, size: int) -> None:
    """The limit is on the encoded data, and exact."""
    make(data=data, text=text, max_bytes=size)
    with pytest.raises(EventTooLarge, match=f"{size} bytes"):
        make(data=data, text=text, max_bytes=size - 1)


def test_all_refusals_are_of_one_family() -> None:
    """`except HybridError` catches everything, `except ValueError` too."""
    assert issubclass(EventTooLarge, InvalidEvent)
    assert issubclass(InvalidEvent, HybridError)
    assert issubclass(InvalidEvent, ValueError)


@given(st.text(st.characters(exclude_categories=()), max_size=300), st.integers(0, 300))
def test_text_is_an_event_or_refused_with_its_own_error(text: str, limit: int) -> None:
    """Too big and not sendable are told apart, and nothing else is ever raised."""
    surrogate = any(0xD800 <= ord(letter) < 0xE000 for letter in text)
    try:
        event = make(text=text, max_bytes=limit)
    except EventTooLarge:
        assert not surrogate
        assert len(text.encode()) > limit
    except InvalidEvent:
        assert surrogate
    else:
        assert event.body == text
        assert len(text.encode()) <= limit


def test_data_is_encoded_once_and_by_the_given_encoder() -> None:
    """The application's own JSON provider decides what a date looks like."""
    event = make(data=object(), encode=lambda data: json.dumps(type(data).__name__))
    assert event.data == "object"


# -- audiences


def test_no_audience_is_everyone_and_an_empty_one_is_nobody() -> None:
    """A list of followers that happens to be empty must not turn into a broadcast."""
    anyone = [Identity(), Identity("alice", {"staff"})]
    assert Audience.of() == EVERYONE
    for identity in anyone:
        assert EVERYONE.admits(identity, [])
        for nobody in (
            Audience.of(users=[]),
            Audience.of(roles=()),
            Audience.of(topics=set()),
            Audience.of([], [], []),
        ):
            assert not nobody.admits(identity, ["open"])


@pytest.mark.parametrize("field", ["users", "roles", "topics"])
@pytest.mark.parametrize(
    "given",
    [
        "alice",
        b"alice",
        17,
        True,
        object(),
        (name for name in ["alice"]),
        ["alice", None],
        [True],
        [1.0],
        [10**300],
        [b"alice"],
        [["alice"]],
        [""],
        ["x" * 257],
        ["a\nb"],
        ["\0"],
        ["\u2028"],
        ["\ud800"],
    ],
    ids=lambda given: repr(given).split(" at ")[0][:20],
)
def test_an_audience_of_anything_but_names_is_refused(field: str, given: Any) -> None:
    """`users="al"` would address the users a and l."""
    with pytest.raises(InvalidEvent, match=field):
        Audience.of(**{field: given})


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Identity(""),
        lambda: Identity(True),
        lambda: Identity(1.0),  # type: ignore[arg-type]
        lambda: Identity("alice", "staff"),
    ],
)
def test_a_wrong_identity_is_an_error_in_the_hook(wrong: Callable[[], Identity]) -> None:
    """What is no name would silently match nobody; a role string its letters."""
    with pytest.raises(TypeError, match="Identity"):
        wrong()


def test_a_number_is_the_name_of_its_digits() -> None:
    """A primary key in a session, a hook and an emit is one and the same user."""
    for key in (1, "1"):
        assert Identity(key, roles=[7]) == Identity("1", {"7"})
        for kind in ("users", "roles", "topics"):
            assert Audience.of(**{kind: [key]}) == Audience.of(**{kind: ["1"]})
    assert Audience.of(users=[1]).admits(Identity(1), [])
    assert not Audience.of(users=[1]).admits(Identity(11), [])
    assert Audience.of(roles=[7]).admits(Identity("a", [7]), [])
    assert Audience.of(topics=[17]).admits(Identity(), {"17"})


def test_nobody_is_not_the_user_called_none() -> None:
    """An anonymous visitor gets nothing that is addressed to any user."""
    assert not Audience.of(users=["None"]).admits(Identity(), [])


def test_a_name_counts_only_in_its_own_kind() -> None:
    """The user `staff` does not read what the role `staff` does, nor what the topic does."""
    staff = {
        "users": (Identity("staff"), frozenset[str]()),
        "roles": (Identity("x", {"staff"}), frozenset[str]()),
        "topics": (Identity("x"), frozenset({"staff"})),
    }
    for kind in staff:
        audience = Audience.of(**{kind: ["staff"]})
        for other, (identity, topics) in staff.items():
            assert audience.admits(identity, topics) == (kind == other)


NAMES = ["a", "b", "c", "staff"]
names = st.frozensets(st.sampled_from(NAMES), max_size=3)
audiences = st.just(EVERYONE) | st.builds(
    Audience.of, st.none() | names, st.none() | names, st.none() | names
)


@dataclass(frozen=True, eq=False)
class Reader:
    """A client as far as the index looks."""

    identity: Identity
    topics: frozenset[str]


readers = st.builds(Reader, st.builds(Identity, st.none() | st.sampled_from(NAMES), names), names)


@given(
    st.lists(readers, max_size=8),
    st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=40),
    st.lists(audiences, min_size=1, max_size=5),
)
def test_the_index_and_the_rule_agree(
    crowd: list[Reader], moves: list[tuple[bool, int]], asked: list[Audience]
) -> None:
    """Live delivery reaches exactly those whom `visible` admits, whoever came and went."""
    index: AudienceIndex[Reader] = AudienceIndex()
    present: set[Reader] = set()
    for comes, place in moves:
        if place >= len(crowd):
            continue
        reader = crowd[place]
        if comes:
            index.add(reader)
            present.add(reader)
        else:
            index.discard(reader)
            present.discard(reader)
        assert len(index) == len(present)
        for audience in asked:
            event = Event("e", "tick", "1", 0, audience)
            wanted = {r for r in present if visible(event, r.identity, r.topics)}
            found = index.readers(audience)
            assert set(found) == wanted
            assert len(found) == len(wanted), "somebody would get it twice"
        assert index.topics() == {
            name: count for name in NAMES if (count := sum(name in r.topics for r in present))
        }
    for reader in crowd:
        index.discard(reader)
    assert not index.everyone
    assert not index._keys, "a key stayed for somebody who is gone"
