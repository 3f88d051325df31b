"""Who may see an event: the one rule, and the index that answers it for many clients at once.

`visible` is the rule. Replay, polling and history call it per event. Live delivery asks
`AudienceIndex.readers` instead, whose cost is that of the event's readers and not of all
clients; a property test holds the two together.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

from hybrid.errors import InvalidEvent

MAX_NAME = 256
"""Characters in a user, role or topic; as long as a cursor may be."""

DOCTOR = "hybrid.doctor."
"""Topics below this carry the test events of `flask hybrid doctor` alone, and are open to all."""

UNSAFE = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")
"""Control characters, line separators and lone surrogates: all that could forge a line of a
stream, a header or a log file, or that UTF-8 cannot carry. Refused in every name and type."""

NOBODY: frozenset[str] = frozenset()


Names = Collection[str | int]
"""Users, roles or topics. A whole number is the name of its digits: 17 is "17", as in a session."""


def as_name(name: object) -> object:
    """A whole number as the text of its digits; anything else, True and False too, as it is."""
    if isinstance(name, int) and not isinstance(name, bool) and name.bit_length() < MAX_NAME:
        return str(int(name))
    return name


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a request is, as the server decided it; `user=None` is an anonymous visitor.

    A number (a primary key) is the name of its digits: `Identity(17)` is the user "17".

    Raises `InvalidEvent` never: a wrong identity is a programming error, so it is a
    `TypeError` in the hook that built it.
    """

    user: str | None = None
    roles: frozenset[str] = NOBODY

    def __init__(self, user: str | int | None = None, roles: Iterable[str | int] = ()) -> None:
        user = cast(str | None, as_name(user))
        if user is not None and (not isinstance(user, str) or not user):
            raise TypeError(
                f"Identity.user must be a non-empty string, a number or None, not {user!r}"
            )
        if isinstance(roles, str):
            raise TypeError(f"Identity.roles must be a set of strings, not the string {roles!r}")
        object.__setattr__(self, "user", user)
        # One empty set for all: Python makes a new one each time, of 216 bytes.
        object.__setattr__(self, "roles", frozenset(map(as_name, roles)) or NOBODY)


@dataclass(frozen=True, slots=True)
class Audience:
    """Who may see an event: ANY match of user, role or topic admits."""

    everyone: bool = False
    users: frozenset[str] = NOBODY
    roles: frozenset[str] = NOBODY
    topics: frozenset[str] = NOBODY

    @classmethod
    def of(
        cls,
        users: Names | None = None,
        roles: Names | None = None,
        topics: Names | None = None,
    ) -> "Audience":
        """None given means everyone; given but empty means nobody.

        The difference matters: `users=[u for u in followers]` with no followers must not
        turn into a broadcast. Raises `InvalidEvent` for anything but strings and whole numbers,
        which are the names of their digits.
        """
        if users is None and roles is None and topics is None:
            return EVERYONE
        return cls(
            users=_names("users", users),
            roles=_names("roles", roles),
            topics=_names("topics", topics),
        )

    def admits(self, identity: Identity, topics: Collection[str]) -> bool:
        """Whether a client with this identity and these granted topics may see the event."""
        return (
            self.everyone
            or identity.user in self.users
            or not self.roles.isdisjoint(identity.roles)
            or not self.topics.isdisjoint(topics)
        )


EVERYONE = Audience(everyone=True)


class Addressed(Protocol):
    @property
    def audience(self) -> Audience: ...


def visible(event: Addressed, identity: Identity, topics: Collection[str]) -> bool:
    """The one rule of visibility: may this client see this event?"""
    return event.audience.admits(identity, topics)


def is_name(text: object) -> bool:
    """Whether text can be a user, role, topic or type: 1 to 256 characters, none unsafe."""
    return isinstance(text, str) and 0 < len(text) <= MAX_NAME and not UNSAFE.search(text)


def _names(field: str, given: Names | None) -> frozenset[str]:
    if given is None:
        return NOBODY
    # A bare string is a collection too: users="al" would address the users "a" and "l".
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Collection):
        raise InvalidEvent(f"{field} must be a list of strings, not {given!r:.60}")
    names = [as_name(name) for name in given]
    for name in names:
        if not is_name(name):
            raise InvalidEvent(
                f"{field}: {name!r:.60} is not a name (a whole number, or a string of 1 to"
                f" {MAX_NAME} characters without control characters)"
            )
    return cast(frozenset[str], frozenset(names))


class Client(Protocol):
    @property
    def identity(self) -> Identity: ...

    @property
    def topics(self) -> frozenset[str]: ...


C = TypeVar("C", bound=Client)


class AudienceIndex(Generic[C]):
    """The clients by what admits them. Not locked: its owner serializes access."""

    def __init__(self) -> None:
        self.everyone: set[C] = set()
        self._keys: dict[tuple[str, str], set[C]] = {}

    def __len__(self) -> int:
        return len(self.everyone)

    def add(self, client: C) -> None:
        self.everyone.add(client)
        for key in self._of(client):
            self._keys.setdefault(key, set()).add(client)

    def discard(self, client: C) -> None:
        """Forget a client; harmless when it is not there."""
        self.everyone.discard(client)
        for key in self._of(client):
            holders = self._keys.get(key)
            if holders is not None:
                holders.discard(client)
                if not holders:  # else a key per user ever seen would stay
                    del self._keys[key]

    def readers(self, audience: Audience) -> Collection[C]:
        """The clients that the audience admits. A live view: copy it before any change."""
        if audience.everyone:
            return self.everyone
        found = [
            self._keys[key]
            for kind, names in (
                ("user", audience.users),
                ("role", audience.roles),
                ("topic", audience.topics),
            )
            for name in names
            if (key := (kind, name)) in self._keys
        ]
        if len(found) == 1:
            return found[0]
        return set().union(*found) if found else cast(Collection[C], ())

    def topics(self) -> dict[str, int]:
        """Clients per topic, for the monitor."""
        return {name: len(held) for (kind, name), held in self._keys.items() if kind == "topic"}

    @staticmethod
    def _of(client: Client) -> Iterable[tuple[str, str]]:
        if client.identity.user is not None:
            yield "user", client.identity.user
        for role in client.identity.roles:
            yield "role", role
        for topic in client.topics:
            yield "topic", topic
