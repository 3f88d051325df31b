"""The open connections, a page at a time: found, sorted and counted where they are."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from heapq import nlargest, nsmallest
from typing import Any

from hybrid.connection import NEVER, Connection
from hybrid.hub import Hub

PAGE = 50
MAX_PAGE = 20
"""Beyond a thousand rows one searches: every instance sends all the rows before, to be merged."""
TOPICS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Search:
    """What is asked for: `text` in the user, a topic or the address, in any case, or the
    beginning of the id. Less than six characters are of no id: they would be in many."""

    text: str = ""
    transport: str = ""
    sort: str = "age"
    descending: bool = True
    page: int = 1

    @property
    def reach(self) -> int:
        """How many rows one instance has to send, so that the page is complete after merging."""
        return self.page * PAGE

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def _state(connection: Connection, behind: int) -> str:
    if connection.farewell is not None:
        return "ending"
    if connection.pending is not None:
        return "waiting"
    return "live" if connection.live_since != NEVER or not behind else "behind"


def _behind(hub: Hub, connection: Connection) -> int:
    """Events of the log that it has not looked at yet."""
    if connection.live_since != NEVER or connection.pending is not None:
        return 0
    return max(0, hub.log.last - connection.position)


Key = Callable[[Hub, Connection], Any]
SORTS: dict[str, Key] = {
    "age": lambda hub, connection: -connection.opened_at,
    "user": lambda hub, connection: connection.identity.user or "",
    "transport": lambda hub, connection: connection.transport,
    "topics": lambda hub, connection: len(connection.topics),
    "behind": _behind,
    "address": lambda hub, connection: connection.address,
}


def matching(hub: Hub, search: Search) -> list[Connection]:
    """All connections of this instance that are asked for, in no order."""
    wanted = search.text.casefold()
    id = search.text if len(search.text) >= 6 else None
    return [
        connection
        for connection in list(hub.connections.values())
        if (not search.transport or connection.transport == search.transport)
        and (
            not wanted
            or (id is not None and connection.id.startswith(id))
            or any(wanted in text.casefold() for text in _texts(connection))
        )
    ]


def find(hub: Hub, search: Search, instance: str) -> dict[str, Any]:
    """The first rows of this instance, with how many there are: `{"total", "rows"}`."""
    found = matching(hub, search)
    choose = nlargest if search.descending else nsmallest
    key = SORTS[search.sort]
    rows = choose(search.reach, found, key=lambda connection: (key(hub, connection), connection.id))
    return {"total": len(found), "rows": [_row(hub, each, instance) for each in rows]}


def merge(answers: Sequence[dict[str, Any]], search: Search) -> dict[str, Any]:
    """One page of the rows of several instances."""
    rows = [row for answer in answers for row in answer["rows"]]
    rows.sort(key=lambda row: (row[search.sort], row["id"]), reverse=search.descending)
    total = sum(answer["total"] for answer in answers)
    return {
        "total": total,
        "page": search.page,
        "pages": min(MAX_PAGE, max(1, -(-total // PAGE))),
        "rows": rows[(search.page - 1) * PAGE : search.page * PAGE],
    }


def _texts(connection: Connection) -> Iterable[str]:
    yield connection.identity.user or ""
    yield connection.address
    yield from connection.topics


def _row(hub: Hub, connection: Connection, instance: str) -> dict[str, Any]:
    behind = _behind(hub, connection)
    return {
        "id": connection.id,
        "instance": instance,
        "user": connection.identity.user or "",
        "address": connection.address,
        "transport": connection.transport,
        "topics": len(connection.topics),
        "topic_names": sorted(connection.topics)[:TOPICS_SHOWN],
        "age": round(hub.clock() - connection.opened_at, 1),
        "state": _state(connection, behind),
        "behind": behind,
    }
