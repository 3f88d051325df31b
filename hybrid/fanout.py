"""Who gets which of some entries, and as which bytes.

Costs what the readers of the entries cost, however many others are connected. Pure.
"""

from collections.abc import Sequence
from typing import TypeVar

from hybrid.audience import Audience, AudienceIndex, Client
from hybrid.log import Entry

C = TypeVar("C", bound=Client)


class Batch:
    """Entries that go to the same connections, joined once for each framing."""

    __slots__ = ("_chunked", "_plain", "entries")

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self._plain: bytes | None = None
        self._chunked: bytes | None = None

    @property
    def plain(self) -> bytes:
        if self._plain is None:
            self._plain = b"".join([entry.frame for entry in self.entries])
        return self._plain

    @property
    def chunked(self) -> bytes:
        if self._chunked is None:
            # One chunk an event: a connection cut short then has one frame to finish, which
            # the log shares, and not a whole batch of its own.
            self._chunked = b"".join([entry.chunk for entry in self.entries])
        return self._chunked

    def cut_at(self, sent: int, start: int, *, chunked: bool) -> tuple[int, memoryview | None]:
        """Where a connection stands that took `sent` bytes: its offset, and the frame to finish."""
        offset = start
        for entry in self.entries:
            data = entry.chunk if chunked else entry.frame
            if sent < len(data):
                return (offset, None) if sent == 0 else (entry.offset, memoryview(data)[sent:])
            sent -= len(data)
            offset = entry.offset
        return offset, None


def address(entries: Sequence[Entry], index: AudienceIndex[C]) -> list[tuple[Batch, list[C]]]:
    """Who gets what: clients with the same set of entries share one batch."""
    audiences: dict[Audience, list[Entry]] = {}
    for entry in entries:
        audiences.setdefault(entry.event.audience, []).append(entry)
    if len(audiences) == 1:
        return [(Batch(entries), list(index.readers(entries[0].event.audience)))]
    # Each audience is a bit; a client's bits say which entries it gets.
    public = 0
    bits: dict[C, int] = {}
    for place, audience in enumerate(audiences):
        if audience.everyone:
            public |= 1 << place
        else:
            for client in index.readers(audience):
                bits[client] = bits.get(client, 0) | 1 << place
    groups: dict[int, list[C]] = {}
    for client, own in bits.items():
        groups.setdefault(own | public, []).append(client)
    if public:
        groups.setdefault(public, []).extend(
            client for client in index.everyone if client not in bits
        )
    places = {audience: 1 << place for place, audience in enumerate(audiences)}
    return [
        (Batch([e for e in entries if places[e.event.audience] & key]), readers)
        for key, readers in groups.items()
    ]


def up_to_bytes(entries: list[Entry], limit: int) -> list[Entry]:
    """The first entries whose frames fit the limit together, at least one."""
    size = 0
    for count, entry in enumerate(entries):
        size += len(entry.frame)
        if size > limit and count:
            return entries[:count]
    return entries
