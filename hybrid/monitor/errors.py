"""What went wrong, grouped: the same trouble a thousand times is one line and a number.

What the package logs at WARNING or above is taken from its logger, so that nothing has to be
told twice; browsers report theirs to POST /report.
"""

import hashlib
import logging
import re
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

from hybrid.auth import scrub

MAX_GROUPS = 100
"""Of one instance; the one not seen for longest makes room."""
MAX_TEXT = 200
MAX_BROWSER_GROUPS = 50
"""Of those: what anybody can make up is not to push out what the server says."""
REPORTS_PER_MINUTE = 60
"""That browsers send to one process: enough to see what is wrong, too few to do harm."""
REPORTS_OF_ONE = 10
"""Of those, from one address: it is not to speak for all."""


@dataclass(slots=True)
class Group:
    """One kind of trouble. Times are Unix milliseconds."""

    id: str
    source: str
    """`server` or `browser`."""
    level: str
    message: str
    """That of the newest occurrence."""
    place: str
    count: int
    first: int
    last: int


class Errors:
    """The groups of one instance. `clock` gives Unix milliseconds."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._groups: dict[str, Group] = {}
        self._lock = threading.Lock()
        self._minute = 0
        self._reports: Counter[str] = Counter()
        self.total = 0
        """Errors of the server, without warnings."""
        self.reported = 0
        """What browsers reported. Apart: one that is broken, or hostile, says nothing of us."""

    def note(self, source: str, level: str, kind: str, message: str, place: str = "") -> None:
        """Count one occurrence; `kind` is what makes two of them the same."""
        message, place = scrub(message[:MAX_TEXT]), scrub(place[:MAX_TEXT])
        key = repr((source, level, kind, place))  # no text of one is taken for the next
        id = hashlib.blake2b(key.encode(errors="replace"), digest_size=6).hexdigest()
        now = self._clock()
        with self._lock:
            if source == "browser":
                self.reported += 1
            elif level == "error":
                self.total += 1
            group = self._groups.pop(id, None)
            if group is None:
                group = Group(id, source, level, "", place, 0, now, now)
            group.message = message
            group.count += 1
            group.last = now
            self._groups[id] = group  # at the end: the order is that of the newest occurrence
            made_up = [id for id, group in self._groups.items() if group.source == "browser"]
            if len(made_up) > MAX_BROWSER_GROUPS:
                del self._groups[made_up[0]]
            elif len(self._groups) > MAX_GROUPS:
                del self._groups[next(iter(self._groups))]

    def takes_from(self, address: str) -> bool:
        """Whether a report of a browser at this address would be taken now."""
        minute = self._clock() // 60_000
        if self._minute != minute:
            self._minute, self._reports = minute, Counter()
        return (
            self._reports[address] < REPORTS_OF_ONE and self._reports.total() < REPORTS_PER_MINUTE
        )

    def from_browser(self, message: str, place: str, address: str) -> bool:
        """What a browser reported, which may be anything; False if there were too many already."""
        if not self.takes_from(address):
            return False
        self._reports[address] += 1
        kind = re.sub(r"[0-9]+", "#", message)[:MAX_TEXT]
        self.note("browser", "error", kind, message, place)
        return True

    def groups(self, limit: int = MAX_GROUPS) -> list[dict[str, Any]]:
        """The groups as plain data, the one seen last first; no more than half are browsers'."""
        with self._lock:
            newest = list(self._groups.values())[::-1]
            browsers = [group for group in newest if group.source == "browser"][limit // 2 :]
            return [asdict(group) for group in newest if group not in browsers][:limit]


def merge(lists: Iterable[Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The groups of several instances as one list, the one seen last first."""
    found: dict[str, dict[str, Any]] = {}
    for groups in lists:
        for group in groups:
            known = found.get(group["id"])
            if known is None:
                found[group["id"]] = dict(group)
                continue
            newer = group if group["last"] > known["last"] else known
            found[group["id"]] = newer | {
                "count": known["count"] + group["count"],
                "first": min(known["first"], group["first"]),
            }
    return sorted(found.values(), key=lambda group: (-group["last"], group["id"]))


class _Ear(logging.Filter):
    """Hears what the package logs. One for the process: loggers are the process's too.

    A filter that lets everything pass, since a handler would change where logs go: Python prints
    warnings by itself only as long as there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.listeners: weakref.WeakSet[Errors] = weakref.WeakSet()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            self._hear(record)
        return True

    def _hear(self, record: logging.LogRecord) -> None:
        message, place, kind = record.getMessage(), "", str(record.msg)
        if record.exc_info and record.exc_info[1] is not None:
            error, trace = record.exc_info[1], record.exc_info[2]
            kind += type(error).__name__
            message = f"{type(error).__name__}: {_text_of(error)} ({message})"
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            if trace is not None:
                code = trace.tb_frame.f_code
                place = f"{PurePath(code.co_filename).name}:{trace.tb_lineno} in {code.co_name}"
        level = "error" if record.levelno >= logging.ERROR else "warning"
        for errors in list(self.listeners):
            errors.note("server", level, kind, message, place)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "<str() of this exception raised>"


_ear = _Ear()


def listen(errors: Errors) -> None:
    """Let the groups have what the package logs from now on, for as long as they live."""
    logger = logging.getLogger("hybrid")
    if _ear not in logger.filters:
        logger.addFilter(_ear)
    _ear.listeners.add(errors)


def forget(errors: Errors) -> None:
    """The opposite of `listen`."""
    _ear.listeners.discard(errors)
