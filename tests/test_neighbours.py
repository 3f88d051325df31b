"""Beside other extensions and behind proxies, as applications really are."""

import gc
import re
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
from flask import Flask, request
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_login import LoginManager, UserMixin, login_user
from flask_talisman import Talisman
from flask_wtf.csrf import CSRFProtect
from werkzeug.middleware.proxy_fix import ProxyFix

from hybrid import Hybrid, Identity, NotReady
from hybrid.compat.flask_sse import ServerSentEventsBlueprint
from hybrid.signals import disconnected
from servers import DEADLINE, PREFIX
from sites import MakeSite, Reading, Site, as_problem, types

T = TypeVar("T")
KEY = "a key that publishes"
PROXIED = {
    "X-Forwarded-For": "192.0.2.7",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "app.example",
    "X-Forwarded-Prefix": "/below",
}


def new_app() -> Flask:
    app = Flask(__name__)
    app.testing = True
    app.secret_key = "for tests"
    return app


@pytest.mark.parametrize("first", [True, False])
def test_form_tokens_are_not_asked_of_programs(first: bool) -> None:
    """Flask-WTF's `CSRFProtect`, set up before or after: the application's forms stay guarded."""
    app = new_app()
    app.config.update(HYBRID_PUBLISH_KEY=KEY)
    if first:
        CSRFProtect(app)
    realtime = Hybrid(app)
    if not first:
        CSRFProtect(app)
    realtime.identify(lambda: Identity("alice"))
    app.add_url_rule("/form", "form", lambda: "", methods=["POST"])
    client = app.test_client()
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = client.post(f"{PREFIX}/publish", json={"type": "x"}, headers=headers)
    assert answer.status_code == 201
    assert client.post(f"{PREFIX}/test", json={"users": ["alice"]}).status_code == 201
    # and nothing that a page of another site can send gets in for that
    forged = {"Origin": "https://evil.example"}
    as_problem(client.post(f"{PREFIX}/test", json={"users": ["alice"]}, headers=forged), 403)
    as_problem(client.post(f"{PREFIX}/test", data={"type": "x"}), 415)
    assert client.post("/form").status_code == 400
    app.extensions["hybrid"].forget()


def test_default_limits_are_not_for_the_streams_of_flask_ssess_blueprint() -> None:
    """They end a native EventSource for good; the application's pages are limited as ever."""
    app = new_app()
    Limiter(get_remote_address, app=app, default_limits=["2 per day"], storage_uri="memory://")
    channel = ServerSentEventsBlueprint("sse", __name__)
    channel.add_url_rule("", endpoint="stream", view_func=channel.stream)
    app.register_blueprint(channel, url_prefix="/stream")
    app.add_url_rule("/page", "page", lambda: "")
    client = app.test_client()
    assert [client.get("/page").status_code for _ in range(3)] == [200, 200, 429]
    for _ in range(4):
        answer = client.get("/stream")
        assert answer.status_code == 200
        answer.close()
    app.extensions["hybrid"].forget()


def test_below_a_path_of_a_proxy_that_speaks_tls(make_site: MakeSite) -> None:
    """With ProxyFix and Flask-Talisman: links have the path, and each look sees what the request
    was, so that nobody is sent to https again."""
    site = make_site(identify=False)
    site.app.wsgi_app = ProxyFix(site.app.wsgi_app, x_for=1, x_proto=1, x_host=1, x_prefix=1)  # type: ignore[method-assign]
    site.app.testing = False
    Talisman(site.app)
    seen: list[Any] = []

    @site.realtime.identify
    def identify() -> Identity:
        seen.append((request.url_root, request.remote_addr, request.script_root))
        return Identity("alice")

    site.realtime.can_monitor(lambda _: True)
    assert site.get("/sse").status_code == 302
    page = site.get("/monitor", headers=PROXIED | {"Accept": "text/html"})
    links = re.findall(r'(?:src|href|data-base)="(/[^"]+)"', page.get_data(as_text=True))
    assert links
    assert all(link.startswith(f"/below{PREFIX}") for link in links)
    server = site.get("/openapi.json", headers=PROXIED).get_json()["servers"]
    assert server == [{"url": f"/below{PREFIX}"}]
    own = {"Origin": "https://app.example"}
    sent = site.test({"users": ["alice"]}, headers=PROXIED | own)
    assert sent.status_code == 201
    site.app.testing = True  # a stream of a test is read by itself, which is no server's way
    with site.stream(headers=PROXIED) as stream:
        stream.hello()
        del seen[:-1]
        site.app.extensions["hybrid"].instance().recheck.step()
        site.emit("on", users=["alice"])
        assert types(stream.upto("on")) == ["on"]
    assert set(seen) == {("https://app.example/below/", "192.0.2.7", "/below")}


class Person(UserMixin):  # type: ignore[misc] # Flask-Login has no types
    def __init__(self, name: str) -> None:
        self.id = name


def test_a_strong_session_is_no_other_session_at_the_look() -> None:
    """Flask-Login's strong protection compares address and browser; the look has both."""
    app = new_app()
    login = LoginManager(app)
    login.session_protection = "strong"
    login.user_loader(Person)
    app.config["HYBRID_HEARTBEAT_SECONDS"] = 25
    realtime = Hybrid(app)
    app.add_url_rule("/login", "login", lambda: str(login_user(Person("alice"))))
    client = app.test_client()
    client.get("/login")
    stream = Reading(client.get(f"{PREFIX}/sse"))
    stream.hello()
    app.extensions["hybrid"].instance().recheck.step()
    realtime.emit("hers", users=["alice"])
    assert types(stream.upto("hers")) == ["hers"]
    stream.response.close()
    app.extensions["hybrid"].forget()


# -- hooks that are to be waited for


def apart(ask: Callable[[], T]) -> T:
    """Ask in a thread of its own, as a server does: in this one Playwright's event loop may run."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(ask).result(DEADLINE)


class Later:
    """A refusal that has to be waited for; nobody has to."""

    def __init__(self, *_: Any) -> None:
        pass

    def __await__(self) -> Generator[None, None, bool]:
        yield
        return False


async def refuse_async(*_: Any) -> bool:
    return False


@pytest.mark.parametrize(("hook", "status"), [(refuse_async, 403), (Later, 503)])
def test_r95_a_refusal_that_has_to_be_waited_for_is_one(
    site: Site, hook: Callable[..., Awaitable[bool]], status: int
) -> None:
    """A coroutine is true, whatever it would say: taken as an answer it opened everything."""
    site.realtime.authorize(hook)
    site.realtime.can_monitor(hook)
    site.realtime.can_test(hook)
    as_problem(apart(lambda: site.get("/polling?topic=x")), status)
    as_problem(apart(lambda: site.get("/sse?topic=x")), status)
    as_problem(apart(lambda: site.get("/monitor")), status)
    as_problem(apart(site.test), status)


def test_hooks_may_be_async(site: Site) -> None:
    """At connect and at the look."""
    user = ["alice"]

    @site.realtime.identify
    async def identify() -> Identity | None:
        return Identity(user[0]) if user[0] else None

    @site.realtime.authorize
    async def authorize(_: Identity, topic: str) -> bool:
        return topic == "open"

    as_problem(apart(lambda: site.get("/polling?topic=closed")), 403)
    with apart(lambda: site.stream("?topic=open")) as stream:
        stream.hello()
        recheck = site.app.extensions["hybrid"].instance().recheck
        recheck.step()
        site.emit("on", topics=["open"])
        assert types(stream.upto("on")) == ["on"]
        user[0] = ""
        recheck.step()
        assert stream.upto("hybrid.bye")


# -- factories


def test_an_application_that_is_dropped_takes_its_threads_along() -> None:
    """A test suite makes hundreds by its factory; each would have left four threads for ever."""
    before = set(threading.enumerate())
    realtime = Hybrid()
    apps: list[weakref.ref[Flask]] = []

    def heard(_app: Flask, **_: Any) -> None:
        """Somebody listens, so that there is who tells."""

    def make() -> None:
        app = new_app()
        realtime.init_app(app)
        disconnected.connect(heard, app)
        with app.app_context():
            realtime.emit("x")
        stream = Reading(app.test_client().get(f"{PREFIX}/sse"))
        stream.hello()
        stream.response.close()
        apps.append(weakref.ref(app))

    for _ in range(3):
        make()
    end = time.monotonic() + DEADLINE
    while left := set(threading.enumerate()) - before:
        gc.collect()
        assert time.monotonic() < end, left
        thread = next(iter(left))
        if thread.ident is not None:  # else it is just being started
            thread.join(0.1)
    assert [app() for app in apps] == [None] * 3


def test_a_module_level_hybrid_means_the_app_that_is_left() -> None:
    """A test has dropped its app, which is a cycle and not collected yet: an emit outside of a
    context is for the new one, as often as there is one."""
    realtime = Hybrid()
    gc.disable()  # nobody collects by chance
    try:
        for number in range(3):
            app = new_app()
            realtime.init_app(app)
            realtime.emit("told", {"number": number})
            (event,) = app.test_client().get(f"{PREFIX}/polling?since=0").get_json()["events"]
            assert event["data"] == {"number": number}
            del app
    finally:
        gc.enable()
    gc.collect()


def test_with_two_apps_in_use_the_error_says_which_and_what_to_do() -> None:
    """Whichever were taken would be the wrong one now and then, and nobody would know."""
    realtime = Hybrid()
    apps = [Flask("shop"), Flask("stock")]
    for app in apps:
        realtime.init_app(app)
    with pytest.raises(NotReady, match=r"\(shop, stock\).*with app\.app_context\(\)"):
        realtime.emit("told")
    with apps[1].app_context():
        realtime.emit("told")
    told = [app.extensions["hybrid"].instance().log.last for app in apps]
    assert told == [0, 1]
    for app in apps:
        app.extensions["hybrid"].forget()
