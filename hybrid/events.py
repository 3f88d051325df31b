"""The event and the cursor: values that are checked once and cannot be wrong afterwards."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha1
from json import loads
from secrets import token_urlsafe
from typing import Any

from hybrid.audience import MAX_NAME, Audience, is_name
from hybrid.errors import EventTooLarge, InvalidEvent

RESERVED = CONTROL = "hybrid."
"""Types below this prefix are the protocol's own; an application that could send
`hybrid.bye` could end every client's stream."""

ENDINGS = {"hybrid.disconnect": "kicked", "hybrid.revoke": "revoked"}
"""The control types that a log may hold: each instance ends the streams of the user that the data
names, and tells them this reason. No client receives such an event."""

INVALID = "hybrid.invalid"
"""The type of what stands in the log and is no event. No client receives it."""

MAX_CURSOR = 256
ORIGIN = "origin"
"""The mark of a cursor at offset 0, before the first event."""

PROOF = 8
"""Hexadecimal digits."""

MAX_OFFSET = 2**53 - 1
"""What a double, hence JavaScript and Redis' Lua, counts exactly."""

_CURSOR = re.compile(
    r"([A-Za-z0-9_~-]{1,64})\.(0|[1-9][0-9]{0,15})\.([A-Za-z0-9_~-]{1,64}(?:\.[0-9a-f]{8})?)"
)


MAX_TOGETHER = 1000
"""Events that are stored in one step: Redis does nothing else meanwhile."""

_ID = re.compile(r"[A-Za-z0-9_~-]{1,64}")


def is_id(text: object) -> bool:
    """Whether text can be the id of an event, or an epoch."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def check_id(id: str) -> str:
    """The id, if an event can have it; raises `InvalidEvent` otherwise."""
    if not is_id(id):
        raise InvalidEvent(f"an id has 1 to 64 characters of A-Z a-z 0-9 _ ~ -, not {id!r:.60}")
    return id


def chain(prev: str, id: str) -> str:
    """What a cursor says of the event with this id whose predecessor's mark is `prev`.

    The script that stores events reckons the same (`publish.lua`).
    """
    digest = sha1(f"{prev} {id}".encode(), usedforsecurity=False).hexdigest()
    return f"{id}.{digest[:PROOF]}"


def random_id() -> str:
    """16 characters, 96 bits, from the cursor's alphabet."""
    return token_urlsafe(12)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in the log that carries its own proof.

    Epoch and offset alone prove nothing: a log restored from an old copy hands out the same
    numbers again for other events. Nor does the id of the event at that offset, since one whose
    storing was not answered is stored again under its id, maybe behind other events than before.
    So `mark` is that id and a digest of all before it: two logs that have the same mark at an
    offset have the same events up to it.
    """

    epoch: str
    offset: int
    mark: str

    def __str__(self) -> str:
        return f"{self.epoch}.{self.offset}.{self.mark}"

    def next(self, id: str) -> "Cursor":
        """The position of an event with this id that follows here."""
        return Cursor(self.epoch, self.offset + 1, chain(self.mark, id))

    @classmethod
    def parse(cls, text: str) -> "Cursor | None":
        """The cursor, or None for anything that is not one. Never raises."""
        match = _CURSOR.fullmatch(text) if len(text) <= MAX_CURSOR else None
        if match is None or (offset := int(match[2])) > MAX_OFFSET:
            return None
        return cls(match[1], offset, match[3])


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `body` is the JSON text of the data, or the text itself if `is_text`."""

    id: str
    type: str
    body: str
    at: int
    """Unix milliseconds at emit."""
    audience: Audience
    is_text: bool = False
    cursor: Cursor | None = None
    """Its place in the log; None until it is stored."""

    @property
    def data(self) -> Any:
        """The data as Python values, made anew at each call."""
        return self.body if self.is_text else loads(self.body)

    def at_cursor(self, cursor: Cursor) -> "Event":
        return replace(self, cursor=cursor)


def check_count(events: Sequence[Event]) -> None:
    """Raises `InvalidEvent` for more than can be stored in one step."""
    if len(events) > MAX_TOGETHER:
        raise InvalidEvent(f"{len(events)} events in one step; no more than {MAX_TOGETHER} may be")


def check_type(type: object) -> str:
    """The type, if an application may send it; raises `InvalidEvent` otherwise."""
    if not isinstance(type, str) or not is_name(type):
        raise InvalidEvent(
            f"type must be a string of 1 to {MAX_NAME} characters without control characters,"
            f" not {type!r:.60}"
        )
    if type.startswith(RESERVED):
        raise InvalidEvent(f"types that start with {RESERVED!r} are reserved for the protocol")
    return type


FIELDS = frozenset({"type", "data", "text", "users", "roles", "topics"})


def wish(fields: object) -> tuple[str, Any, Audience]:
    """Type, data and audience of an event that is described by a mapping.

    Raises `InvalidEvent` for what is no mapping, has other fields, or addresses nobody that
    there could be.
    """
    if not isinstance(fields, Mapping):
        raise InvalidEvent(f"an event is an object with a type, not {fields!r:.60}")
    if unknown := sorted(map(repr, fields.keys() - FIELDS)):
        raise InvalidEvent(f"an event has no field {unknown[0]:.60}")
    audience = Audience.of(fields.get("users"), fields.get("roles"), fields.get("topics"))
    return check_type(fields.get("type")), fields.get("data"), audience


def make_event(
    type: str,
    data: Any,
    audience: Audience,
    *,
    text: str | None,
    at: int,
    max_bytes: int,
    encode: Callable[[Any], str],
    new_id: Callable[[], str] = random_id,
) -> Event:
    """An event that every transport can carry.

    `at` is Unix milliseconds, `encode` makes JSON text, `max_bytes` bounds the encoded data.
    Raises `InvalidEvent` for what cannot be sent and `EventTooLarge` for what is too big;
    nothing is stored or sent then.
    """
    type = check_type(type)
    if text is None:
        try:
            body = encode(data)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidEvent(f"data is not JSON: {error}") from error
    elif data is not None:
        raise InvalidEvent("give data or text, not both")
    elif not isinstance(text, str):
        raise InvalidEvent(f"text must be a string, not {text!r:.60}")
    else:
        body = text
    try:
        size = len(body) if body.isascii() else len(body.encode())
    except UnicodeEncodeError as error:
        raise InvalidEvent(f"text has a lone surrogate at {error.start}") from error
    if size > max_bytes:
        raise EventTooLarge(f"the data has {size} bytes; HYBRID_MAX_EVENT_BYTES is {max_bytes}")
    return Event(new_id(), type, body, at, audience, text is not None)
