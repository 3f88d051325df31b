"""Bytes out and back in: one table of frames, and everything that an application may send."""

import codecs
import json
import math
import re
from pathlib import Path
from typing import Any

import httpx_sse
import pytest
from httpx_sse._decoders import SSEDecoder, SSELineDecoder
from hypothesis import example, given
from hypothesis import strategies as st

from hybrid.audience import EVERYONE
from hybrid.errors import HybridError, InvalidEvent
from hybrid.events import Cursor, Event, make_event
from hybrid.wire import (
    COMMENT,
    chunk,
    control_frame,
    event_frame,
    gap_frame,
    heartbeat_frame,
    poll_item,
    retry_frame,
    to_json,
)
from whatwg import Block, Parser

NASTY = (
    "\r",
    "\n",
    "\r\n",
    "\0",
    "\ufeff",
    "\u2028",
    "\u2029",
    "\x85",
    "\x0b",
    "\x0c",
    "\x1c",
    "\ud800",
    "\udfff",
    " ",
    "  ",
    ":",
    "\n\n",
    "id: 1\n",
    "event: hybrid.bye\n",
    "\ndata:",
    "",
)
CURSOR = Cursor("log-1", 7, "ev-7")

# Halves of surrogate pairs are in it, on their own: two that meet become one character on the
# way through JSON, which no decoder can undo.
PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
texts = (
    st.lists(
        st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=()), max_size=5),
        max_size=8,
    )
    .map("".join)
    .filter(lambda text: not PAIR.search(text))
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def expand(value: Any) -> Any:
    """The table's long strings written out."""
    if isinstance(value, list):
        return [expand(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"join"}:
        return "".join(expand(value["join"]))
    if value.keys() == {"repeat"}:
        text, times = value["repeat"]
        return text * times
    return {key: expand(item) for key, item in value.items()}


CASES = [
    expand(case)
    for case in json.loads(Path(__file__).with_name("wire_cases.json").read_text())["cases"]
]
each_case = pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])


def encoded(case: dict[str, Any]) -> bytes:
    """The frame that the package makes of a case."""
    cursor = Cursor.parse(case["cursor"]) if case.get("cursor") else None
    match case["kind"]:
        case "event":
            event = case["event"]
            place = Cursor.parse(event["cursor"]) if event["cursor"] else None
            return event_frame(
                Event(
                    event["id"],
                    event["type"],
                    event["body"],
                    event["at"],
                    EVERYONE,
                    event["is_text"],
                    place,
                )
            )
        case "control":
            return control_frame(case["control"], case["data"], cursor)
        case "gap":
            assert cursor is not None
            return gap_frame(case["reason"], cursor)
        case "heartbeat":
            assert cursor is not None
            return heartbeat_frame(cursor)
        case "retry":
            return retry_frame(case["ms"])
        case "comment":
            return COMMENT
    raise AssertionError(f"a case of an unknown kind: {case['kind']}")


def expected(case: dict[str, Any]) -> list[Block]:
    return [
        Block(block["id"], block["type"], block["data"], tuple(map(tuple, block["fields"])))
        for block in case["blocks"]
    ]


def feed(parser: Parser, data: bytes, size: int) -> list[Block]:
    """Everything that the parser reads when the network cuts the bytes into pieces of `size`."""
    return [
        block
        for start in range(0, len(data), size)
        for block in parser.feed(data[start : start + size])
    ]


# -- the table


@each_case
def test_a_frame_is_encoded_as_the_table_says(case: dict[str, Any]) -> None:
    """The bytes on the wire are fixed: other clients than ours read them."""
    assert encoded(case) == case["frame"].encode()


@each_case
@pytest.mark.parametrize("size", [1 << 30, 1, 3, 7])
def test_a_frame_is_read_as_the_table_says(case: dict[str, Any], size: int) -> None:
    """A conforming parser gets exactly what was sent, however the network cuts it up."""
    parser = Parser()
    assert feed(parser, case["frame"].encode(), size) == expected(case)
    assert parser.last_event_id == case["last_event_id"]
    assert parser.retry == case.get("retry")


def test_r71_the_mutant_that_cuts_at_other_line_ends_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`str.splitlines` ends lines where the standard does not: the table notices."""

    class Mutant:
        split = staticmethod(str.splitlines)

    monkeypatch.setattr("hybrid.wire._LINE_END", Mutant)
    assert any(Parser().feed(encoded(case)) != expected(case) for case in CASES)


@pytest.mark.parametrize("size", [1 << 30, 1, 3, 7])
def test_frames_in_a_row_do_not_touch_each_other(size: int) -> None:
    """A frame ends itself: whatever follows starts afresh."""
    parser = Parser()
    frames = b"".join(case["frame"].encode() for case in CASES)
    assert feed(parser, frames, size) == [block for case in CASES for block in expected(case)]


UNFIT = {"heartbeat", "retry"}
"""Cases that httpx-sse 0.4.3 gets wrong: it dispatches a block without data as an empty event,
where the standard says to return."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case["name"]) for case in CASES if case["name"] not in UNFIT]
)
@pytest.mark.parametrize("size", [1 << 30, 1, 3, 7])
def test_another_parser_reads_the_same(case: dict[str, Any], size: int) -> None:
    """httpx-sse, which its users also point at this server, understands every frame with data."""
    utf8 = codecs.getincrementaldecoder("utf-8")()
    lines, decoder = SSELineDecoder(), SSEDecoder()
    data = case["frame"].encode()
    found: list[httpx_sse.ServerSentEvent] = []
    for start in range(0, len(data), size):
        for line in lines.decode(utf8.decode(data[start : start + size])):
            event = decoder.decode(line)
            if event is not None:
                found.append(event)
    assert [(event.event, event.data, event.id or None) for event in found] == [
        (block.type, block.data, block.id) for block in expected(case)
    ]


# -- the tests' own parser


@pytest.mark.parametrize(
    ("stream", "blocks", "last_event_id"),
    [
        ("data: YHOO\ndata: +2\ndata: 10\n\n", [("message", "YHOO\n+2\n10")], ""),
        (": test\n\ndata: 1\nid: 1\n\ndata:2\nid\n\ndata:  3\n\n", ["1", "2", " 3"], ""),
        ("data\n\ndata\ndata\n\ndata:", ["", "\n"], ""),
        ("data:test\n\ndata: test\n\n", ["test", "test"], ""),
        ("\ufeffdata: a\n\n\ufeffdata: b\n\n", ["a"], ""),
        ("data: a\r\rdata: b\r\n\r\ndata: c\n\r", ["a", "b", "c"], ""),
        ("id: a\0b\ndata: 1\n\n", ["1"], ""),
        ("id: a\ndata: 1\n\nid: b\ndata: cut off\n", ["1"], "a"),
        ("event: x\n\ndata: 1\n\n", ["1"], ""),
        ("retry: 1\u0661\ndata: 1\n\n", ["1"], ""),
        ("Data: no\n data: no\ndata : no\n\ndata: 1\n\n", ["1"], ""),
    ],
)
@pytest.mark.parametrize("size", [1 << 30, 1, 3])
def test_the_parser_of_the_tests_follows_the_standard(
    stream: str, blocks: list[Any], last_event_id: str, size: int
) -> None:
    """The judge is judged too: the standard's own examples and corner cases."""
    parser = Parser()
    found = feed(parser, stream.encode(), size)
    wanted = [block if isinstance(block, tuple) else ("message", block) for block in blocks]
    assert [(block.type, block.data) for block in found] == wanted
    assert parser.last_event_id == last_event_id
    assert parser.retry is None


def test_the_parser_of_the_tests_replaces_what_is_not_utf_8() -> None:
    """Broken bytes become U+FFFD and end nothing."""
    parser = Parser()
    assert feed(parser, b"data: \xff\xc3\ndata: \xe2\x80\n\n", 1)[0].data == "\ufffd\ufffd\n\ufffd"


# -- whatever an application sends


def make(type: str, data: Any, text: str | None) -> Event | None:
    """The event, or None when it was refused as the contract says."""
    try:
        return make_event(
            type,
            data,
            EVERYONE,
            text=text,
            at=0,
            max_bytes=65536,
            encode=to_json,
            new_id=lambda: "ev-7",
        )
    except InvalidEvent:
        return None


def arrived(event: Event) -> Block:
    """What a browser makes of the event, between two others and in any framing."""
    parser = Parser()
    before = parser.feed(retry_frame(1) + event_frame(event.at_cursor(CURSOR)))
    after = parser.feed(event_frame(event) + COMMENT)
    assert (len(before), len(after)) == (1, 1)
    assert parser.last_event_id == str(CURSOR)
    assert before[0].id == str(CURSOR)
    assert after[0].fields == (("eid", "ev-7"), ("at", "0"))
    assert (after[0].type, after[0].data) == (before[0].type, before[0].data)
    assert parser.retry == 1
    return before[0]


@given(type=texts | st.just("tick"), text=texts)
@example(type="tick", text="\ufeff")
@example(type="tick\ndata: forged", text="")
@example(type="tick", text="a\r")
@example(type="tick", text="\r\n\r\n")
def test_r81_text_arrives_as_it_was_given_or_is_refused(type: str, text: str) -> None:
    """No text or type can forge, split, lose or change an event; CR and CRLF arrive as LF."""
    event = make(type, None, text)
    if event is None:
        assert any(0xD800 <= ord(letter) < 0xE000 for letter in text) or refused_type(type)
        return
    block = arrived(event)
    assert block.type == type
    assert block.data == re.sub("\r\n|\r", "\n", text)
    assert json.loads(poll_item(event))["text"] == text


def refused_type(type: str) -> bool:
    """Said again in other words than the package's."""
    return (
        not 1 <= len(type) <= 256
        or type.startswith("hybrid.")
        or any(
            ord(letter) < 32
            or 127 <= ord(letter) < 160
            or letter in "\u2028\u2029"
            or 0xD800 <= ord(letter) < 0xE000
            for letter in type
        )
    )


@given(data=json_values)
@example(data=["\u2028", "\r", "\ud800", "\0"])
@example(data={"\r\n": math.inf})
def test_r81_data_arrives_as_it_was_given_or_is_refused(data: Any) -> None:
    """JSON of any content is one line of ASCII that decodes to the same value."""
    event = make("tick", data, None)
    if event is None:
        assert holds_no_number(data)
        return
    block = arrived(event)
    assert block.data.isascii()
    assert json.loads(block.data) == data
    assert json.loads(poll_item(event))["data"] == data


def holds_no_number(data: Any) -> bool:
    """Whether NaN or an infinity is in it, which JSON does not know."""
    if isinstance(data, float):
        return not math.isfinite(data)
    if isinstance(data, dict):
        return any(map(holds_no_number, data.values()))
    return isinstance(data, list) and any(map(holds_no_number, data))


@given(type=texts)
def test_r81_a_type_is_taken_exactly_if_it_cannot_forge_a_line(type: str) -> None:
    """Nothing harmless is refused and nothing harmful is taken."""
    assert (make(type, None, None) is None) == refused_type(type)


@given(reason=texts)
def test_r81_control_frames_carry_any_reason(reason: str) -> None:
    """The protocol's own events are as safe as the application's."""
    parser = Parser()
    (block,) = parser.feed(gap_frame(reason, CURSOR))
    assert block.type == "hybrid.gap"
    assert json.loads(block.data) == {"reason": reason, "cursor": str(CURSOR)}


# -- chunks and poll items


def unchunk(data: bytes) -> bytes:
    """The chunks' content, as RFC 9112 section 7.1 has it; every byte must belong to a chunk."""
    content = b""
    while data:
        match = re.match(rb"([0-9A-Fa-f]+)\r\n", data)
        assert match is not None, data[:40]
        size = int(match[1], 16)
        assert size, "an empty chunk would end the response"
        start = match.end()
        content += data[start : start + size]
        assert len(data) >= start + size + 2
        assert data[start + size : start + size + 2] == b"\r\n"
        data = data[start + size + 2 :]
    return content


@given(st.lists(st.binary(min_size=1, max_size=100) | st.just(b"0\r\n\r\n"), max_size=5))
def test_chunks_in_a_row_decode_to_the_frames(frames: list[bytes]) -> None:
    """What the pump writes itself is framed as HTTP/1.1 wants it, whatever is in the frames."""
    assert unchunk(b"".join(map(chunk, frames))) == b"".join(frames)


@each_case
def test_a_chunk_holds_its_frame(case: dict[str, Any]) -> None:
    """The same for the frames of the table, up to 64 KB."""
    assert unchunk(chunk(encoded(case))) == case["frame"].encode()


@pytest.mark.parametrize("cursor", [CURSOR, None])
@pytest.mark.parametrize(
    ("body", "is_text"), [('{"n":[1]}', False), ('</script>"\r\n\u2028', True)]
)
def test_a_poll_item_says_all_there_is_to_an_event(
    cursor: Cursor | None, body: str, is_text: bool
) -> None:
    """A poll's entry carries what a stream's frame does, and the time; text stays text."""
    item = poll_item(Event("ev-7", 'a"b', body, 1700, EVERYONE, is_text, cursor))
    assert item.isascii()
    assert json.loads(item) == {
        "id": "ev-7",
        "cursor": str(cursor) if cursor else None,
        "type": 'a"b',
        "at": 1700,
        **({"text": body} if is_text else {"data": json.loads(body)}),
    }


@pytest.mark.parametrize("data", [math.nan, math.inf, [-math.inf], object(), {1, 2}, b"x"])
def test_data_that_json_does_not_know_is_refused(data: object) -> None:
    """`JSON.parse` in a browser would fail on it, for every client at once."""
    with pytest.raises((ValueError, TypeError)) as caught:
        to_json(data)
    assert not isinstance(caught.value, HybridError)
