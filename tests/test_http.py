"""The contract over HTTP, through Flask's test client: answers, headers, refusals, slots."""

import gc
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    has_app_context,
    has_request_context,
    redirect,
    render_template_string,
    request,
    session,
)
from greenlet import GreenletExit, getcurrent, greenlet
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import EnvironBuilder, TestResponse
from werkzeug.wrappers import Response as WSGIResponse

from hybrid import ConfigError, Hybrid, Identity, InvalidEvent, NotReady
from hybrid.connection import Connection
from hybrid.events import Event
from hybrid.hub import Hub
from hybrid.log import Log, Start
from hybrid.stream import Stream, greeting
from hybrid.testing import faults
from servers import PREFIX
from sites import BUNDLED, NATIVE, MakeSite, Reading, Site, as_problem, types
from whatwg import Parser


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """A site whose clients beat fast, so that no test waits for a heartbeat."""
    return make_site(HEARTBEAT_SECONDS=0.1)


# -- what the endpoints answer


def test_a_stream_says_what_it_is(site: Site) -> None:
    """Status, headers and first block are those of the contract."""
    with site.stream() as stream:
        headers = stream.response.headers
        assert headers["Cache-Control"] == "no-cache, no-store, no-transform"
        assert headers["X-Accel-Buffering"] == "no"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Content-Length" not in headers
        hello = stream.hello()
        cursor = site.realtime.cursor()
        assert hello == {
            "protocol": 1,
            "client": hello["client"],
            "cursor": cursor,
            "heartbeat": 100,
            "resumed": False,
            "bus": "ok",
        }
        assert stream.blocks[0].id == cursor
        assert stream.parser.retry == 3000
        assert site.hub.held() == 1
    assert site.hub.held() == 0


def test_a_stream_carries_what_its_reader_may_see(site: Site) -> None:
    """Replay first, then live; JSON without an envelope, text as it is."""
    before = site.realtime.cursor()
    site.emit("public", "second")
    site.emit("secret", users=["bob"])
    with site.stream(f"?since={before}", headers={"X-User": "alice"}) as stream:
        assert stream.hello()["resumed"] is True
        stream.upto("second")
        site.emit("secret", users=["bob"])
        site.emit("mine", users=["alice"])
        site.realtime.emit("html", text="<li>\n</li>")
        blocks = stream.upto("html")
    assert types(blocks) == ["public", "second", "mine", "html"]
    assert json.loads(blocks[1].data) == {"name": "public"}
    assert blocks[-1].data == "<li>\n</li>"
    assert blocks[-1].id == site.realtime.cursor()


def test_a_heartbeat_moves_the_cursor_of_a_reader_who_sees_nothing(site: Site) -> None:
    """Else who sees little falls out of the log while connected."""
    with site.stream(headers={"X-User": "alice"}) as stream:
        stream.hello()
        site.emit("secret", users=["bob"])
        head = site.realtime.cursor()
        stream.until(lambda _: stream.parser.last_event_id == head)
        assert types(stream.blocks) == []


def test_a_poll_answers_as_the_contract_says(site: Site) -> None:
    """Every field of the answer and of an event in it."""
    cursor = site.realtime.cursor()
    empty = {
        "events": [],
        "cursor": cursor,
        "more": False,
        "gap": None,
        "wait": 5000,
        "bus": "ok",
    }
    response = site.get("/polling")
    assert response.get_json() == empty
    assert response.content_type == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    (id,) = site.emit("tick")
    text_id = site.realtime.emit("html", text="<li>")
    answer = site.poll(f"?since={cursor}")
    events = answer["events"]
    at = [event.pop("at") for event in events]
    assert all(isinstance(value, int) for value in at)
    head = site.realtime.cursor()
    assert answer == empty | {"cursor": head, "events": events}
    assert events[0] == {
        "id": id,
        "cursor": events[0]["cursor"],
        "type": "tick",
        "data": {"name": "tick"},
    }
    assert events[0]["cursor"].split(".")[1:3] == ["1", id]
    assert events[1] == {"id": text_id, "cursor": head, "type": "html", "text": "<li>"}


def test_a_poll_without_since_begins_now(site: Site) -> None:
    """No events and the current cursor, and no waiting for any."""
    site.emit("old")
    answer = site.poll("?wait=25")
    assert answer["events"] == []
    assert answer["cursor"] == site.realtime.cursor()
    assert site.hub.opened["polling"] == 0


def test_a_poll_goes_on_where_its_limit_cut_it(site: Site) -> None:
    """`more` says to ask again at once, from the cursor that the answer gives."""
    site.emit("a", "b", "c", "d", "e")
    since, seen = "0", []
    for more in (True, True, False):
        answer = site.poll(f"?since={since}&limit=2")
        seen += [event["type"] for event in answer["events"]]
        since = answer["cursor"]
        assert answer["more"] is more
    assert seen == ["a", "b", "c", "d", "e"]


def test_a_time_is_a_since_as_well(site: Site) -> None:
    """0 is from the oldest kept; Unix milliseconds are what was emitted later."""
    site.emit("a")
    (event,) = site.poll("?since=0")["events"]
    assert [e["type"] for e in site.poll(f"?since={event['at'] - 1}")["events"]] == ["a"]
    assert site.poll(f"?since={event['at']}")["events"] == []
    with site.stream("?since=0") as stream:
        assert stream.hello()["resumed"] is True
        assert types(stream.upto("a")) == ["a"]


def test_a_poll_waits_and_gives_its_slot_back(site: Site) -> None:
    """Held for as long as it asked when nothing comes."""
    answer = site.poll(f"?since={site.realtime.cursor()}&wait=0.02")
    assert answer["events"] == []
    assert site.hub.opened["polling"] == 1
    assert dict(site.hub.closed) == {"polled": 1}
    assert site.hub.held() == 0


def test_a_held_poll_returns_with_the_event(site: Site) -> None:
    """Whenever the event comes, before or while it waits, it is in the answer."""
    for turn in range(20):
        cursor = site.realtime.cursor()
        site.emit("secret", users=["bob"])
        emitter = threading.Thread(target=site.emit, args=[f"turn-{turn}"])
        emitter.start()
        answer = site.poll(f"?since={cursor}&wait=25", headers={"X-User": "alice"})
        emitter.join()
        assert [event["type"] for event in answer["events"]] == [f"turn-{turn}"]
    assert site.hub.held() == 0


def test_a_test_event_is_answered_with_its_place(site: Site) -> None:
    """201 with id and cursor, and how many clients are connected here."""
    site.realtime.can_test(lambda _: True)
    with site.stream() as stream:
        stream.hello()
        response = site.test({"type": "mine", "data": [1]})
        assert response.status_code == 201
        assert response.content_type == "application/json"
        answer = response.get_json()
        assert answer == {
            "id": answer["id"],
            "cursor": site.realtime.cursor(),
            "stored": "log",
            "connections": 1,
        }
        block = stream.upto("mine")[-1]
    assert (block.id, block.data) == (answer["cursor"], "[1]")
    assert site.test().status_code == 201
    assert site.poll("?since=0")["events"][-1]["type"] == "test"


@pytest.mark.parametrize(
    ("user", "body", "status"),
    [
        ("alice", {"users": ["alice"]}, 201),
        ("alice", {"users": ["bob"]}, 403),
        ("alice", {"users": ["alice", "bob"]}, 403),
        ("alice", {"users": ["alice"], "topics": ["open"]}, 403),
        ("alice", {"roles": ["alice"]}, 403),
        ("alice", {}, 403),
        ("alice", {"users": []}, 403),
        (None, {}, 403),
        (None, {"users": ["alice"]}, 403),
    ],
)
def test_a_test_event_reaches_others_only_by_permission(
    site: Site, user: str | None, body: Any, status: int
) -> None:
    """By default everyone with a name may send to themselves alone."""
    response = site.test(body, headers={"X-User": user} if user else {})
    assert response.status_code == status
    assert site.hub.log.last == (status == 201)


def test_debug_mode_opens_test_and_monitor(site: Site) -> None:
    """And nothing else does, unless the application says so."""
    as_problem(site.get("/monitor"), 403)
    as_problem(site.test(), 403)
    site.app.debug = True
    assert site.get("/monitor").status_code == 200
    assert site.test().status_code == 201
    site.realtime.can_test(lambda identity: identity.user == "root")
    site.realtime.can_monitor(lambda identity: identity.user == "root")
    as_problem(site.get("/monitor"), 403)
    as_problem(site.test(), 403)
    assert site.get("/monitor", headers={"X-User": "root"}).status_code == 200
    assert site.test(headers={"X-User": "root"}).status_code == 201


def test_the_monitor_shows_the_figures(site: Site) -> None:
    """JSON with the parts that the contract names."""
    site.app.debug = True
    site.emit("a", "b", "a")
    with site.stream("?topic=open") as stream:
        stream.hello()
        response = site.get("/monitor")
    assert response.content_type == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    figures = response.get_json()
    parts = {"connections", "events", "performance", "errors", "instance"}
    assert figures.keys() == parts | {"at", "state", "recent", "instances", "alerts"}
    assert figures["connections"]["open"] == 1
    assert figures["connections"]["by_transport"] == {"sse": 1, "polling": 0}
    assert figures["events"]["emitted"] == 3
    assert figures["events"]["by_type"] == {"a": 2, "b": 1}


def test_health_says_whether_there_is_room(make_site: MakeSite) -> None:
    """A balancer sends new clients elsewhere while the process itself is well."""
    assert make_site().get("/health/ready").get_json()["status"] == "ok"
    full = make_site(MAX_CONNECTIONS=0)
    assert full.get("/health/live").get_json()["status"] == "ok"
    as_problem(full.get("/health/ready"), 503)


def test_the_clients_files_are_served_with_their_version(
    make_site: MakeSite, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an ETag; for ever if asked for by version; nothing outside of the folder."""
    (tmp_path / "x.js").write_text("export {}")
    monkeypatch.setattr("hybrid.routes.client.STATIC", tmp_path)
    import hybrid

    site = make_site()
    plain = site.get("/client/x.js")
    assert plain.get_data() == b"export {}"
    assert plain.content_type == "text/javascript; charset=utf-8"
    assert plain.headers["X-Content-Type-Options"] == "nosniff"
    assert "immutable" not in plain.headers["Cache-Control"]
    etag = plain.headers["ETag"]
    assert site.get("/client/x.js", headers={"If-None-Match": etag}).status_code == 304
    versioned = site.get(f"/client/x.js?v={hybrid.__version__}")
    assert versioned.cache_control.immutable
    assert versioned.cache_control.max_age == 31_536_000
    for missing in ("/client/none.js", "/client/../extension.py", "/client/%2e%2e/extension.py"):
        assert site.get(missing).status_code == 404
    as_problem(site.get("/client/none.js"), 404)
    plain.close()
    versioned.close()


def test_what_is_not_there_is_a_problem_too(site: Site) -> None:
    """Every error below the prefix is problem details, the router's as well."""
    as_problem(site.client.get(PREFIX + "/test"), 405)
    as_problem(site.client.delete(PREFIX + "/polling"), 405)
    as_problem(site.client.get(PREFIX + "/nothing"), 404)


# -- what is refused

DEEP = b'{"data":' + b"[" * 60_000 + b"]" * 60_000 + b"}"
JSON = "application/json"


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"data": b"", "content_type": JSON}, 400),
        ({"data": b"{", "content_type": JSON}, 400),
        ({"data": b"nonsense", "content_type": JSON}, 400),
        ({"data": b"\xff\xfe\xfd", "content_type": JSON}, 400),
        ({"data": b'{"type":"\xff"}', "content_type": JSON}, 400),
        ({"data": b'{"type":"a"} x', "content_type": JSON}, 400),
        ({"data": DEEP, "content_type": JSON}, 400),
        ({"data": b'{"data":NaN}', "content_type": JSON}, 400),
        ({"data": b'{"data":[1e999]}', "content_type": JSON}, 400),
        ({"data": b'{"data":-Infinity}', "content_type": JSON}, 400),
        ({"data": b'{"data":' + b"9" * 5000 + b"}", "content_type": JSON}, 400),
        ({"json": []}, 400),
        ({"json": "text"}, 400),
        ({"data": b"null", "content_type": JSON}, 400),
        ({"json": 17}, 400),
        ({"json": {"unknown": 1}}, 400),
        ({"json": {"\ud800": 1}}, 400),
        ({"json": {"text": "<b>"}}, 400),
        ({"json": {"type": None}}, 400),
        ({"json": {"type": 5}}, 400),
        ({"json": {"type": ["a"]}}, 400),
        ({"json": {"type": ""}}, 400),
        ({"json": {"type": "x" * 257}}, 400),
        ({"json": {"type": "a\nb"}}, 400),
        ({"json": {"type": "a\0b"}}, 400),
        ({"json": {"type": "a\u2028b"}}, 400),
        ({"json": {"type": "a\x85b"}}, 400),
        ({"json": {"type": "\ud800"}}, 400),
        ({"json": {"type": "hybrid.bye"}}, 400),
        ({"json": {"users": "alice"}}, 400),
        ({"json": {"users": {"alice": 1}}}, 400),
        ({"json": {"users": 5}}, 400),
        ({"json": {"users": True}}, 400),
        ({"json": {"users": [None]}}, 400),
        ({"json": {"roles": [["staff"]]}}, 400),
        ({"json": {"topics": ["a\r\nb"]}}, 400),
        ({"json": {"topics": [""]}}, 400),
        ({"json": {"topics": ["\udfff"]}}, 400),
        ({"json": {"data": "x" * 65536}}, 413),
        ({"data": b'"' + b"x" * 300_000 + b'"', "content_type": JSON}, 413),
        ({"data": {"type": "a"}}, 415),
        ({"data": {"type": "a"}, "content_type": "multipart/form-data"}, 415),
        ({"data": b'{"type":"a"}', "content_type": "text/plain"}, 415),
        ({"data": b'{"type":"a"}'}, 415),
        ({"data": b"", "content_type": ""}, 415),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_r50_what_cannot_be_emitted_is_refused(site: Site, options: Any, status: int) -> None:
    """With the status that says why, as problem details, and before anything is stored."""
    site.realtime.can_test(lambda _: True)
    as_problem(site.client.post(PREFIX + "/test", **options), status)
    assert site.hub.log.last == 0
    assert not site.app.extensions["hybrid"].instance().emitted


def test_r50_an_object_with_lists_for_users_is_an_object_all_the_same(site: Site) -> None:
    """The table above refuses for its own reasons: the well-formed neighbour is taken."""
    site.realtime.can_test(lambda _: True)
    body = {"type": "a", "data": {"n": [1]}, "users": ["x"], "roles": [], "topics": None}
    assert site.test(body).status_code == 201
    nested = b'{"data":' + b"[" * 50 + b"]" * 50 + b"}"
    response = site.client.post(PREFIX + "/test", data=nested, content_type=JSON)
    assert response.status_code == 201


@pytest.mark.parametrize(
    ("body", "terminated", "length", "status"),
    [
        (b'{"type":"a"}', False, None, 400),  # nobody can say where such a body ends
        (b'{"type":"a"}', True, None, 201),  # chunked: the server knows the end
        (b'{"data":"' + b"x" * 500_000 + b'"}', True, None, 413),
        (b'{"type":"a"}', False, "-5", 400),
        (b'{"type":"a"}', False, "twelve", 400),
        (b'{"type":"a"}', False, "5", 400),
        (b'{"type":"a"}', False, "999999999999", 413),
    ],
)
def test_r50_a_body_without_a_true_length_is_safe(
    site: Site, body: bytes, terminated: bool, length: str | None, status: int
) -> None:
    """No length, a wrong one, or chunks without end: an answer, and no endless reading."""
    site.realtime.can_test(lambda _: True)
    builder = EnvironBuilder(PREFIX + "/test", method="POST", data=body, content_type=JSON)
    environ = builder.get_environ()
    environ.pop("CONTENT_LENGTH")
    if length is not None:
        environ["CONTENT_LENGTH"] = length
    if terminated:
        environ["wsgi.input_terminated"] = True
    # Not by the test client, which would work the length out again.
    response = WSGIResponse.from_app(site.app, environ)
    if status == 201:
        assert response.status_code == 201
    else:
        as_problem(response, status)
        assert site.hub.log.last == 0


@pytest.mark.parametrize(
    "query",
    [
        "wait=",
        "wait=soon",
        "wait=-0.1",
        "wait=25.01",
        "wait=nan",
        "wait=inf",
        "wait=1e400",
        "wait=%00",
        "limit=",
        "limit=all",
        "limit=0",
        "limit=-1",
        "limit=1001",
        "limit=1.5",
        "limit=1e2",
        "limit=" + "9" * 5000,
        "limit=%00",
        "limit=1_0",
        "limit=%D9%A3",
        "wait=1_0",
        "topic=",
        "topic=%00",
        "topic=a%0Ab",
        "topic=a%C2%85b",
        "topic=%E2%80%A8",
        "topic=" + "x" * 257,
        "topic=ok&topic=%7F",
        "&".join(f"topic=t{n}" for n in range(101)),
    ],
    ids=lambda query: query[:30],
)
def test_a_query_that_means_nothing_is_refused(site: Site, query: str) -> None:
    """400 and a sentence, never a guess; no slot is taken."""
    cursor = site.realtime.cursor()
    as_problem(site.get(f"/polling?since={cursor}&{query}"), 400)
    if query.startswith("topic"):
        as_problem(site.get(f"/sse?{query}"), 400)
    assert not site.hub.opened


@pytest.mark.parametrize("query", ["wait=0", "wait=25", "wait=0.5", "limit=1", "limit=1000", "x=y"])
def test_a_query_at_its_bounds_is_taken(site: Site, query: str) -> None:
    """The bounds belong to the range, and what nobody knows is nobody's business."""
    site.emit("a")
    assert len(site.poll(f"?since=0&{query}")["events"]) == 1


def test_identify_none_is_401_everywhere(site: Site) -> None:
    """An application that knows nobody serves nobody."""
    nobody = {"X-User": "nobody"}
    for path in ("/sse", "/polling", "/monitor"):
        as_problem(site.get(path, headers=nobody), 401)
    as_problem(site.test(headers=nobody), 401)
    assert not site.hub.opened
    assert site.hub.log.last == 0


def test_anonymous_visitors_can_be_shut_out(make_site: MakeSite) -> None:
    """With HYBRID_ANONYMOUS off, a user is needed."""
    site = make_site(ANONYMOUS=False)
    as_problem(site.get("/sse"), 401)
    as_problem(site.get("/polling"), 401)
    assert site.get("/polling", headers={"X-User": "alice"}).status_code == 200


def test_topics_are_closed_until_the_application_opens_them(make_site: MakeSite) -> None:
    """The default refuses each; with a hook, one refused topic refuses the request."""
    default = make_site(identify=False)
    for path in ("/sse", "/polling"):
        as_problem(default.get(f"{path}?topic=any"), 403)
    site = make_site()
    as_problem(site.get("/sse?topic=open&topic=closed"), 403)
    as_problem(site.get("/polling?since=0&topic=closed"), 403)
    assert not site.hub.opened


@pytest.mark.parametrize("hook", ["identify", "authorize", "can_test", "can_monitor"])
@pytest.mark.parametrize("error", [RuntimeError, KeyError, InvalidEvent, RecursionError])
def test_r95_a_hook_that_raises_admits_nobody(
    site: Site, hook: str, error: type[Exception]
) -> None:
    """503 without a word of what went wrong inside; nothing opened, nothing emitted."""

    def broken(*_: object) -> Any:
        raise error("password=hunter2")

    getattr(site.realtime, hook)(broken)
    asked: dict[str, list[Callable[[], TestResponse]]] = {
        "identify": [
            lambda: site.get("/sse"),
            lambda: site.get("/polling"),
            lambda: site.get("/monitor"),
            site.test,
        ],
        "authorize": [lambda: site.get("/sse?topic=a"), lambda: site.get("/polling?topic=a")],
        "can_test": [site.test],
        "can_monitor": [lambda: site.get("/monitor")],
    }
    for ask in asked[hook]:
        response = ask()
        as_problem(response, 503)
        text = response.get_data(as_text=True)
        assert "hunter2" not in text
        assert "Traceback" not in text
        assert "broken" not in text
    assert not site.hub.opened
    assert site.hub.log.last == 0


@pytest.mark.parametrize("given", [False, "alice", 17, {"user": "alice"}, object()])
def test_r95_a_hook_that_returns_no_identity_admits_nobody(site: Site, given: object) -> None:
    """A hook that forgot what it returns is no way in."""
    site.realtime.identify(lambda: given)  # type: ignore[type-var]
    as_problem(site.get("/sse"), 401)
    as_problem(site.get("/polling"), 401)


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "nonsense"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, False),
        ({"Origin": "http://localhost"}, True),
        ({"Origin": "https://localhost"}, False),
        ({"Origin": "http://localhost:8080"}, False),
        ({"Origin": "http://localhost.evil.example"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
    ],
)
def test_r83_a_test_event_comes_from_this_site_only(
    site: Site, headers: dict[str, str], allowed: bool
) -> None:
    """Another site's page cannot send with this user's cookies."""
    site.realtime.can_test(lambda _: True)
    response = site.test({"type": "a"}, headers=headers)
    if allowed:
        assert response.status_code == 201
    else:
        as_problem(response, 403)
    assert site.hub.log.last == allowed


# -- cursors that cannot be resumed

HOSTILE = [
    "\0",
    "x" * 8192,
    "é",
    "你好",
    "\u2028",
    "null",
    "undefined",
    "-1",
    "-0",
    "+1",
    "1.5",
    "1e5",
    "0x10",
    "e.-1.id",
    "e.1.id\0",
    "e.99999999999999999999.id",
    "e." + "9" * 5000 + ".id",
    "e.1",
    "..",
    " ",
    "e.1.id e.2.id",
    "../../etc/passwd",
    "<script>",
    "\ufeffe.1.id",
]


@pytest.mark.parametrize("since", HOSTILE, ids=lambda text: ascii(text)[:20])
@pytest.mark.parametrize("way", ["header", "query", "poll"])
def test_r35_a_hostile_cursor_is_a_gap(site: Site, since: str, way: str) -> None:
    """200 and `invalid`: a 400 would end a native EventSource for good."""
    site.emit("a")
    head = site.realtime.cursor()
    if way == "poll":
        answer = site.poll(f"?since={quote(since)}")
        assert answer["gap"] == {"reason": "invalid"}
        assert (answer["events"], answer["cursor"], answer["more"]) == ([], head, False)
        return
    if way == "header":
        # as a server hands over a header's bytes
        raw = since.encode().decode("latin-1")
        reading = site.stream(environ_overrides={"HTTP_LAST_EVENT_ID": raw})
    else:
        reading = site.stream(f"?since={quote(since)}")
    with reading as stream:
        hello = stream.hello()
        assert (hello["cursor"], hello["resumed"]) == (None, False)
        gap = stream.upto("hybrid.gap")[-1]
        assert gap.id == head
        assert json.loads(gap.data) == {"reason": "invalid", "cursor": head}
        assert [block.id for block in stream.blocks] == [None, head]
        site.emit("b")
        assert types(stream.upto("b")) == ["b"]


@pytest.mark.parametrize("since", ["9" * 15, "9" * 25, "9" * 5000, "0" * 5000, "00"])
def test_r35_a_number_of_any_length_is_a_time(site: Site, since: str) -> None:
    """Digits alone are Unix milliseconds, and no number of them is an error."""
    site.emit("a")
    answer = site.poll(f"?since={since}")
    assert answer["gap"] is None
    assert len(answer["events"]) == (int(since[:9]) == 0)
    with site.stream(f"?since={since}") as stream:
        assert stream.hello()["resumed"] is True


def test_r34_r31_r30_r40_other_gaps_are_named(make_site: MakeSite) -> None:
    """Each with its reason, on streams and polls alike."""
    site = make_site(HISTORY_EVENTS=3, MAX_REPLAY_EVENTS=2)
    (first, *_, last) = site.emit("a", "b", "c", "d", "e")
    epoch = site.hub.log.epoch
    cursors = {
        "epoch": f"other.5.{last}",
        "rollback": f"{epoch}.6.{last}",
        "forked": f"{epoch}.5.{first}",
        "expired": f"{epoch}.1.{first}",
        "too_far": str(site.hub.log.anchor),
    }
    for reason, since in cursors.items():
        assert site.poll(f"?since={since}")["gap"] == {"reason": reason}
        with site.stream(f"?since={since}") as stream:
            gap = json.loads(stream.upto("hybrid.gap")[-1].data)
            assert gap == {"reason": reason, "cursor": site.realtime.cursor()}
    assert dict(site.hub.gaps) == dict.fromkeys(cursors, 2)


@pytest.mark.parametrize("way", ["polling", "sse"])
def test_r30_what_did_not_fit_is_a_gap(make_site: MakeSite, way: str) -> None:
    """Large events push older ones out long before there are too many of them."""
    site = make_site(HISTORY_BYTES=1 << 20)
    before = site.realtime.cursor()
    for _ in range(10):
        site.realtime.emit("large", "x" * 60_000)
    if way == "polling":
        assert site.poll(f"?since={before}")["gap"] == {"reason": "expired"}
        kept = site.poll("?since=0")
        assert 1 < len(kept["events"]) < 10
        assert kept["gap"] is None
    else:
        with site.stream(f"?since={before}") as stream:
            gap = stream.upto("hybrid.gap")[-1]
            assert json.loads(gap.data)["reason"] == "expired"


def test_history_of_thousands_of_others_is_read_to_its_end(site: Site) -> None:
    """A poll, a held one and the application get the one event that is theirs, and its cursor."""
    before = site.realtime.cursor()
    for _ in range(1200):
        site.realtime.emit("other", users=["bob"])
    mine = site.realtime.emit("mine", users=["alice"])
    for _ in range(600):
        site.realtime.emit("other", users=["bob"])
    alice = {"X-User": "alice"}
    for wait in (0, 25):
        answer = site.poll(f"?since={before}&wait={wait}", headers=alice)
        assert [event["id"] for event in answer["events"]] == [mine]
        rest = site.poll(f"?since={answer['cursor']}", headers=alice)
        assert rest["events"] == []
        assert not rest["more"]
        assert rest["cursor"] == site.realtime.cursor()
    history = site.realtime.events_for(Identity("alice"), before)
    assert [event.id for event in history.events] == [mine]
    assert history.cursor == site.realtime.cursor()
    assert not history.more


@pytest.mark.parametrize("back", [True, False], ids=["judged", "away"])
def test_a_poll_that_nobody_can_judge_is_held_until_somebody_can(site: Site, back: bool) -> None:
    """It gets what is provisional meanwhile, and is not sent round in circles."""
    site.emit("before")
    foreign = "elsewhere.7.id"
    with faults(site.app) as fault:
        fault.bus_down()
        first = site.poll(f"?since={foreign}")
        assert (first["cursor"], first["gap"], first["bus"]) == (foreign, None, "degraded")
        answers: list[Any] = []
        asking = threading.Thread(
            target=lambda: answers.append(site.poll(f"?since={foreign}&wait=25"))
        )
        asking.start()
        while not site.hub.held():
            time.sleep(0.001)
        if back:
            fault.bus_up()
            asking.join()
            assert answers[0]["gap"] == {"reason": "epoch"}
            assert answers[0]["cursor"] == site.realtime.cursor()
        else:
            (given,) = site.emit("meanwhile")
            asking.join()
            assert [event["id"] for event in answers[0]["events"]] == [given]
            assert (answers[0]["cursor"], answers[0]["gap"]) == (foreign, None)
    assert site.hub.held() == 0


def test_r36_the_header_wins_over_the_query(site: Site) -> None:
    """A reconnecting EventSource sends its first URL again, with the header."""
    site.emit("a", "b")
    first = site.poll("?since=0&limit=1")["cursor"]
    with site.stream("?since=0", headers={"Last-Event-ID": first}) as stream:
        assert types(stream.upto("b")) == ["b"]
    with site.stream(f"?since={first}", headers={"Last-Event-ID": "nonsense"}) as stream:
        assert json.loads(stream.upto("hybrid.gap")[-1].data)["reason"] == "invalid"
    with site.stream("?since=0", headers={"Last-Event-ID": ""}) as stream:
        assert types(stream.upto("b")) == ["a", "b"]


def test_r36_with_neither_the_stream_begins_now(site: Site) -> None:
    """Nothing old, and no gap."""
    site.emit("old")
    with site.stream() as stream:
        assert stream.hello()["resumed"] is False
        site.emit("new")
        assert types(stream.upto("new")) == ["new"]
        assert [block.type for block in stream.blocks] == ["hybrid.hello", "new"]


# -- limits and servers that cannot stream


def test_over_the_cap_is_503_with_retry_after(make_site: MakeSite) -> None:
    """The last free slot is used, the next client refused, and a freed slot used again."""
    site = make_site(MAX_CONNECTIONS=1)
    with site.stream(headers=NATIVE) as stream:
        stream.hello()
        as_problem(site.get("/sse", headers=NATIVE), 503)
        as_problem(site.get("/sse", headers=BUNDLED), 503)
        # a full instance still answers polls, it only does not hold them
        answer = site.poll(f"?since={site.realtime.cursor()}&wait=25")
        assert answer["events"] == []
        assert site.client.head(PREFIX + "/sse").status_code == 200
    with site.stream() as stream:
        stream.hello()
    assert site.hub.held() == 0
    assert site.hub.opened["sse"] == 2


def test_a_native_caller_can_be_spared_the_status(make_site: MakeSite) -> None:
    """With HYBRID_NATIVE_ERRORS=event it is told by an event, since a 503 would end it."""
    site = make_site(MAX_CONNECTIONS=0, NATIVE_ERRORS="event")
    response = site.get("/sse", headers=NATIVE)
    assert response.status_code == 200
    assert response.content_type == "text/event-stream; charset=utf-8"
    parser = Parser()
    (bye,) = parser.feed(b"".join(response.iter_encoded()))
    assert bye.type == "hybrid.bye"
    assert bye.id is None
    said = json.loads(bye.data)
    assert said == {"reason": "full", "after": parser.retry}
    assert said["after"] > 0
    as_problem(site.get("/sse", headers=BUNDLED), 503)
    # only overload is said by an event: who may not connect is not to come back
    as_problem(site.get("/sse", headers=NATIVE | {"X-User": "nobody"}), 401)
    as_problem(site.get("/sse?topic=closed", headers=NATIVE), 403)
    assert site.app.extensions["hybrid"].instance().problems[503] == 2


def test_r13_a_server_that_cannot_stream_says_so(site: Site) -> None:
    """One request at a time: a held stream would block everybody, so clients poll."""
    site.app.testing = False
    site.emit("a")
    as_problem(site.get("/sse"), 503)
    assert site.client.head(PREFIX + "/sse").status_code == 200
    answer = site.poll(f"?since={site.realtime.cursor()}&wait=25")
    assert answer["events"] == []
    assert len(site.poll("?since=0&wait=25")["events"]) == 1
    assert not site.hub.opened
    # a few threads would all be held; Flask's own server makes one for each request
    threaded = {"wsgi.multithread": True, "SERVER_SOFTWARE": "Werkzeug/3"}
    as_problem(site.get("/sse", environ_overrides={"wsgi.multithread": True}), 503)
    with site.stream(environ_overrides=threaded) as stream:
        stream.hello()
    # gunicorn serves the streams of an HTTP/2 connection one after the other
    as_problem(site.get("/sse", environ_overrides=threaded | {"HTTP_VERSION": "2"}), 503)


# -- slots


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_r14_asking_about_a_stream_takes_no_slot(site: Site, method: str) -> None:
    """Link checkers and preflights cost nothing; HEAD has the headers of GET."""
    response = site.client.open(PREFIX + "/sse?since=0&topic=open", method=method)
    assert response.status_code == 200
    assert response.get_data() == b""
    assert not site.hub.opened
    assert site.hub.held() == 0
    if method == "HEAD":
        assert response.content_type == "text/event-stream; charset=utf-8"
        assert response.headers["X-Accel-Buffering"] == "no"
    else:
        assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "POST"}


def test_r14_a_head_of_a_poll_takes_no_slot(site: Site) -> None:
    """A poll's HEAD has nothing to wait for."""
    since = site.realtime.cursor()
    response = site.client.head(f"{PREFIX}/polling?since={since}&wait=0.01")
    assert response.status_code == 200
    assert not site.hub.opened


def test_r15_a_response_that_is_dropped_gives_its_slot_back(site: Site) -> None:
    """Another extension's after_request raises: nobody ever closes the stream."""
    # The order of after_request is last first, and the error must leave no traceback behind:
    # it would hold the stream. Hence no pytest.raises.
    failures = 0

    @site.app.after_request
    def break_streams(response: Response) -> Response:
        if response.mimetype == "text/event-stream":
            raise LookupError("of another extension")
        return response

    for _ in range(3):
        try:
            site.get("/sse")
        except LookupError:
            failures += 1
    gc.collect()
    assert failures == 3
    assert site.hub.opened["sse"] == 3
    assert site.hub.held() == 0
    assert dict(site.hub.closed) == {"abandoned": 3}


def test_r16_a_stream_closed_before_its_first_byte_gives_its_slot_back_once(site: Site) -> None:
    """The client was gone before the server began to write."""
    body, status = site.raw("/sse")
    assert status == ["200 OK"]
    assert site.hub.held() == 1
    body.close()
    assert site.hub.held() == 0
    assert dict(site.hub.closed) == {"client": 1}
    body.close()
    del body
    gc.collect()
    assert site.hub.held() == 0
    assert dict(site.hub.closed) == {"client": 1}


class Rope(Connection):
    """A connection whose greenlet goes back to the test where it would sleep."""

    def park(self, timeout: float | None = None) -> bool:
        parent = getcurrent().parent
        assert parent is not None
        parent.switch("parked")
        return True


class Act:
    """A stream with the real hub and no server; the clocks stand still."""

    def __init__(self, gap: str | None = None) -> None:
        self.log = Log("e", max_events=10, max_seconds=60)
        self.hub = Hub(
            self.log,
            heartbeat=15,
            max_connections=10,
            clock=lambda: 0.0,
            wall=lambda: 0,
            random=lambda: 0.0,
            pause=lambda: None,
        )
        self.connection = Rope(
            "c1", Identity(), frozenset(), position=0, transport="sse", opened_at=0.0
        )
        self.hub.open(self.connection)
        self.stream = Stream(
            self.hub,
            self.connection,
            greeting(self.hub, self.connection, Start(self.log.head, gap=gap)),
        )


@pytest.mark.parametrize("error", [GreenletExit, GeneratorExit, SystemExit, KeyboardInterrupt])
def test_r17_what_ends_a_greenlet_cleans_up_once_and_passes_on(error: type[BaseException]) -> None:
    """A server that kills the greenlet of a stream gets its exception and we our slot."""
    act = Act()
    raised: list[BaseException] = []

    def serve() -> str:
        try:
            for _ in act.stream:
                pass
        except BaseException as caught:
            raised.append(caught)
        return "ended"

    server = greenlet(serve)
    assert server.switch() == "parked"
    assert len(act.hub.connections) == 1
    assert server.throw(error) == "ended"
    assert [type(caught) for caught in raised] == [error]
    assert not act.hub.connections
    act.stream.close()
    act.stream.close()
    del act.stream
    gc.collect()
    assert act.hub.held() == 0
    assert dict(act.hub.closed) == {"client": 1}
    assert not act.hub.readers._live.known.everyone


def test_r17_a_wrapped_stream_that_is_closed_cleans_up(site: Site) -> None:
    """Middleware puts a generator round the body; GeneratorExit ends both."""

    @site.app.after_request
    def wrap(response: Response) -> Response:
        inner = response.response

        def through() -> Iterator[Any]:
            yield from inner

        response.response = through()
        return response

    with site.stream() as stream:
        stream.hello()
        assert site.hub.held() == 1
    assert site.hub.held() == 0
    assert dict(site.hub.closed) == {"client": 1}


@pytest.mark.parametrize("gap", [None, "expired"])
def test_r18_the_first_bytes_wait_for_nothing(gap: str | None) -> None:
    """retry, hello and the gap are out before the stream asks the hub for anything."""
    act = Act(gap)
    with act.hub.readers._lock:  # whoever waits for the hub now waits for ever
        first = next(act.stream)
    parser = Parser()
    kinds = [block.type for block in parser.feed(first)]
    assert kinds == (["hybrid.hello", "hybrid.gap"] if gap else ["hybrid.hello"])
    assert first.startswith(b"retry: 3000\n\n")
    assert parser.retry == 3000
    act.stream.close()


def test_r24_nothing_of_the_request_lives_as_long_as_the_stream(site: Site) -> None:
    """Contexts are gone and teardown has run before the first byte is asked for."""
    steps: list[str] = []

    @site.app.teardown_request
    def torn(_: BaseException | None) -> None:
        steps.append("teardown_request")

    @site.app.teardown_appcontext
    def app_torn(_: BaseException | None) -> None:
        steps.append("teardown_appcontext")

    @site.app.after_request
    def watch(response: Response) -> Response:
        inner = response.response

        def watched() -> Iterator[Any]:
            for piece in inner:
                assert not has_request_context()
                assert not has_app_context()
                steps.append("read")
                yield piece

        if response.mimetype == "text/event-stream":
            response.response = watched()
        return response

    body, _ = site.raw("/sse")
    assert steps == ["teardown_request", "teardown_appcontext"]
    site.emit("a")  # which needs a context of nobody's request
    del steps[:]
    pieces = iter(body)
    assert b"hybrid.hello" in next(pieces)
    assert b"event: a\n" in next(pieces)
    assert steps == ["read", "read"]
    body.close()


# -- cookies


@pytest.fixture
def sticky(make_site: MakeSite, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site that would set two cookies on every answer: its session's and another's."""
    (tmp_path / "x.js").write_text("export {}")
    monkeypatch.setattr("hybrid.routes.client.STATIC", tmp_path)
    site = make_site(identify=False, MAX_CONNECTIONS=1)

    @site.app.before_request
    def permanent() -> None:
        session.permanent = True
        session["user_id"] = "alice"

    @site.app.after_request
    def another(response: Response) -> Response:
        response.set_cookie("tracker", "1")
        return response

    @site.app.get("/page")
    def page() -> str:
        return "page"

    return site


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/sse", {}, 200),
        ("HEAD", "/sse", {}, 200),
        ("GET", "/sse?since=nonsense", {}, 200),
        ("GET", "/sse?topic=closed", {}, 403),
        ("GET", "/polling", {}, 200),
        ("GET", "/polling?since=0", {}, 200),
        ("GET", "/polling?limit=0", {}, 400),
        ("POST", "/test", {"json": {"users": ["alice"]}}, 201),
        ("POST", "/test", {"json": {}}, 403),
        ("POST", "/test", {"data": {}}, 415),
        ("GET", "/monitor", {}, 403),
        ("GET", "/health/live", {}, 200),
        ("GET", "/health/ready", {}, 200),
        ("GET", "/client/x.js", {}, 200),
        ("GET", "/client/none.js", {}, 404),
    ],
)
def test_r84_no_answer_sets_a_cookie(
    sticky: Site, method: str, path: str, options: Any, status: int
) -> None:
    """A stream that began before a logout must not bring the session back."""
    page = sticky.client.get("/page")
    assert len(page.headers.getlist("Set-Cookie")) == 2, "the site itself does"
    response = sticky.client.open(PREFIX + path, method=method, **options)
    assert response.status_code == status
    assert response.headers.getlist("Set-Cookie") == []
    response.close()


def test_r84_a_hook_that_sends_people_to_the_login_sets_no_cookie(sticky: Site) -> None:
    """An `identify` may abort with a redirect: that is an answer of ours as well."""

    @sticky.realtime.identify
    def to_the_login() -> None:
        abort(redirect("/login"))

    for path in ("/sse", "/polling", "/monitor"):
        answer = sticky.get(path)
        assert (answer.status_code, answer.headers["Location"]) == (302, "/login")
        assert "Set-Cookie" not in answer.headers


def test_r84_no_refusal_sets_a_cookie(sticky: Site) -> None:
    """Nor do a full instance, one that says so by an event, and one that cannot stream."""
    sticky.app.testing = False
    assert not sticky.get("/sse").headers.getlist("Set-Cookie")
    sticky.app.testing = True
    with sticky.stream() as stream:
        stream.hello()
        full = sticky.get("/sse")
        as_problem(full, 503)
        assert not full.headers.getlist("Set-Cookie")


# -- topics, transports, one cursor


def test_r38_a_stream_with_several_topics_has_one_cursor_and_loses_nothing(site: Site) -> None:
    """Cut anywhere, resumed from the one cursor: every event of every topic, once, in order."""
    topics = ["open-a", "open-b", "open-c"]
    query = "&".join(f"topic={topic}" for topic in topics)
    cursor = site.realtime.cursor()
    wanted = []
    for number in range(30):
        topic = ["open-a", "open-b", "other", "open-c"][number % 4]
        site.emit(f"n{number}", topics=[topic])
        if topic != "other":
            wanted.append(f"n{number}")
    seen: list[str] = []
    while len(seen) < len(wanted):
        with site.stream(f"?since={cursor}&{query}") as stream:
            stream.until(lambda blocks: len(types(blocks)) > 0)
            # the connection breaks after the third event
            block = [b for b in stream.blocks if not b.type.startswith("hybrid.")][:3][-1]
            seen += types(stream.blocks)[:3]
            assert block.id is not None
            cursor = block.id
            assert cursor.count(".") == 3
    assert seen == wanted


class Wanderer:
    """A client that changes transports as it likes and keeps only its cursor."""

    def __init__(self, site: Site, user: str | None, roles: list[str], topics: list[str]) -> None:
        self.site = site
        self.identity = Identity(user, roles)
        self.topics = frozenset(topics)
        self.headers = [("X-Role", role) for role in roles]
        if user:
            self.headers.append(("X-User", user))
        self.query = "".join(f"&topic={topic}" for topic in topics)
        self.cursor = site.realtime.cursor()
        self.seen: list[tuple[str, str]] = []

    def unseen(self) -> int:
        """How many events in the log are its to see."""
        head = self.site.hub.log.last
        entries = self.site.hub.log.between(0, head) or []
        return sum(self.sees(entry.event) for entry in entries) - len(self.seen)

    def sees(self, event: Event) -> bool:
        return event.audience.admits(self.identity, self.topics)

    def poll(self, dice: random.Random) -> None:
        wait = f"&wait={dice.choice([0, 25])}" if self.unseen() else ""
        answer = self.site.poll(
            f"?since={self.cursor}&limit={dice.randint(1, 5)}{wait}{self.query}",
            headers=self.headers,
        )
        assert answer["gap"] is None
        self.seen += [
            (event["cursor"], event.get("text") or json.dumps(event["data"]))
            for event in answer["events"]
        ]
        self.cursor = answer["cursor"]

    def stream(self, dice: random.Random) -> None:
        """Reads what there is and what comes live, then loses the end of it."""
        if dice.random() < 0.5:
            reading = self.site.stream(f"?since={self.cursor}{self.query}", headers=self.headers)
        else:  # as an EventSource that reconnects
            headers = [*self.headers, ("Last-Event-ID", self.cursor)]
            reading = self.site.stream(f"?since=0{self.query}", headers=headers)
        with reading as stream:
            assert stream.hello()["resumed"] is True
            while (wanted := self.unseen()) > len(types(stream.blocks)) and dice.random() < 0.8:
                stream.until(lambda blocks: len(types(blocks)) >= wanted)
                if dice.random() < 0.5:
                    some_event(self.site, dice)
            cut = dice.choice([len(stream.raw), dice.randint(0, len(stream.raw))])
        parser = Parser()
        for block in parser.feed(stream.raw[:cut]):
            assert block.type != "hybrid.gap"
            if block.type != "hybrid.hello":
                self.seen.append((block.id or "", block.data))
        self.cursor = parser.last_event_id or self.cursor


def some_event(site: Site, dice: random.Random) -> None:
    audience: dict[str, list[str]] = dice.choice(
        [{}, {"users": ["alice"]}, {"roles": ["staff"]}, {"topics": ["open"]}, {"users": ["x"]}]
    )
    site.realtime.emit("tick", text="x" * dice.randint(1, 3000), **audience)


def test_r39_transports_give_the_same_sequence_whatever_the_switches(site: Site, seed: int) -> None:
    """Streams cut anywhere, long and short polls with any limit: nothing lost, nothing twice."""
    dice = random.Random(seed)
    crowd = [
        Wanderer(site, None, [], []),
        Wanderer(site, "alice", [], ["open"]),
        Wanderer(site, "bob", ["staff"], []),
    ]
    start = site.hub.log.last
    for _ in range(250):
        if dice.random() < 0.4:
            some_event(site, dice)
        else:
            wanderer = dice.choice(crowd)
            dice.choice([wanderer.poll, wanderer.stream])(dice)
    for wanderer in crowd:
        while wanderer.cursor != site.realtime.cursor():
            wanderer.poll(dice)
        entries = site.hub.log.between(start, site.hub.log.last) or []
        wanted = [
            (str(entry.event.cursor), entry.event.body)
            for entry in entries
            if wanderer.sees(entry.event)
        ]
        assert wanderer.seen == wanted
    assert site.hub.held() == 0
    assert not site.hub.gaps


# -- the extension's own methods


def test_events_for_asks_the_bus_before_it_calls_a_cursor_unknown(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker gave the cursor a moment ago; this one has merely not heard yet."""
    site.emit("a")
    epoch, offset, *_ = site.realtime.cursor().split(".")
    ahead = f"{epoch}.{int(offset) + 1}.later"
    bus = site.app.extensions["hybrid"].instance().bus
    monkeypatch.setattr(bus, "refresh", lambda: False)
    history = site.realtime.events_for(Identity("alice"), since=ahead)
    assert (list(history), history.cursor, history.gap) == ([], ahead, None)
    monkeypatch.undo()
    assert site.realtime.events_for(Identity("alice"), since=ahead).gap == "rollback"


def test_events_for_reads_what_a_stream_would_replay(site: Site) -> None:
    """A page can be rendered with the events that its reader may see, and the cursor."""
    cursor = site.realtime.cursor()
    site.emit("public")
    site.emit("mine", users=["alice"])
    site.emit("theirs", users=["bob"])
    site.emit("topic", topics=["open"])
    alice = Identity("alice")
    history = site.realtime.events_for(alice, since=cursor)
    assert [event.type for event in history] == ["public", "mine"]
    assert history[1].data == {"name": "mine"}
    assert len(history) == 2
    assert [event.type for event in history[:1]] == ["public"]
    assert (history.gap, history.more) == (None, False)
    assert history.cursor == site.realtime.cursor()
    with_topic = site.realtime.events_for(alice, topics=["open"])
    assert [event.type for event in with_topic] == ["public", "mine", "topic"]
    first = site.realtime.events_for(alice, since="0", limit=1)
    assert (len(first), first.more) == (1, True)
    rest = site.realtime.events_for(alice, since=first.cursor)
    assert [event.type for event in rest] == ["mine"]
    broken = site.realtime.events_for(alice, since="nonsense")
    assert (len(broken), broken.gap, broken.cursor) == (0, "invalid", history.cursor)


def test_a_cursor_read_before_the_data_misses_nothing(site: Site) -> None:
    """In a template and in Python the same: what happens after it is replayed."""
    with site.app.test_request_context():
        cursor = render_template_string("{{ hybrid_cursor() }}")
    assert cursor == site.realtime.cursor()
    site.emit("between")
    assert [event["type"] for event in site.poll(f"?since={cursor}")["events"]] == ["between"]


def test_disconnect_ends_every_stream_of_a_user_and_no_other(site: Site) -> None:
    """Each is told why before it ends, and gives its slot back."""
    alice = {"X-User": "alice"}
    with (
        site.stream(headers=alice) as one,
        site.stream(headers=alice) as two,
        site.stream(headers={"X-User": "bob"}) as bob,
    ):
        for stream in (one, two, bob):
            stream.hello()
        assert site.realtime.disconnect(user="alice") == 2
        for stream in (one, two):
            bye = stream.upto("hybrid.bye")[-1]
            assert json.loads(bye.data) == {"reason": "kicked", "after": 1000}
            assert bye.id is None
            assert list(stream.pieces) == []
        assert site.hub.held() == 1
        site.emit("on")
        assert types(bob.upto("on")) == ["on"]
    assert site.hub.closed["kicked"] == 2
    assert site.realtime.disconnect(user="alice") == 0


def test_one_extension_serves_several_applications(make_site: MakeSite) -> None:
    """Each has its own log; outside of any, it must be said which is meant."""
    one = make_site()
    other = Flask("other")
    other.testing = True
    one.realtime.init_app(other)
    with pytest.raises(NotReady, match="app_context"):
        one.realtime.emit("tick")
    with one.app.app_context():
        one.realtime.emit("for-one")
        cursor = one.realtime.cursor()
    with other.app_context():
        one.realtime.emit("for-other")
        assert one.realtime.cursor() != cursor
    assert [event["type"] for event in one.poll("?since=0")["events"]] == ["for-one"]
    answer = other.test_client().get(PREFIX + "/polling?since=0").get_json()
    assert [event["type"] for event in answer["events"]] == ["for-other"]
    other.extensions["hybrid"].instance().stop()


def test_an_application_has_one_extension(site: Site) -> None:
    """A second one would have a log that nobody reads; the first stays as it is."""
    for second in (lambda: site.realtime.init_app(site.app), lambda: Hybrid(site.app)):
        with pytest.raises(RuntimeError, match="already"):
            second()
    site.emit("a")
    assert len(site.poll("?since=0")["events"]) == 1


def test_without_an_application_it_says_so() -> None:
    """Rather than sending into the void."""
    uses: tuple[Callable[[], object], ...] = (
        lambda: Hybrid().emit("tick"),
        lambda: Hybrid().cursor(),
    )
    for use in uses:
        with pytest.raises(NotReady, match="init_app"):
            use()


def test_the_prefix_and_the_blueprint_are_the_applications_choice() -> None:
    """A setting moves the endpoints; a blueprint registered by hand stays where it is."""
    moved = Flask("moved")
    moved.config["HYBRID_URL_PREFIX"] = "/live"
    Hybrid(moved)
    assert moved.test_client().get("/live/health/live").status_code == 200
    by_hand = Flask("by_hand")
    realtime = Hybrid()
    by_hand.register_blueprint(realtime.blueprint, url_prefix="/mine")
    realtime.init_app(by_hand)
    assert by_hand.test_client().get("/mine/health/live").status_code == 200
    assert by_hand.test_client().get(PREFIX + "/health/live").status_code == 404


@pytest.mark.parametrize("first", [True, False])
def test_the_blueprint_stands_alone(first: bool) -> None:
    """Inside another it would be mounted twice, once without what guards the outer one: it is
    refused, before or after `init_app`; so is a second name."""
    app, realtime = Flask(__name__), Hybrid()
    outer = Blueprint("outer", __name__, url_prefix="/outer")
    outer.register_blueprint(realtime.blueprint, url_prefix="/live")
    if not first:
        realtime.init_app(app)
    with pytest.raises(ConfigError, match=r"'outer\.hybrid'.*HYBRID_URL_PREFIX"):
        app.register_blueprint(outer)
    with pytest.raises(ConfigError, match="'again'"):
        app.register_blueprint(realtime.blueprint, name="again")


def test_an_application_below_a_path() -> None:
    """Mounted by a dispatcher it streams, polls and refuses as at the top, and a look at who is
    connected sees the path as it was."""
    site = Site()
    paths = []

    @site.realtime.identify
    def identify() -> Identity:
        paths.append((request.script_root, request.path))
        return Identity("ada")

    root = Flask("root")
    root.wsgi_app = DispatcherMiddleware(root.wsgi_app, {"/shop": site.app.wsgi_app})  # type: ignore[method-assign]  # as Werkzeug's documentation does
    client = root.test_client()
    below = "/shop" + PREFIX
    assert client.get(below + "/polling").status_code == 200
    as_problem(client.get(below + "/nothing"), 404)
    as_problem(client.get(below + "/polling?limit=x"), 400)
    with Reading(client.get(below + "/sse")) as stream:
        stream.hello()
        site.emit("tick", users=["ada"])
        assert types(stream.upto("tick")) == ["tick"]
        site.app.extensions["hybrid"].instance().recheck.step()
        assert paths[-1] == ("/shop", PREFIX + "/sse")
    site.app.extensions["hybrid"].forget()


@pytest.mark.parametrize(
    ("cookie", "user"),
    [
        ({"user_id": 17}, "17"),
        ({"user": True}, None),
        ({"user": "alice"}, "alice"),
        ({"user_id": "bob", "user": "alice"}, "bob"),
        ({"user": {"name": "alice"}}, None),
        ({"user": ""}, None),
        ({}, None),
    ],
)
def test_by_default_the_session_says_who_one_is(
    make_site: MakeSite, cookie: dict[str, Any], user: str | None
) -> None:
    """An application with a login of its own needs no hook."""
    site = make_site(identify=False)
    with site.client.session_transaction() as stored:
        stored.update(cookie)
    with site.stream() as stream:
        stream.hello()
        (connection,) = site.hub.connections.values()
        assert connection.identity == Identity(user)
