"""A sample of what goes through the log: at most so many events a second, and how many more."""

from typing import Any

from hybrid.events import CONTROL, Event
from hybrid.instance import Instance

SHOWN = 20
"""Events a second: more than that nobody reads."""
NAMES = 3
"""Users, roles and topics told of each event."""


class Tail:
    """The newest events of the log; without the data, which is for few.

    All of them each time, not those of the last second: who comes in the middle of it, or missed
    a state, has the same to show as who was there before. The page leaves out what it has.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._place: tuple[str, int] | None = None
        self._skipped = 0

    def sample(self, *, wanted: bool) -> None:
        """Look what has come since the last call; costs nothing while nobody wants it."""
        if not wanted:
            self._place = None
            return
        log = self._instance.log
        epoch, last = log.epoch, log.last
        came = 0
        if self._place is not None and self._place[0] == epoch:
            came = max(0, last - self._place[1])
        self._place = (epoch, last)
        self._skipped = came - min(came, SHOWN)

    def newest(self) -> dict[str, Any]:
        """`{"rows", "skipped"}`: how many of the last second are not among the rows."""
        log = self._instance.log
        last = log.last
        entries = log.between(max(log.anchor.offset, last - SHOWN), last) or []
        rows = [_row(e.event) for e in entries if not e.event.type.startswith(CONTROL)]
        return {"rows": rows, "skipped": 0 if self._place is None else self._skipped}


def _row(event: Event) -> dict[str, Any]:
    audience = event.audience
    return {
        "cursor": str(event.cursor),
        "at": event.at,
        "type": event.type,
        "bytes": len(event.body),
        "everyone": audience.everyone,
        "users": sorted(audience.users)[:NAMES],
        "roles": sorted(audience.roles)[:NAMES],
        "topics": sorted(audience.topics)[:NAMES],
        "more": sum(
            max(0, len(names) - NAMES)
            for names in (audience.users, audience.roles, audience.topics)
        ),
    }
