"""`flask hybrid doctor`: what stands between a deployment and its live updates, and the fix.

Each finding is one line. `server` reads gunicorn's settings, `application` the app's, `shared` asks
Redis, `public` opens a stream through the public URL, as a browser would.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hybrid.auth import application_mark
from hybrid.doctor.application import look_at_application
from hybrid.doctor.finding import Finding
from hybrid.doctor.public import look_through
from hybrid.doctor.server import look_at_server
from hybrid.doctor.shared import look_at_log

if TYPE_CHECKING:
    from flask import Flask

Mark = Literal["  ok", "skip", "LOOK", "FAIL"]
MARKS: dict[str, Mark] = {"ok": "  ok", "skip": "skip", "look": "LOOK", "fail": "FAIL"}


@dataclass(frozen=True, slots=True)
class Visit:
    """What is to be looked at."""

    app: "Flask"
    url: str | None = None
    gunicorn: str | None = None
    """gunicorn's arguments, as on its command line."""
    headers: tuple[tuple[str, str], ...] = ()
    """Sent with every request, for an app that wants a login."""
    idle: bool = True
    """Whether to wait for heartbeats, for up to twice their interval."""
    verify: bool = True
    """Whether the URL's certificate has to be valid."""


def look(visit: Visit) -> Iterator[Finding]:
    """All findings, as they are made."""
    state = visit.app.extensions["hybrid"]
    yield from look_at_application(visit.app)
    yield from look_at_server(state.settings, visit.gunicorn)
    yield from look_at_log(state.settings, application_mark(state.secret()))
    if visit.url is None:
        yield Finding("skip", "public URL", "add the address of the running site: https://…")
    else:
        yield from look_through(
            visit.url,
            state.settings,
            headers=dict(visit.headers),
            idle=visit.idle,
            verify=visit.verify,
        )


def lines(finding: Finding) -> Iterator[str]:
    """A finding for people, its fix below it."""
    yield f"{MARKS[finding.verdict]}  {finding.subject:<22} {finding.says}"
    if finding.fix and finding.verdict in ("look", "fail"):
        yield f"      {'':<22} fix: {finding.fix}"


def summary(findings: Iterable[Finding]) -> str:
    counts = dict.fromkeys(MARKS, 0)
    for finding in findings:
        counts[finding.verdict] += 1
    said = f"{counts['fail']} to fix, {counts['look']} to look at, {counts['ok']} in order"
    left = counts["skip"]
    return said + (f"; {left} skipped, with the reason" if left else "")
