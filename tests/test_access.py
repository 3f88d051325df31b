"""Who may connect and for how long: identity looked at again, revocation, logout."""

import json
import threading
from typing import Any

import pytest
from flask import Flask, Response, abort, g, request, session
from flask_login import LoginManager, UserMixin, login_user, logout_user
from greenlet import GreenletExit

from hybrid import Hybrid, Identity
from hybrid.instance import unix_ms
from hybrid.recheck import Recheck
from servers import DEADLINE, PREFIX
from sites import MakeSite, Reading, Site, as_problem, types

ALICE = {"X-User": "alice"}


def recheck(site: Site) -> Recheck:
    found: Recheck = site.app.extensions["hybrid"].instance().recheck
    return found


def ending(stream: Reading) -> Any:
    """How the server says that the stream is over."""
    bye = json.loads(stream.upto("hybrid.bye")[-1].data)
    assert next(stream.pieces, None) is None, "it goes on after its goodbye"
    return bye


# -- the look on the heartbeat


def test_r85_who_is_nobody_any_more_is_told_so(site: Site) -> None:
    """The stream ends with `revoked`; the client that comes back is refused like anyone."""
    known = {"alice", "bob"}

    @site.realtime.identify
    def identify() -> Identity | None:
        user = request.headers["X-User"]
        return Identity(user) if user in known else None

    with site.stream(headers=ALICE) as alice, site.stream(headers={"X-User": "bob"}) as bob:
        alice.hello(), bob.hello()
        recheck(site).step()
        known.remove("alice")
        site.emit("secret", users=["alice"])
        recheck(site).step()
        site.emit("after", users=["alice", "bob"])
        assert ending(alice) == {"reason": "revoked", "after": 0}
        assert types(bob.upto("after")) == ["after"]
        assert types(alice.blocks) in ([], ["secret"])
    as_problem(site.get("/sse?since=0", headers=ALICE), 401)
    as_problem(site.get("/polling?since=0", headers=ALICE), 401)


def test_r85_who_is_somebody_else_now_is_told_so(site: Site) -> None:
    """A stream never changes hands: not even to another user with the same cookie."""
    owner = ["alice"]
    site.realtime.identify(lambda: Identity(owner[0]))
    with site.stream() as stream:
        stream.hello()
        owner[0] = "mallory"
        recheck(site).step()
        assert ending(stream)["reason"] == "revoked"


def test_r85_who_loses_a_role_sees_its_events_no_more(site: Site) -> None:
    """Neither live nor replayed nor polled; who gains one sees what comes from then on."""
    roles = {"alice": {"manager"}, "bob": set()}

    @site.realtime.identify
    def identify() -> Identity:
        user = request.headers["X-User"]
        return Identity(user, roles[user])

    start = site.realtime.cursor()
    with site.stream(headers=ALICE) as alice, site.stream(headers={"X-User": "bob"}) as bob:
        alice.hello(), bob.hello()
        site.emit("first", roles=["manager"])
        alice.upto("first")
        site.emit("mark", users=["bob"])
        bob.upto("mark")
        roles.update(alice=set(), bob={"manager"})
        recheck(site).step()
        site.emit("second", roles=["manager"])
        site.emit("end")
        assert types(alice.upto("end")) == ["first", "end"]
        assert types(bob.upto("end")) == ["mark", "second", "end"]
    polled = site.poll(f"?since={start}", headers=ALICE)["events"]
    assert [event["type"] for event in polled] == ["end"]
    with site.stream(f"?since={start}", headers=ALICE) as again:
        assert types(again.upto("end")) == ["end"]


def test_r85_a_topic_that_is_closed_ends_the_stream(site: Site) -> None:
    """The client asked for it by name: to go on without it would be silence. Then it is 403."""
    closed: set[str] = set()
    site.realtime.authorize(lambda _, topic: topic not in closed)
    with site.stream("?topic=a&topic=b") as both, site.stream("?topic=b") as one:
        both.hello(), one.hello()
        closed.add("a")
        recheck(site).step()
        assert ending(both)["reason"] == "revoked"
        site.emit("for b", topics=["b"])
        one.upto("for b")
    as_problem(site.get("/sse?topic=a"), 403)


def test_tabs_with_the_same_credentials_are_asked_about_once(site: Site) -> None:
    """However many streams a browser has, identify and authorize are called once an interval."""
    asked: list[str] = []

    @site.realtime.identify
    def identify() -> Identity:
        asked.append("identify")
        return Identity("alice")

    @site.realtime.authorize
    def authorize(_: Identity, topic: str) -> bool:
        asked.append(topic)
        return True

    streams = [site.stream("?topic=a") for _ in range(5)]
    for stream in streams:
        stream.hello()
    del asked[:]
    for moment in range(20):
        recheck(site).step(moment)
    assert asked == ["identify", "a"]
    for stream in streams:
        stream.response.close()


def test_who_has_nothing_to_lose_is_not_asked_about(site: Site) -> None:
    """Anonymous visitors without topics see what everybody sees; ten thousand cost nothing."""
    with site.stream() as stream:
        stream.hello()
        recheck(site).step()
        assert recheck(site).asked == 0
        (connection,) = site.hub.connections.values()
        assert connection.credentials == ""


@pytest.mark.parametrize("hook", ["identify", "authorize", "before_request"])
def test_r95_a_look_that_fails_ends_the_stream(site: Site, hook: str) -> None:
    """It fails closed, and says that it is for now: the client comes back and is judged anew."""
    with site.stream("?topic=a", headers=ALICE) as stream:
        stream.hello()
        if hook == "before_request":
            site.app._got_first_request = False
            site.app.before_request(lambda: abort(503))
        else:

            def broken(*_: object) -> Any:
                raise RuntimeError("password=hunter2")

            getattr(site.realtime, hook)(broken)
        recheck(site).step()
        assert ending(stream) == {"reason": "unavailable", "after": 5000}
        assert b"hunter2" not in stream.raw
    assert recheck(site).failures == 1


def test_r85_a_slow_look_is_in_nobodys_way(site: Site) -> None:
    """Four users whose look-up does not end before that of a fifth has: hers is asked meanwhile."""
    asked = threading.Event()
    waited: list[bool] = []
    slow = [f"slow{number}" for number in range(4)]

    @site.realtime.identify
    def identify() -> Identity | None:
        user = request.headers["X-User"]
        if looking and user in slow:
            waited.append(asked.wait(DEADLINE))
        elif looking:
            asked.set()
            return None
        return Identity(user)

    looking = False
    streams = [site.stream(headers={"X-User": user}) for user in (*slow, "alice")]
    for stream in streams:
        stream.hello()
    looking = True
    recheck(site).patience = DEADLINE
    recheck(site).step()
    assert len(waited) >= 4
    assert all(waited)
    assert ending(streams.pop()) == {"reason": "revoked", "after": 0}
    site.emit("on")
    for stream in streams:
        assert types(stream.upto("on")) == ["on"]
        stream.response.close()


def test_r95_a_look_that_does_not_end_ends_the_stream(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """More than run at once: each counts as one that failed, and all others are still asked.

    Who comes back while it hangs is judged by the same; what it says at last is not asked for.
    """
    monkeypatch.setattr("hybrid.recheck.AT_ONCE", 2)
    over, hangs = threading.Event(), {"a", "b", "c"}

    @site.realtime.identify
    def identify() -> Identity | None:
        user = request.headers["X-User"]
        if looking and user in hangs:
            over.wait(DEADLINE)
            return None
        return None if looking and user == "alice" else Identity(user)

    looking = False
    recheck(site).patience = 0.05
    streams = [site.stream(headers={"X-User": user}) for user in (*sorted(hangs), "alice")]
    for stream in streams:
        stream.hello()
    looking = True
    recheck(site).step()
    assert ending(streams.pop())["reason"] == "revoked"
    for stream in streams:
        assert ending(stream) == {"reason": "unavailable", "after": 5000}
    assert "no answer within 0.05 s" in caplog.text
    looking = False
    with site.stream(headers={"X-User": "a"}) as again, site.stream(headers=ALICE) as alice:
        again.hello(), alice.hello()
        monkeypatch.setattr("hybrid.recheck.MOST_STUCK", 3)
        recheck(site).step()
        assert ending(again)["reason"] == "unavailable"
        assert ending(alice)["reason"] == "unavailable", "it waits for those that hang"
    looking = True
    revoked = recheck(site).revoked
    over.set()
    with recheck(site)._changed:
        assert recheck(site)._changed.wait_for(lambda: not recheck(site)._under_way, DEADLINE)
    assert recheck(site).revoked == revoked


def test_r95_what_is_no_exception_ends_the_stream_too(site: Site) -> None:
    """As gevent's timeouts: the look goes on for all others, this round and the next."""

    @site.realtime.identify
    def identify() -> Identity:
        if looking and request.headers["X-User"] == "alice":
            raise GreenletExit
        return Identity(request.headers["X-User"])

    looking = False
    with site.stream(headers=ALICE) as alice, site.stream(headers={"X-User": "bob"}) as bob:
        alice.hello(), bob.hello()
        looking = True
        recheck(site).step()
        assert ending(alice)["reason"] == "unavailable"
        site.emit("on")
        assert types(bob.upto("on")) == ["on"]


def test_the_look_sees_the_request_as_it_was(make_site: MakeSite) -> None:
    """Cookies, any header, the address, other query parameters, and what before_request sets."""
    site = make_site(identify=False)
    seen: list[dict[str, Any]] = []

    @site.app.before_request
    def load() -> None:
        g.user = session.get("name")

    @site.realtime.identify
    def identify() -> Identity:
        seen.append(
            {
                "user": g.user,
                "cookies": dict(request.cookies),
                "sso": request.headers.get("X-Auth-Request-User"),
                "bearer": request.headers.get("Authorization"),
                "agent": request.headers.get("User-Agent"),
                "address": request.remote_addr,
                "query": request.args.get("tenant"),
                "host": request.host,
                "url": request.base_url,
            }
        )
        return Identity(g.user)

    with site.client.session_transaction() as stored:
        stored["name"] = "zoë \0 x"
    headers = {"X-Auth-Request-User": "zoë", "Authorization": "Bearer t", "User-Agent": "UA"}
    with site.stream("?tenant=a%26b&since=0", headers=headers) as stream:
        stream.hello()
        recheck(site).step()
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert seen[0]["query"] == "a&b"


def test_a_look_gives_back_what_it_took(site: Site) -> None:
    """Teardown functions run after each look, also where the hook raises or a handler refuses;
    after_request functions do not, since there is no response."""
    steps: list[str] = []
    site.app.teardown_request(lambda _: steps.append("request"))
    site.app.teardown_appcontext(lambda _: steps.append("appcontext"))

    @site.app.after_request
    def after(response: Response) -> Response:
        steps.append("after")
        return response

    mode = "fine"

    @site.app.before_request
    def before() -> tuple[str, int] | None:
        return ("no", 403) if mode == "refused" else None

    @site.realtime.identify
    def identify() -> Identity:
        if mode == "broken":
            raise RuntimeError("the database is away")
        return Identity("ada")

    for wanted in ("fine", "broken", "refused"):
        mode = "fine"
        with site.stream() as stream:
            stream.hello()
            steps.clear()
            mode = wanted
            site.app.extensions["hybrid"].instance().recheck.step()
            assert steps == ["request", "appcontext"]


def test_r84_the_look_sets_no_cookie_and_saves_no_session(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that was closed meanwhile must not come back by it."""
    site = make_site(identify=False)
    saved: list[object] = []
    interface = site.app.session_interface
    monkeypatch.setattr(interface, "save_session", lambda *_: saved.append(1))
    site.realtime.identify(lambda: Identity("alice"))
    with site.stream() as stream:
        stream.hello()
        del saved[:]
        recheck(site).step()
        assert not saved


def test_a_held_poll_is_looked_at_too(site: Site) -> None:
    """It returns at once, empty, when its user is shut out."""
    cursor = site.poll(headers=ALICE)["cursor"]
    answers: list[Any] = []

    def poll() -> None:
        client = site.app.test_client()
        path = f"{PREFIX}/polling?since={cursor}&wait=20"
        answers.append(client.get(path, headers=ALICE).get_json())

    thread = threading.Thread(target=poll)
    thread.start()
    while not site.hub.readers._live.known.everyone:
        thread.join(0.01)
    assert site.realtime.revoke(user="alice") == 1
    thread.join(20)
    assert answers[0]["events"] == []


# -- revocation


def test_r85_revoke_ends_what_is_open_and_what_is_about_to_open(site: Site) -> None:
    """Also a request whose identity was looked up before, and whose stream opens after."""
    with site.stream(headers=ALICE) as alice, site.stream(headers={"X-User": "bob"}) as bob:
        alice.hello(), bob.hello()
        assert site.realtime.revoke(user="alice") == 1
        assert ending(alice) == {"reason": "revoked", "after": 1000}
        site.emit("on")
        assert types(bob.upto("on")) == ["on"]

    @site.realtime.identify
    def overtaken() -> Identity:
        site.realtime.revoke(user="alice")
        return Identity("alice")

    with site.stream() as late:
        assert ending(late)["reason"] == "revoked"
    site.realtime.identify(lambda: Identity("alice"))
    now = unix_ms()
    while unix_ms() < now + 4:
        pass  # within whole milliseconds of two clocks nobody can tell what was first
    with site.stream() as again:
        again.hello()
        site.emit("for alice", users=["alice"])
        assert types(again.upto("for alice")) == ["for alice"]


@pytest.mark.parametrize("end", ["revoke", "disconnect"])
def test_a_user_whose_id_is_a_number_is_shut_out_by_it(site: Site, end: str) -> None:
    """17 is the "17" of a session; as another name it would have ended nothing, in silence."""
    site.realtime.identify(lambda: Identity(17))
    with site.stream() as stream:
        stream.hello()
        assert getattr(site.realtime, end)(user=17) == 1
        assert ending(stream)["reason"] in ("revoked", "kicked")


def test_headers_that_would_be_kept_are_bounded(site: Site) -> None:
    """Many that each are allowed: what a stream holds must not be for its client to choose."""
    many = {f"X-Filling-{number}": "x" * 8000 for number in range(3)}
    as_problem(site.get("/sse", headers=ALICE | many), 431)
    with site.stream(headers=ALICE | {"X-Filling": "x" * 8000}) as stream:
        stream.hello()


class Person(UserMixin):  # type: ignore[misc] # Flask-Login has no types
    def __init__(self, name: str) -> None:
        self.id = name


def test_flask_logins_logout_revokes() -> None:
    """Every stream of who logs out ends; nothing is to be wired for it."""
    app = Flask(__name__)
    app.testing = True
    app.secret_key = "for tests"
    app.config["HYBRID_HEARTBEAT_SECONDS"] = 25
    LoginManager(app).user_loader(Person)
    realtime = Hybrid(app)

    @app.post("/login/<name>")
    def log_in(name: str) -> str:
        login_user(Person(name))
        return ""

    @app.post("/logout")
    def log_out() -> str:
        logout_user()
        return ""

    phone, laptop, other = (app.test_client() for _ in range(3))
    phone.post("/login/alice"), laptop.post("/login/alice"), other.post("/login/bob")
    streams = [Reading(client.get(f"{PREFIX}/sse")) for client in (phone, laptop, other)]
    for stream in streams:
        stream.hello()
    phone.post("/logout")
    assert [ending(stream)["reason"] for stream in streams[:2]] == ["revoked"] * 2
    realtime.emit("on", users=["bob"])
    streams[2].upto("on")
    anonymous = Reading(phone.get(f"{PREFIX}/sse?since=0"))
    anonymous.hello()
    realtime.emit("for all")
    assert types(anonymous.upto("for all")) == ["for all"]
    for stream in (*streams, anonymous):
        stream.response.close()
    app.extensions["hybrid"].instance().stop()


def test_a_logout_succeeds_whatever_the_outbox_holds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis is away and no place is left: the streams here end, and the logout is no 500."""
    monkeypatch.setattr("hybrid.bus.outbox.CONTROL_ROOM", 0)
    app = Flask(__name__)
    app.secret_key = "for tests"
    app.config.update(HYBRID_URL="redis://127.0.0.1:1", HYBRID_OUTBOX_EVENTS=0)
    LoginManager(app).user_loader(Person)
    Hybrid(app)

    @app.post("/logout")
    def log_out() -> str:
        login_user(Person("alice"))
        logout_user()
        return "out"

    assert app.test_client().post("/logout").text == "out"
    assert "a logout could not be told" in caplog.text
    app.extensions["hybrid"].forget()


def test_r84_a_stream_that_opened_before_a_logout_does_not_bring_the_session_back() -> None:
    """The race: the stream's answer leaves after the logout's, and carries no cookie."""
    app = Flask(__name__)
    app.testing = True
    app.secret_key = "for tests"
    Hybrid(app)

    @app.before_request
    def permanent() -> None:
        session.permanent = True

    @app.post("/login")
    def log_in() -> str:
        session["user"] = "alice"
        return ""

    @app.post("/logout")
    def log_out() -> Response:
        session.clear()
        return Response()

    client = app.test_client()
    client.post("/login")
    stream = Reading(client.get(f"{PREFIX}/sse"))
    client.post("/logout")
    stream.hello()
    assert client.get_cookie("session") is None
    assert "Set-Cookie" not in stream.response.headers
    stream.response.close()
    app.extensions["hybrid"].instance().stop()
