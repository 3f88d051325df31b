"""The bytes of Server-Sent Events, HTTP/1.1 chunks and poll answers. Pure.

Ruled by the WHATWG HTML standard, section 9.2 (server-sent events), and RFC 9112 section 7.1.
A stream's lines end at CR, LF or CRLF and nowhere else: `str.splitlines` also cuts at U+2028
and six others, which would change what was sent.
"""

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NoReturn

from hybrid.events import Cursor, Event

COMMENT = b":\n\n"
"""A sign of life that says nothing else."""

LAST_CHUNK = b"0\r\n\r\n"
"""The end of a chunked body."""

_LINE_END = re.compile("\r\n|\r|\n")
_BREAKS = re.compile("[\r\n\t]+")
_BEYOND_ASCII = re.compile("[^\x00-\x7f]+")


def to_json(data: Any, default: Callable[[Any], Any] | None = None) -> str:
    """JSON text in ASCII on one line: no separator of any kind can occur in it.

    Raises `ValueError` for NaN and the infinities, which `JSON.parse` refuses, and
    `TypeError` for what neither JSON nor `default` knows.
    """
    return _encoder(default).encode(data)


@lru_cache(16)
def _encoder(default: Callable[[Any], Any] | None) -> json.JSONEncoder:
    """Made once for each application: `json.dumps` makes one each time, for longer than it runs."""
    return json.JSONEncoder(
        ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=default
    )


def on_one_line(text: str) -> str:
    """The same JSON, value for value, without a line break or anything beyond ASCII.

    Raises `ValueError` for what `JSON.parse` would refuse. In JSON a raw line break is between
    values, never within a string, and a character beyond ASCII within strings only. So neither
    numbers nor the order of keys change.
    """
    json.loads(text, parse_constant=_refuse)
    if _BREAKS.search(text):
        text = _BREAKS.sub(" ", text)
    return text if text.isascii() else _BEYOND_ASCII.sub(_escape, text)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it says {constant}, which is no JSON")


def _escape(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def event_frame(event: Event) -> bytes:
    """An event as a block of the stream.

    A stored one carries its cursor as `id:`. A provisional one has none, so that a browser's
    Last-Event-ID never leaves the log; its own id goes into `eid:`. That and `at:`, the time of
    the emit, are fields that the standard tells every other parser to ignore.
    """
    place = f"id: {event.cursor}" if event.cursor is not None else f"eid: {event.id}"
    if event.is_text:
        data = "".join(f"data: {line}\n" for line in _LINE_END.split(event.body))
    else:
        data = f"data: {event.body}\n"
    return f"{place}\nat: {event.at}\nevent: {event.type}\n{data}\n".encode()


def control_frame(name: str, data: dict[str, Any], cursor: Cursor | None = None) -> bytes:
    """One of the protocol's own events, `hybrid.<name>`."""
    place = f"id: {cursor}\n" if cursor is not None else ""
    return f"{place}event: hybrid.{name}\ndata: {to_json(data)}\n\n".encode()


def gap_frame(reason: str, cursor: Cursor) -> bytes:
    """What was asked for cannot be replayed in full; its `id:` makes sure it is said once."""
    return control_frame("gap", {"reason": reason, "cursor": str(cursor)}, cursor)


def heartbeat_frame(cursor: Cursor) -> bytes:
    """An id-only block: a sign of life that also moves the client's cursor."""
    return f"id: {cursor}\n\n".encode()


def retry_frame(ms: int) -> bytes:
    """How long a native EventSource waits before it reconnects."""
    return f"retry: {ms}\n\n".encode()


def chunk(frame: bytes) -> bytes:
    """The frame as one HTTP/1.1 chunk."""
    return b"%x\r\n%b\r\n" % (len(frame), frame)


def poll_item(event: Event) -> str:
    """An event as an entry of a poll's `events`."""
    body = to_json(event.body) if event.is_text else event.body
    cursor = f'"{event.cursor}"' if event.cursor is not None else "null"
    return (
        f'{{"id":"{event.id}","cursor":{cursor},"type":{to_json(event.type)},'
        f'"{"text" if event.is_text else "data"}":{body},"at":{event.at}}}'
    )
