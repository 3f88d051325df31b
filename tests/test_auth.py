"""Whose pages may ask, and who is who without a cookie: origins, bearer tokens, tickets."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from flask import session

from hybrid import Identity, NotReady
from hybrid.auth import Tickets, bearer_identity, scrub, scrub_logs
from hybrid.bus.connect import connect
from hybrid.reach import Reach
from redises import redis_server
from servers import PREFIX, gunicorn
from sites import MakeSite, Site, as_problem, types

FRIEND = "https://app.example"
KEY = "a key of sixty-four bytes or more, which is what RFC 7518 wants for HS512"


# -- other sites' pages

READS = ["/sse", "/polling", "/monitor", "/monitor/history", "/monitor/connections"]


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": FRIEND}, False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "iframe"}, False),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
    ],
)
def test_r87_a_page_of_another_site_gets_nothing(
    site: Site, path: str, headers: dict[str, str], allowed: bool
) -> None:
    """Neither a stream nor a poll nor the monitor: it costs no slot and no look at who it is."""
    site.realtime.can_monitor(lambda _: True)
    response = site.get(path, headers=headers)
    if allowed:
        assert response.status_code == 200
        response.close()
    else:
        as_problem(response, 403)
        assert not site.hub.opened
    assert not [name for name, _ in response.headers if name.startswith("Access-Control")]


def test_a_link_to_the_monitor_may_be_followed(site: Site) -> None:
    """From a chat or a mail, into a window of its own; not into a frame."""
    site.realtime.can_monitor(lambda _: True)
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Accept": "text/html"}
    page = site.get("/monitor", headers=link | {"Sec-Fetch-Dest": "document"})
    assert page.status_code == 200
    as_problem(site.get("/monitor", headers=link | {"Sec-Fetch-Dest": "iframe"}), 403)


@pytest.mark.parametrize("path", ["/sse", "/polling", "/monitor"])
@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://app.example.evil.example",
        "https://evilapp.example",
        "http://app.example",
        "https://app.example:8443",
        "https://APP.example",
        "https://app.example/",
        "https://app.example, https://evil.example",
        "null",
        "*",
        "",
    ],
)
def test_r86_only_the_named_origin_may_read(make_site: MakeSite, path: str, origin: str) -> None:
    """Compared whole; nothing is reflected, nothing is a pattern, `null` is nobody."""
    site = make_site(CORS_ORIGINS=[FRIEND])
    site.realtime.can_monitor(lambda _: True)
    for headers in ({"Origin": origin}, {"Origin": origin, "Sec-Fetch-Site": "cross-site"}):
        response = site.get(path, headers=headers)
        as_problem(response, 403)
        assert "Access-Control-Allow-Origin" not in response.headers
        assert "Origin" in response.headers["Vary"]
        preflight = site.client.options(
            PREFIX + path, headers=headers | {"Access-Control-Request-Method": "GET"}
        )
        assert "Access-Control-Allow-Origin" not in preflight.headers
    friend = site.get(path, headers={"Origin": FRIEND, "Sec-Fetch-Site": "cross-site"})
    assert friend.status_code == 200
    assert friend.headers["Access-Control-Allow-Origin"] == FRIEND
    assert friend.headers["Access-Control-Allow-Credentials"] == "true"
    friend.close()


def test_r86_a_preflight_says_what_is_allowed(make_site: MakeSite) -> None:
    """The endpoint's methods, the headers that were asked for, a while; errors are readable."""
    site = make_site(CORS_ORIGINS=FRIEND)
    asked = {
        "Origin": FRIEND,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = site.client.options(f"{PREFIX}/test", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == FRIEND
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert answer.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    as_problem(refused := site.get("/sse", headers={"Origin": FRIEND, "X-User": "nobody"}), 401)
    assert refused.headers["Access-Control-Allow-Origin"] == FRIEND
    sent = site.test({"users": ["alice"]}, headers={"Origin": FRIEND, "X-User": "alice"})
    assert sent.status_code == 201


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "text/json"]
)
@pytest.mark.parametrize("path", ["/test", "/monitor/disconnect", "/report"])
def test_r83_a_form_is_no_request_of_ours(site: Site, path: str, kind: str) -> None:
    """What a page of another site can send without being asked first is refused."""
    site.realtime.can_monitor(lambda _: True)
    site.realtime.can_operate(lambda _: True)
    body = {"data": '{"users":["alice"]}', "content_type": kind}
    as_problem(site.client.post(PREFIX + path, headers={"X-User": "alice"}, **body), 415)
    assert site.hub.log.last == 0


def test_r92_headers_keep_answers_to_their_reader(site: Site) -> None:
    """no-store, nosniff, the right type, Vary; a poll is an object and no script."""
    site.realtime.can_monitor(lambda _: True)
    site.emit("a")
    for path in (*READS, "/polling?since=0"):
        response = site.get(path)
        assert "no-store" in response.headers["Cache-Control"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert {"Cookie", "Authorization"} <= set(response.vary)
        assert "ETag" not in response.headers
        assert response.mimetype == ("text/event-stream" if path == "/sse" else "application/json")
        if path != "/sse":
            assert response.get_data()[:1] == b"{"
        response.close()


# -- bearer tokens


def token(**claims: Any) -> str:
    claims = {"sub": "alice", "exp": time.time() + 86400} | claims
    kept = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(kept, KEY, "HS256")


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def test_a_bearer_token_says_who_one_is(site: Site) -> None:
    """User and roles come from its claims; who sends none is asked otherwise."""
    site.realtime.identify(
        bearer_identity(KEY, audience="rt", issuer="us", otherwise=lambda: Identity("cookie"))
    )
    good = bearer(token(aud="rt", iss="us", roles=["manager", 5, None, True]))
    hers = Identity("alice", ["manager", "5"])
    for headers, expected in ((good, hers), ({}, Identity("cookie"))):
        with site.stream(headers=headers) as stream:
            stream.hello()
            (connection,) = site.hub.connections.values()
            assert connection.identity == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        token(exp=time.time() - 1),
        token(exp=None),
        token(sub=None),
        token(sub=""),
        token(sub=17),
        token(aud="other"),
        token(roles="manager"),
        token(nbf=time.time() + 600),
        jwt.encode({"sub": "alice", "exp": time.time() + 86400}, KEY[::-1], "HS256"),
        jwt.encode({"sub": "alice", "exp": time.time() + 86400}, KEY, "HS512"),
        jwt.encode({"sub": "alice", "exp": time.time() + 86400}, None, "none"),
        token()[:-3],
        token() + "x",
    ],
    # not the tokens: they have the time in them
    ids=[
        "empty",
        "nonsense",
        "expired",
        "endless",
        "nobody",
        "blank",
        "number",
        "audience",
        "roles",
        "early",
        "key",
        "algorithm",
        "unsigned",
        "cut",
        "longer",
    ],
)
def test_r88_a_token_that_is_not_right_is_nobody(
    site: Site, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """401, whatever is wrong with it, without a word of it in the answer or the log."""
    site.realtime.identify(bearer_identity(KEY, otherwise=lambda: Identity("cookie")))
    response = site.get("/sse", headers=bearer(text))
    as_problem(response, 401)
    if len(text) > 8:
        assert text not in response.get_data(as_text=True)
        assert text not in caplog.text


def test_a_token_that_needs_no_signature_is_a_mistake() -> None:
    """`none` among the algorithms would let everybody in."""
    for algorithms in ([], ["none"], ["HS256", "None"]):
        with pytest.raises(ValueError, match="algorithms"):
            bearer_identity(KEY, algorithms=algorithms)


def test_r85_a_stream_ends_with_its_token(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look on the heartbeat finds that it has expired; no leeway lengthens its life."""
    site.realtime.identify(bearer_identity(KEY))
    now = time.time()
    with site.stream(headers=bearer(token(exp=now + 60))) as stream:
        stream.hello()
        recheck = site.app.extensions["hybrid"].instance().recheck
        recheck.step()
        assert not stream_ended(site)
        monkeypatch.setattr("hybrid.auth.time.time", lambda: now + 60)
        recheck.step()
        assert json.loads(stream.upto("hybrid.bye")[-1].data)["reason"] == "revoked"


def stream_ended(site: Site) -> bool:
    return any(c.farewell or c.closed for c in site.hub.connections.values())


# -- tickets


def test_r88_a_ticket_is_good_for_one_stream(site: Site) -> None:
    """Of its user, with its roles and topics, whatever the query says besides; and once."""
    ticket = site.realtime.ticket(Identity("alice", ["manager"]), topics=["report:17"])
    assert set(ticket) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
    with site.stream(f"?ticket={ticket}&topic=other&user=bob", headers={"X-User": "eve"}) as stream:
        stream.hello()
        site.emit("hers", users=["alice"])
        site.emit("role", roles=["manager"])
        site.emit("topic", topics=["report:17"])
        site.emit("other", topics=["other"])
        site.emit("eve's", users=["eve"])
        site.emit("end")
        assert types(stream.upto("end")) == ["hers", "role", "topic", "end"]
        site.app.extensions["hybrid"].instance().recheck.step()
        assert not stream_ended(site)
    as_problem(site.get(f"/sse?ticket={ticket}"), 401)


def test_r88_a_ticket_that_is_forged_or_old_is_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that another key has signed, and one of this key for another purpose."""
    good = site.realtime.ticket(Identity("alice"))
    with site.app.test_request_context():
        session["user"] = "alice"
        serializer = site.app.session_interface.get_signing_serializer(site.app)  # type: ignore[attr-defined]
        cookie = serializer.dumps(dict(session))
    other = Tickets("another secret").issue(Identity("alice"), [])
    for text in ("", "x", good[:-1], good + "x", cookie, other, "é", "a" * 5000):
        as_problem(site.get("/sse", query_string={"ticket": text}), 401)
    monkeypatch.setattr("hybrid.auth.TICKET_SECONDS", -1)
    as_problem(site.get("/sse", query_string={"ticket": good}), 401)
    assert not site.hub.opened


def test_a_ticket_does_not_hold_a_stream_for_ever(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its user cannot be asked about again, so the stream has an end; revoke ends it at once."""
    monkeypatch.setattr("hybrid.routes.access.STREAM_SECONDS", -1)
    recheck = site.app.extensions["hybrid"].instance().recheck
    with site.stream(f"?ticket={site.realtime.ticket(Identity('alice'))}") as stream:
        stream.hello()
        recheck.step()
        assert json.loads(stream.upto("hybrid.bye")[-1].data)["reason"] == "revoked"
    with site.stream(f"?ticket={site.realtime.ticket(Identity('alice'))}") as stream:
        stream.hello()
        assert site.realtime.revoke(user="alice") == 1


def test_r88_a_ticket_does_not_outlive_a_revocation(site: Site) -> None:
    """Issued before and used after: the stream ends as those that were open then."""
    before = site.realtime.ticket(Identity("alice"))
    site.realtime.revoke(user="alice")
    with site.stream(f"?ticket={before}") as stream:
        assert json.loads(stream.upto("hybrid.bye")[-1].data)["reason"] == "revoked"


def test_a_ticket_needs_a_key(make_site: MakeSite) -> None:
    """A key of the process alone would make tickets that the next worker refuses."""
    site = make_site()
    site.app.secret_key = None
    with pytest.raises(NotReady, match="SECRET_KEY"):
        site.realtime.ticket(Identity("alice"))


def test_r88_a_ticket_is_used_once_among_all_instances(tmp_path: Path) -> None:
    """The second instance refuses it; where Redis is away, nobody takes it: 503, not a guess."""
    with redis_server(tmp_path) as server:
        clients = [connect(server.url, connections=1) for _ in range(2)]
        reaches = [Reach(client.ping) for client in clients]
        one, other = (
            Tickets("s" * 16, client=client, reach=reach, prefix="{app}:t")
            for client, reach in zip(clients, reaches, strict=True)
        )
        ticket = one.issue(Identity("alice"), ["a"])
        found = other.redeem(ticket)
        assert found is not None
        assert found[:2] == (Identity("alice"), frozenset({"a"}))
        assert one.redeem(ticket) is None
        with server.client() as direct:
            (key,) = direct.keys("*")
            assert key.startswith("{app}:t:")
            assert 0 < direct.ttl(key) <= 60
        fresh = one.issue(Identity("alice"), [])
        server.kill()
        for _ in range(2):
            with pytest.raises(ConnectionError):
                one.redeem(fresh)
        for reach in reaches:
            reach.stop()
        for client in clients:
            client.close()


def test_r88_every_worker_takes_a_ticket(tmp_path: Path) -> None:
    """Signed with the application's key and not with one of the worker that issued it."""
    (tmp_path / "redis").mkdir()
    with (
        redis_server(tmp_path / "redis") as redis,
        gunicorn(tmp_path / "log", url=redis.url) as one,
        gunicorn(tmp_path / "log", url=redis.url) as other,
    ):
        ticket = one.call("POST", "/ticket?user=alice")[1]["ticket"]
        with other.stream(f"ticket={ticket}") as stream:
            stream.hello()
        with one.stream(f"ticket={ticket}") as again:
            assert again.read_head() == 401


def test_r88_no_log_has_a_ticket(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not gunicorn's access log, not that of Flask's own server, not ours."""
    with gunicorn(tmp_path / "log", "--access-logfile", "-") as server:
        status, answer = server.call("POST", "/ticket?user=alice")
        assert status == 200
        ticket = answer["ticket"]
        with server.stream(f"ticket={ticket}") as stream:
            stream.hello()
        server.call("GET", f"{PREFIX}/polling?ticket={ticket}")
        server.until_open(0)
        log = (tmp_path / "log").read_text()
        assert f"{PREFIX}/sse?ticket=…" in log
        assert ticket not in log
        server.call("GET", f"{PREFIX}/polling?x=1&%74ick%65t={ticket[1:]}")
        told = f"{PREFIX}/polling?x=1&%74ick%65t=… "
        server.until(lambda: told in server.log.read_text(), "its line never came")
    scrub_logs()  # as each app's init_app does
    with caplog.at_level(logging.INFO):
        logging.getLogger("werkzeug").info('"%s" %s', f"GET /sse?a=1&ticket={ticket} HTTP/1.1", 200)
    assert caplog.messages[-1] == '"GET /sse?a=1&ticket=… HTTP/1.1" 200'


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("GET /sse?ticket=abc.d-e HTTP/1.1", "GET /sse?ticket=… HTTP/1.1"),
        ("/sse?%74icket=abc", "/sse?%74icket=…"),
        ("/sse?%74%69%63%6b%65%74=abc&topic=a", "/sse?%74%69%63%6b%65%74=…&topic=a"),
        ("ticket=abc", "ticket=…"),
        ("q='a=b&ticket=abc'", "q='a=b&ticket=…'"),
        ('{"query": "ticket=abc%2E"}', '{"query": "ticket=…"}'),
        ("at https://a.example/sse?ticket=abc#x:17", "at https://a.example/sse?ticket=…#x:17"),
        ("?my_ticket=a&ticket2=b&Ticket=c&tick=et", "?my_ticket=a&ticket2=b&Ticket=c&tick=et"),
        ("a ticket = none", "a ticket = none"),
        ("%=%zz=1&ticket=", "%=%zz=1&ticket="),
        ("?next=%252Fsse%253Fticket%253Dabc&x=1", "?next=%252Fsse%253Fticket%253D…&x=1"),
        ("?q=a%3Bticket%3Dabc&b+ticket=abc", "?q=a%3Bticket%3D…&b+ticket=…"),
        ('{ticket="abc"}', '{ticket="…"}'),
        ("/login?next=/sse?ticket=abc&x=1", "/login?next=/sse?ticket=…&x=1"),
        ("?next=%2Fsse%3Fa%26ticket%3Dabc&x=1", "?next=%2Fsse%3Fa%26ticket%3D…&x=1"),
        ("?next=%2Fsse%3fticket%3dabc HTTP/1.1", "?next=%2Fsse%3fticket%3d… HTTP/1.1"),
    ],
)
def test_a_ticket_is_found_as_the_server_would(text: str, clean: str) -> None:
    """By reading the query, with names that are encoded; and nothing else is taken out."""
    assert scrub(text) == clean


def test_r88_no_error_report_has_a_ticket(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Not in a traceback, not in the application's log, not in what the monitor groups."""
    site.realtime.can_monitor(lambda _: True)
    site.get("/monitor")  # from now on it listens
    for name in ("hybrid", site.app.name):
        try:
            raise ValueError("cannot fetch /sse?%74icket=s3cret")
        except ValueError:
            logging.getLogger(name).exception("at %s", "/sse?a=1&ticket=s3cret")
    report = {"message": "failed: /sse?ticket=s3cret", "place": "https://x/sse?ticket=s3cret:1"}
    assert site.client.post(f"{PREFIX}/report", json=report).status_code == 202
    assert caplog.text.count("icket=…") == 6
    shown = site.get("/monitor").get_json()["errors"]["groups"]
    assert [json.dumps(group, ensure_ascii=False).count("icket=…") for group in shown] == [2, 2]
    assert "s3cret" not in caplog.text + json.dumps(shown)


@pytest.mark.parametrize(
    ("host", "origin", "ours"),
    [
        ("my_app:5000", "http://my_app:5000", True),
        ("Example.test", "http://example.test", True),
        ("example.test:80", "http://example.test", True),
        ("example.test:8080", "http://example.test", False),
        ("my_app:5000", "http://other_app:5000", False),
        ("xn--a", "http://evil.example", False),
        ("xn--a", "http://xn--a", True),
        ("[::1", "http://[::1", True),
        ("", "http://evil.example", False),
    ],
)
def test_a_page_is_of_this_site_by_the_host_as_it_was_sent(
    site: Site, host: str, origin: str, ours: bool
) -> None:
    """Also where Werkzeug reads none out of it: such a Host is neither everybody's nor a 500."""
    # Flask's client would read the Host itself.
    _, (status,) = site.raw("/polling", headers={"Host": host, "Origin": origin})
    assert status.startswith("200" if ours else "403")


def test_topics_of_a_ticket_may_be_numbers(site: Site) -> None:
    ticket = site.realtime.ticket(Identity("alice"), topics=[17])
    with site.stream(f"?ticket={ticket}") as stream:
        stream.hello()
        site.emit("seen", topics=["17"])
        stream.upto("seen")
    kept = site.realtime.events_for(Identity("alice"), topics=[17])
    assert [event.type for event in kept] == ["seen"]
