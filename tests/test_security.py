"""The rows of docs/security.md that have no better place, and that each row has its test."""

import ast
import json
import pickle
import re
from functools import cache
from pathlib import Path

import pytest
import redis
from playwright.sync_api import Browser, expect

from hybrid import InvalidEvent, Publisher
from redises import redis_server
from servers import DEADLINE, PREFIX, ROOT, gunicorn
from sites import MakeSite, Site, as_problem, types

EVE = {"X-User": "eve"}
INJECTIONS = [
    "a\r\nSet-Cookie: x=1",
    "a\nid: 9",
    "a\0b",
    "a\u2028b",
    "a\x85b",
    "<script>alert(1)</script>",
    "\x1b[2J",
]


@cache
def known_tests() -> set[tuple[str, str]]:
    """Every test there is, by file and name."""
    return {
        (path.name, node.name)
        for path in (ROOT / "tests").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_each_row_of_the_threat_model_has_its_test() -> None:
    """Each names tests that exist; a row without one is a wish."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        for line in (ROOT / "docs" / "security.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith(("| attack", "| ---"))
    ]
    assert len(rows) > 30
    there = known_tests()
    for attack, _, proof in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", proof)
        assert named, f"nothing proves: {attack}"
        assert not set(named) - there, f"no such test: {set(named) - there}"


@pytest.mark.parametrize("number", range(73, 97))
def test_each_requirement_of_this_kind_is_named_by_a_test(number: int) -> None:
    """The requirements on limits and security, by their numbers."""
    assert [name for _, name in known_tests() if re.search(f"r{number}_", name)]


# -- what goes in


@pytest.mark.parametrize("type", ["hybrid.bye", "hybrid.hello", "hybrid.gap", "hybrid.revoke"])
def test_r82_the_protocols_own_events_cannot_be_sent(make_site: MakeSite, type: str) -> None:
    """An application's user could end every stream with one."""
    site = make_site(PUBLISH_KEY="a key of the publishers")
    site.realtime.can_test(lambda _: True)
    with pytest.raises(InvalidEvent):
        site.realtime.emit(type)
    as_problem(site.test({"type": type}, headers=EVE), 400)
    key = {"Authorization": "Bearer a key of the publishers"}
    wish = {"type": type}
    as_problem(site.client.post(f"{PREFIX}/publish", json=wish, headers=key), 400)
    publisher = Publisher("redis://127.0.0.1:1")
    with pytest.raises(InvalidEvent):
        publisher.emit(type)
    publisher.close()
    assert site.hub.log.last == 0


@pytest.mark.parametrize("text", INJECTIONS)
def test_a_refusal_repeats_nothing_that_could_act(
    make_site: MakeSite, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Names of topics, types and users in answers, headers and logs: escaped or left out."""
    site = make_site(LIMIT_POLLS="1 per minute")
    site.realtime.authorize(lambda _who, _topic: False)
    refusals = [
        site.get("/sse", query_string={"topic": text}),
        site.get("/polling", query_string={"topic": text}, headers=EVE),
        site.get("/polling", query_string={"topic": text}, headers=EVE),
        site.test({"type": text}, headers=EVE),
        site.test({text: 1}, headers=EVE),
        site.get("/client/" + text.replace("\0", "")),
        site.get("/" + text.replace("\0", "")),
    ]
    for answer in refusals:
        as_problem(answer, answer.status_code)
        assert answer.status_code in (400, 403, 404, 429)
        body = answer.get_data(as_text=True)
        assert body.isascii()
        assert not re.search("[\x00-\x1f]", body)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        for _, value in answer.headers:
            assert not re.search("[\x00-\x1f]", value)
    for record in caplog.records:
        assert not re.search("[\x00-\x1f\x85\u2028]", record.getMessage())


HARMFUL = {"pickle", "marshal", "shelve", "yaml", "dill", "jsonpickle"}


def test_r90_nothing_here_runs_what_it_reads() -> None:
    """No pickle, no eval, no shell: what others write to Redis is data."""
    for path in (ROOT / "hybrid").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            line = getattr(node, "lineno", 0)
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile"), f"{path}:{line}"
            assert not {name.split(".")[0] for name in names} & HARMFUL, f"{path}:{line}"


def test_r90_what_others_write_to_redis_is_only_data(tmp_path: Path) -> None:
    """Bytes of any kind in the channel and the stream: a worker goes on and delivers."""
    with redis_server(tmp_path) as server:
        site = Site(URL=server.url, HEARTBEAT_SECONDS=25, NAMESPACE="app")
        with site.stream() as stream, redis.Redis(port=server.port) as raw:
            stream.hello()
            site.emit("before")
            stream.upto("before")
            for junk in (
                b"",
                b"e",
                b"e a b c d",
                b"e " + b"x" * 5_000_000,
                b"\xff\xfe\x00",
                pickle.dumps({"os": "system"}),
                b'e x 1 origin id {"type": 5}',
                b'e x 99999999999999999999999 p id {"type":"a"}',
                b"[" * 100_000,
            ):
                raw.publish("{app}:events", junk)
            head = raw.hget("{app}:meta", "offset")
            assert head is not None
            site.emit("after")
            stream.upto("after")
            assert types(stream.blocks) == ["before", "after"]
        site.app.extensions["hybrid"].instance().stop()


# -- what goes out


def test_r96_a_cursor_tells_nothing_of_what_it_stands_at(make_site: MakeSite) -> None:
    """That of an event one may not see resumes as any other; what one may not read, and what
    does not exist, are answered alike."""
    site = make_site()
    site.realtime.authorize(lambda _who, topic: topic == "open")
    before = site.realtime.cursor()
    site.emit("hidden", users=["alice"])
    at_hidden = site.realtime.cursor()
    site.emit("seen")
    for cursor in (before, at_hidden):
        answer = site.poll(f"?since={cursor}", headers=EVE)
        assert [event["type"] for event in answer["events"]] == ["seen"]
        assert answer["gap"] is None
        assert "hidden" not in json.dumps(answer)
    site.emit("on topic", topics=["busy"])
    refused = [
        as_problem(site.get(f"/polling?topic={topic}", headers=EVE), 403)["detail"]
        for topic in ("busy", "idle")
    ]
    assert refused[0].replace("busy", "idle") == refused[1]
    told = [
        as_problem(site.get(f"/monitor/event?cursor={cursor}", headers=EVE), 403)
        for cursor in (at_hidden, "no.7.such")
    ]
    assert told[0] == told[1]


def test_r91_the_monitor_is_closed_and_changes_nothing_by_get(make_site: MakeSite) -> None:
    """403 by default for everybody; a GET of what acts is 405; no secret in what it shows."""
    site = make_site(PUBLISH_KEY="a key of the publishers")
    paths = ["/monitor", "/monitor/history", "/monitor/connections", "/monitor/sse", "/metrics"]
    for path in paths:
        as_problem(site.get(path, headers=EVE), 403)
    site.realtime.can_monitor(lambda _: True)
    as_problem(site.get("/monitor/disconnect", headers=EVE), 405)
    as_problem(
        site.client.post(f"{PREFIX}/monitor/disconnect", json={"user": "alice"}, headers=EVE), 403
    )
    site.realtime.emit("secret", "of alice", users=["alice"])
    with site.stream(headers={"X-User": "bob", "Cookie": "session=s3cret"}) as stream:
        stream.hello()
        for path in paths[:3]:
            text = site.get(path, headers=EVE).get_data(as_text=True)
            for secret in ("publishers", "of alice", "s3cret"):
                assert secret not in text
    page = site.get("/monitor", headers=EVE | {"Accept": "text/html"})
    policy = page.headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


# -- the bundled client and a limit


@pytest.mark.browser
@pytest.mark.server
def test_r77_the_client_meets_a_limit_and_comes_back(tmp_path: Path, chromium: Browser) -> None:
    """In Chromium: refused, it polls, misses nothing, and streams again by itself."""
    with gunicorn(
        tmp_path / "log", limit_ip_connections="2 per 6 seconds", limit_ip_returns="1 per minute"
    ) as server:
        for _ in range(2):
            with server.stream() as stream:
                stream.hello()
        page = chromium.new_page()
        page.goto(f"http://127.0.0.1:{server.port}{PREFIX}/health/live")
        page.evaluate(
            """async ([prefix]) => {
                const { connect } = await import(prefix + "/client/hybrid.js");
                document.body.textContent = "";
                window.seen = []; window.ways = [];
                const timings = { probe: 500, probeMax: 1000, open: 1000 };
                window.rt = connect(prefix, { timings });
                rt.on("tick", (event) => seen.push(event.data));
                const show = () => {
                    const way = rt.state.activeMethod;
                    if (way && way !== ways.at(-1)) ways.push(way);
                    document.body.textContent = ways.join(" ");
                };
                rt.on("state", show); show();
            }""",
            [PREFIX],
        )
        expect(page.locator("body")).to_have_text("polling", timeout=DEADLINE * 1000)
        server.emit(data=1)
        page.wait_for_function("seen.length === 1", timeout=DEADLINE * 1000)
        expect(page.locator("body")).to_have_text("polling sse", timeout=DEADLINE * 1000)
        server.emit(data=2)
        page.wait_for_function("seen.length === 2", timeout=DEADLINE * 1000)
        assert page.evaluate("seen") == [1, 2]
        page.close()
