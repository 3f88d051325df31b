"""More topics than an address can hold: a POST opens the stream, and a poll."""

import json
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from hybrid import Identity
from hybrid.routes.access import MAX_TOPICS
from servers import DEADLINE, PREFIX, ROOT, gunicorn
from sites import MakeSite, Reading, Site, as_problem, types

JSON = "application/json"
LONG = [f"open:{n:03}:{'t' * 247}" for n in range(MAX_TOPICS)]
"""As many and as long as topics may be."""


def post(site: Site, path: str, topics: Any, **options: Any) -> Any:
    return site.client.post(PREFIX + path, json={"topics": topics}, **options)


def test_a_post_opens_the_stream_of_its_topics(site: Site) -> None:
    """With those of the query, from the query's cursor; each is authorized."""
    cursor = site.realtime.cursor()
    site.emit("before", topics=[LONG[-1]])
    path = f"/sse?topic=open2&since={cursor}"
    with Reading(post(site, path, LONG[1:], headers={"X-User": "alice"})) as stream:
        assert stream.hello()["resumed"] is True
        (connection,) = site.hub.connections.values()
        assert connection.topics == {*LONG[1:], "open2"}
        assert len(connection.credentials) < 1000, "topics are not kept twice"
        site.emit("query", topics=["open2"])
        site.emit("other", topics=[LONG[0]])
        site.emit("end", topics=[LONG[50]])
        assert types(stream.upto("end")) == ["before", "query", "end"]
    as_problem(post(site, "/sse", ["open1", "closed"]), 403)
    as_problem(post(site, "/polling", ["open1", "closed"]), 403)


def test_a_post_polls_its_topics(site: Site) -> None:
    """Answered at once or held, as a GET is."""
    cursor = site.realtime.cursor()
    site.emit("hers", "end", topics=[LONG[7]])
    answer = post(site, f"/polling?since={cursor}&wait=20", LONG).get_json()
    assert [event["type"] for event in answer["events"]] == ["hers", "end"]
    assert post(site, f"/polling?since={cursor}", ["open"]).get_json()["events"] == []


def test_who_opened_by_a_post_is_asked_again_without_its_body(site: Site) -> None:
    """A handler that reads bodies finds none, and not one that is cut short."""

    @site.app.before_request
    def read() -> None:
        from flask import request

        if request.is_json:
            request.get_json()

    with Reading(post(site, "/sse", ["open"], headers={"X-User": "alice"})) as stream:
        stream.hello()
        recheck = site.app.extensions["hybrid"].instance().recheck
        recheck.step()
        assert (recheck.revoked, recheck.failures) == (0, 0)
        site.realtime.authorize(lambda *_: False)
        recheck.step()
        assert json.loads(stream.upto("hybrid.bye")[-1].data)["reason"] == "revoked"


def test_a_ticket_has_its_own_topics(site: Site) -> None:
    """Whatever is posted with it."""
    ticket = site.realtime.ticket(Identity("alice"), topics=["hers"])
    with Reading(post(site, f"/sse?ticket={ticket}", ["open"])) as stream:
        stream.hello()
        (connection,) = site.hub.connections.values()
        assert connection.topics == {"hers"}


@pytest.mark.parametrize("path", ["/sse", "/polling"])
@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"data": '{"topics":["open"]}', "content_type": "text/plain"}, 415),
        ({"data": {"topics": "open"}}, 415),
        ({"data": b"", "content_type": JSON}, 400),
        ({"data": b"[", "content_type": JSON}, 400),
        ({"json": ["open"]}, 400),
        ({"json": {}}, 400),
        ({"json": {"topics": "open"}}, 400),
        ({"json": {"topics": [["open"]]}}, 400),
        ({"json": {"topics": [{}]}}, 400),
        ({"json": {"topics": [None]}}, 400),
        ({"json": {"topics": [""]}}, 400),
        ({"json": {"topics": ["open"], "user": "bob"}}, 400),
        ({"json": {"topics": [f"open{n}" for n in range(101)]}}, 400),
        ({"json": {"topics": ["x" * 400_000]}}, 413),
    ],
)
def test_a_body_that_is_not_as_described_is_refused(
    site: Site, path: str, options: Any, status: int
) -> None:
    """400, 413 or 415; it takes no slot."""
    as_problem(site.client.post(PREFIX + path, **options), status)
    assert not site.hub.opened


def test_the_longest_topics_fit_however_json_spells_them(site: Site) -> None:
    """Twelve bytes for a character beyond the basic plane."""
    topics = [f"{n:03}" + "\U0001f600" * 253 for n in range(MAX_TOPICS)]
    with Reading(post(site, "/sse", topics)) as stream:
        stream.hello()


@pytest.mark.parametrize("path", ["/sse", "/polling"])
def test_a_post_of_another_site_is_refused(make_site: MakeSite, path: str) -> None:
    """As a GET is, before anything is asked; named origins may, after a preflight."""
    friend = "https://app.example"
    site = make_site(CORS_ORIGINS=[friend])
    for headers in (
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        as_problem(post(site, path, ["open"], headers=headers), 403)
    asked = {
        "Origin": friend,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    preflight = site.client.options(PREFIX + path, headers=asked)
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    assert preflight.headers["Access-Control-Allow-Headers"] == "content-type"
    with post(site, path, ["open"], headers={"Origin": friend}) as answer:
        assert answer.status_code == 200


def test_a_post_counts_as_a_get(make_site: MakeSite) -> None:
    """And before its body is read."""
    site = make_site(LIMIT_IP_CONNECTIONS="2 per minute", LIMIT_POLLS="2 per minute")
    statuses = []
    for path in ("/sse", "/polling"):
        for _ in range(3):
            with post(site, path, ["open"]) as answer:
                statuses.append(answer.status_code)
    assert statuses == [200, 200, 429] * 2
    as_problem(site.client.post(f"{PREFIX}/sse", data="x" * 1000), 429)


def test_a_hundred_topics_fit_the_request_line_of_the_shipped_settings(tmp_path: Path) -> None:
    """Of 36 characters, as a UUID has; longer ones by POST, whose stream the pump takes over."""
    short = [f"open:{n:031}" for n in range(MAX_TOPICS)]
    settings = ("-c", str(ROOT / "gunicorn.conf.py"))
    with gunicorn(tmp_path / "log", *settings) as server:
        with server.stream("&".join(f"topic={topic}" for topic in short)) as stream:
            stream.hello()
        connection = HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
        body = json.dumps({"topics": LONG})
        assert len(body) > 25_000
        connection.request("POST", f"{PREFIX}/sse?user=alice", body, {"Content-Type": JSON})
        response = connection.getresponse()
        assert response.status == 200
        server.emit("late", topics=[LONG[99]])
        while response.readline() != b"event: late\n":
            assert not response.isclosed()
        server.until(lambda: server.internals()["watched"] >= 1, "the hub never took it over")
        response.close()  # of an answer that ends the connection, the connection is its own
        server.until_open(0)
