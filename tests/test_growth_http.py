"""Work grows with what is sent, and not with its square: every text that a client may choose.

What is measured is the processor's time of this thread, the least of several runs, for a text and
for one eight times as long. Work by the square is sixty-four times as much.
"""

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from werkzeug.test import EnvironBuilder

from hybrid import Identity, InvalidEvent
from hybrid.audience import Audience, is_name
from hybrid.auth import Tickets
from hybrid.events import Cursor
from hybrid.limits import digest
from hybrid.log import Log
from hybrid.routes.bounds import _bucket
from servers import PREFIX
from sites import MakeSite, Site

TIMES = 8
ALLOWED = 20
"""Times the work for eight times the length."""
NOTHING = 0.01
"""Seconds of work that are too little to tell anything by."""
LONG = 8000
"""Characters: about what servers take as one header or one request line."""
KEY = "a key of the tests"

UNITS = [
    *("a", " ", "\t", ",", ";", "=", '"', "\\", "%", "&", ".", "-", "/", "[", ":", "0", "*", "("),
    *("a,", ", ", " ,", "a;", "; q=", "a=b&", "a=b; ", '"a",', "W/", "é", "%41", "%e2%82", '"\\'),
    *("127.0.0.1,", "text/html;level=1,", "=?utf-8?q?", "{", "topic=a&", "a-"),
]
"""What hostile texts are made of: what a grammar of headers or queries repeats or leaves out."""
READ = [
    *("COOKIE", "IF_NONE_MATCH", "IF_MODIFIED_SINCE", "ACCEPT", "ACCEPT_ENCODING", "RANGE"),
    *("X_FORWARDED_FOR", "LAST_EVENT_ID", "IF_RANGE", "CACHE_CONTROL", "USER_AGENT", "REFERER"),
]
"""Headers that may hold anything without an answer of 4xx, so that all are read in one request."""
ALONE = ["ORIGIN", "HOST", "AUTHORIZATION", "IDEMPOTENCY_KEY", "CONTENT_TYPE", "SEC_FETCH_SITE"]
ALONE += ["ACCESS_CONTROL_REQUEST_HEADERS"]
PATHS = {
    "/sse": "GET",
    "/polling": "GET",
    "/monitor": "GET",
    "/client/hybrid.js": "GET",
    "/test": "POST",
    "/publish": "POST",
    "/report": "POST",
}


def seconds(work: Callable[[], object], times: int) -> float:
    best = float("inf")
    for _ in range(times):
        began = time.thread_time()
        work()
        best = min(best, time.thread_time() - began)
    return best


def grows_with_its_length(make: Callable[[int], Callable[[], object]], length: int) -> None:
    """`make` gives the work on a text of that length; looked at longer where it seems too much."""
    short, long = make(length // TIMES), make(length)
    few, many = seconds(short, 1), seconds(long, 1)
    for _ in range(10):
        if many <= NOTHING or many <= ALLOWED * few:
            return
        few, many = min(few, seconds(short, 3)), min(many, seconds(long, 3))
    raise AssertionError(f"{many:.4f} s of work for {length} characters, {few:.4f} for an eighth")


def repeated(unit: str, length: int) -> str:
    """Between two letters, which is where matches that nearly succeed have to be given up."""
    return ("x" + unit * (length // len(unit)) + "x").encode().decode("latin-1")


def asked(site: Site, environ: dict[str, Any]) -> Callable[[], None]:
    def ask() -> None:
        environ["wsgi.input"].seek(0)
        body = site.app(dict(environ), lambda *_: lambda _: None)
        body.close()  # type: ignore[attr-defined] # a response of Werkzeug's

    return ask


@pytest.fixture
def wide(make_site: MakeSite) -> Site:
    """A site on which every endpoint may be used, behind three proxies."""
    site = make_site(PUBLISH_KEY=KEY, TRUSTED_PROXIES=3, CORS_ORIGINS=["https://app.example"])
    site.realtime.can_monitor(lambda _: True)
    site.realtime.can_test(lambda _: True)
    site.app.config["TRUSTED_HOSTS"] = None
    return site


@pytest.mark.parametrize(
    ("path", "user"), [*((path, "") for path in PATHS), ("/sse", "alice"), ("/polling", "alice")]
)
def test_headers_are_read_in_time_of_their_length(wide: Site, path: str, user: str) -> None:
    """All that say nothing of themselves at once, and one by one those that may be refused."""

    def request(names: list[str], unit: str, length: int) -> Callable[[], None]:
        body = {"json": {"message": "x"} if path == "/report" else {"type": "t"}}
        options: dict[str, Any] = body if PATHS[path] == "POST" else {}
        environ = EnvironBuilder(PREFIX + path, method=PATHS[path], **options).get_environ()
        environ["HTTP_AUTHORIZATION"] = f"Bearer {KEY}"
        if user:
            environ["HTTP_X_USER"] = user
        for name in names:
            key = name if name.startswith("CONTENT_") else f"HTTP_{name}"
            environ[key] = repeated(unit, length)
        return asked(wide, environ)

    for unit in UNITS:
        for names in (READ, *([name] for name in ALONE if not user)):
            grows_with_its_length(lambda n, u=unit, w=names: request(w, u, n), LONG)  # type: ignore[misc]


@pytest.mark.parametrize("path", ["/sse", "/polling", "/monitor/connections", "/monitor/event"])
def test_queries_are_read_in_time_of_their_length(wide: Site, path: str) -> None:
    """As a whole, and in each parameter."""

    def request(start: str, unit: str, length: int) -> Callable[[], None]:
        environ = EnvironBuilder(PREFIX + path).get_environ()
        environ["QUERY_STRING"] = start + repeated(unit, length)
        return asked(wide, environ)

    starts = ["", "topic=", "since=", "wait=", "ticket=", "q=", "cursor="]
    for start in starts:
        for unit in UNITS:
            grows_with_its_length(lambda n, s=start, u=unit: request(s, u, n), LONG)  # type: ignore[misc]


@pytest.mark.parametrize("path", ["/sse", "/polling", "/test", "/publish", "/report"])
@pytest.mark.parametrize(
    "text",
    [
        lambda n: "[" * n,
        lambda n: '{"a":' * (n // 5),
        lambda n: '"' + "\\u00e9" * (n // 6) + '"',
        lambda n: '"' + "\\" * n + '"',
        lambda n: "9" * n,
        lambda n: "0." + "9" * n,
        lambda n: " " * n + "1",
        lambda n: json.dumps({"topics": ["x" * n]}),
        lambda n: json.dumps({"topics": [f"open{k}" for k in range(n // 10)]}),
        lambda n: json.dumps({"type": "t", "users": [f"u{k}" for k in range(n // 10)]}),
        lambda n: json.dumps({f"k{k}": k for k in range(n // 14)}),
        lambda n: json.dumps({"message": "ticket=" * (n // 7), "place": "a=" * (n // 2)}),
        lambda n: json.dumps([{"type": "t", "data": k} for k in range(n // 25)]),
    ],
)
def test_bodies_are_read_in_time_of_their_length(
    wide: Site, path: str, text: Callable[[int], str]
) -> None:
    """JSON of every kind, as large as is taken."""

    def request(length: int) -> Callable[[], None]:
        environ = EnvironBuilder(
            PREFIX + path, method="POST", data=text(length), content_type="application/json"
        ).get_environ()
        environ["HTTP_AUTHORIZATION"] = f"Bearer {KEY}"
        return asked(wide, environ)

    grows_with_its_length(request, 120_000)


PARSERS: dict[str, Callable[[str], object]] = {
    "cursor": Cursor.parse,
    "name": is_name,
    "address": _bucket,
    "since": Log("e", max_events=9, max_seconds=9).resolve,
    "digest": digest,
    "ticket": Tickets("s" * 16).is_valid,
}


@pytest.mark.parametrize("name", PARSERS)
def test_parsers_take_time_of_their_length(name: str) -> None:
    """Called by themselves, with far longer texts than any server takes."""
    parse = PARSERS[name]
    for unit in (*UNITS, "a.0.", "~", ".0.a"):
        for about in ("{}", "e.1.{}", "{}.1.e"):

            def make(length: int, unit: str = unit, about: str = about) -> Callable[[], object]:
                text = about.format(unit * (length // len(unit)))
                return lambda: parse(text)

            grows_with_its_length(make, 400_000)


def test_audiences_take_time_of_their_size() -> None:
    """Made, refused and asked with many names."""

    def made(count: int) -> Callable[[], object]:
        names = [f"n{k}" for k in range(count)]
        return lambda: Audience.of(names, names, names)

    def refused(count: int) -> Callable[[], object]:
        names = [f"n{k}" for k in range(count)] + ["\0" * count]

        def refuse() -> None:
            with pytest.raises(InvalidEvent):
                Audience.of(names)

        return refuse

    def admitted(count: int) -> Callable[[], object]:
        audience = Audience.of(*[[f"n{k}" for k in range(count)]] * 3)
        identity = Identity("x", [f"r{k}" for k in range(count)])
        topics = frozenset(f"t{k}" for k in range(count))
        return lambda: audience.admits(identity, topics)

    for make in (made, refused, admitted):
        grows_with_its_length(make, 80_000)


def test_work_by_the_square_is_found() -> None:
    """What measures all of the above."""

    def squared(length: int) -> Callable[[], object]:
        return lambda: re.split(r"\s*;", " " * length)

    with pytest.raises(AssertionError, match="s of work"):
        grows_with_its_length(squared, 16_000)
