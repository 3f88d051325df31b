"""How often, how many at once, and who counts as one."""

import contextlib
import itertools
import logging
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from flask import Flask
from flask_limiter import Limiter
from hypothesis import given
from hypothesis import strategies as st
from limits.storage import RedisStorage
from limits.strategies import FixedWindowRateLimiter
from werkzeug.middleware.proxy_fix import ProxyFix

from hybrid import Hybrid, Identity
from hybrid.audience import Audience
from hybrid.auth import Tickets
from hybrid.bus.connect import connect
from hybrid.config import Settings
from hybrid.errors import TooManyOfOne
from hybrid.events import Event
from hybrid.instance import Instance
from hybrid.limits import MAX_WINDOWS, Rates, Windows, digest
from hybrid.reach import PATIENCE, Away, Patience, Reach
from hybrid.routes.bounds import address_of
from hybrid.slots import Slots
from redises import Proxy, RedisServer, redis_server
from servers import DEADLINE, PREFIX, gunicorn
from sites import BUNDLED, NATIVE, MakeSite, Reading, Site, as_problem

DEFAULTS = Settings()
ALICE = {"X-User": "alice"}


def at(address: str, **headers: str) -> dict[str, Any]:
    """A request from an address."""
    return {"environ_overrides": {"REMOTE_ADDR": address}, "headers": headers}


def connects(site: Site, query: str = "", **options: Any) -> int:
    """Open a stream and leave at once; the status."""
    response = site.get(f"/sse{query}", **options)
    response.close()
    return response.status_code


def instance(site: Site) -> Any:
    return site.app.extensions["hybrid"].instance()


# -- how often


def test_the_defaults_are_those_of_the_contract(make_site: MakeSite) -> None:
    """5 streams a minute for a user, 10 for an address, 100 and 200 events, 300 polls.

    A client that many events reach by long polls asks 240 times a minute.
    """
    names = [name for name in Settings.__slots__ if name.startswith("limit_")]
    site = make_site(**{name.upper(): getattr(DEFAULTS, name) for name in names})
    statuses = [connects(site, **at("10.0.0.1", **{"X-User": "alice"})) for _ in range(6)]
    assert statuses == [200] * 5 + [429]
    statuses = [connects(site, **at("10.0.0.2", **{"X-User": f"u{n}"})) for n in range(11)]
    assert statuses == [200] * 10 + [429]
    body = {"users": ["alice"]}
    statuses = [
        site.test(body, **at(f"10.0.1.{n}", **{"X-User": "alice"})).status_code for n in range(101)
    ]
    assert statuses == [201] * 100 + [429]
    counts = Counter(
        site.test({"users": [f"u{n}"]}, **at("10.0.0.3", **{"X-User": f"u{n}"})).status_code
        for n in range(201)
    )
    assert counts == {201: 200, 429: 1}
    statuses = [site.get("/polling", headers=ALICE).status_code for _ in range(301)]
    assert statuses == [200] * 300 + [429]
    # somebody else at another address is none the worse
    assert connects(site, **at("10.0.0.9", **{"X-User": "zoe"})) == 200
    assert site.get("/polling", headers={"X-User": "zoe"}).status_code == 200


def test_r76_too_much_is_a_problem_with_retry_after(make_site: MakeSite) -> None:
    """Whatever Flask-Limiter's settings say of headers; seconds, whole, within the window."""
    site = make_site(
        LIMIT_USER_CONNECTIONS="1 per minute", LIMIT_POLLS="1/minute", LIMIT_IP_EVENTS="1/minute"
    )
    for _ in range(2):
        stream = site.get("/sse", headers=ALICE)
        poll = site.get("/polling", headers=ALICE)
        event = site.test({"users": ["alice"]}, headers=ALICE)
        stream.close()
    for refused in (stream, poll, event):
        as_problem(refused, 429)
        assert 0 < int(refused.headers["Retry-After"]) <= 60


def test_r77_a_native_caller_can_be_spared_the_429(make_site: MakeSite) -> None:
    """It would give up for good; it is told when to come back instead."""
    site = make_site(LIMIT_IP_CONNECTIONS="1 per minute", NATIVE_ERRORS="event")
    assert connects(site) == 200
    as_problem(site.get("/sse", headers=BUNDLED), 429)
    with site.stream(headers=NATIVE) as native:
        native.upto("hybrid.bye")
        assert native.parser.retry is not None
        assert 1000 <= native.parser.retry <= 60_000


def test_a_burst_is_one_line_in_the_log(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """And every refusal is counted in the monitor. A hostile name cannot forge a line."""
    site = make_site(LIMIT_POLLS="1 per minute")
    site.realtime.can_monitor(lambda _: True)
    hostile = "eve\u2028root: all is well"
    site.realtime.identify(lambda: Identity(hostile))
    with caplog.at_level(logging.WARNING, "hybrid"):
        for _ in range(50):
            site.get("/polling")
    (record,) = caplog.records
    assert "polls" in record.getMessage()
    assert record.getMessage().isascii()
    assert "\n" not in record.getMessage()
    errors = site.get("/monitor").get_json()["errors"]
    assert errors["limits"]["polls"] == 49
    assert errors["responses"]["429"] == 49


def test_r79_a_return_is_not_charged_as_a_fresh_connection(make_site: MakeSite) -> None:
    """After a bye, a cut network or a reload with the page's cursor: a bucket of its own."""
    site = make_site(
        LIMIT_USER_CONNECTIONS="2/minute",
        LIMIT_IP_CONNECTIONS="2/minute",
        LIMIT_USER_RETURNS="30/minute",
    )
    cursor = site.realtime.cursor()
    for _ in range(10):
        assert connects(site, f"?since={cursor}", headers=ALICE) == 200
        assert connects(site, headers=ALICE | {"Last-Event-ID": "old.7.abc"}) == 200
    assert [connects(site, headers=ALICE) for _ in range(3)] == [200, 200, 429]
    # what is no cursor is no return, and returns have an end as well
    assert connects(site, "?since=0", headers=ALICE) == 429
    assert connects(site, "?since=nonsense", headers=ALICE) == 429
    statuses = [connects(site, f"?since={cursor}", headers=ALICE) for _ in range(11)]
    assert statuses == [200] * 10 + [429]


def test_an_attempt_without_an_identity_counts_too(make_site: MakeSite) -> None:
    """Who guesses at credentials is stopped by the address, before the hook is asked."""
    site = make_site(LIMIT_IP_CONNECTIONS="3 per minute")
    nobody = {"X-User": "nobody"}
    assert [connects(site, headers=nobody) for _ in range(5)] == [401, 401, 401, 429, 429]


def test_keys_cannot_be_guessed_without_end(make_site: MakeSite) -> None:
    """An address that tried too many wrong ones is refused, with the right one as well.

    Others are none the worse, the right key is never counted, and the window has an end.
    """
    key = "k" * 16
    site = make_site(PUBLISH_KEY=key, METRICS_KEY=key, LIMIT_IP_EVENTS="3 per minute")

    def publish(address: str, given: str) -> int:
        response = site.client.post(
            f"{PREFIX}/publish",
            json={"type": "t"},
            **at(address, Authorization=f"Bearer {given}"),
        )
        if response.status_code == 429:
            assert 0 < int(response.headers["Retry-After"]) <= 60
        return response.status_code

    assert [publish("10.0.0.1", key) for _ in range(6)] == [201] * 6
    guesses = [publish("10.0.0.1", f"guess {n}") for n in range(5)]
    assert guesses == [401] * 3 + [429] * 2
    assert publish("10.0.0.1", key) == 429
    assert publish("10.0.0.2", key) == 201
    metrics = site.get("/metrics", **at("10.0.0.1", Authorization=f"Bearer {key}"))
    assert metrics.status_code == 429
    rates = instance(site).rates
    rates._clock = lambda: time.time() + 60
    assert publish("10.0.0.1", key) == 201


# -- who counts as one


def test_r73_without_an_address_there_is_one_bucket_and_not_none(make_site: MakeSite) -> None:
    """A Unix socket names no client: all share a limit, and a setting tells them apart."""
    site = make_site(LIMIT_IP_CONNECTIONS="2 per minute")
    statuses = [connects(site, **at("")) for _ in range(3)]
    assert statuses == [200, 200, 429]
    behind = make_site(LIMIT_IP_CONNECTIONS="2 per minute", TRUSTED_PROXIES=1)
    for client in ("1.1.1.1", "2.2.2.2"):
        statuses = [connects(behind, **at("", **{"X-Forwarded-For": client})) for _ in range(3)]
        assert statuses == [200, 200, 429]


def test_r74_a_header_that_anyone_can_send_changes_nothing(make_site: MakeSite) -> None:
    """Without a trusted proxy X-Forwarded-For is only text; with one, its last entry counts."""
    site = make_site(LIMIT_IP_CONNECTIONS="2 per minute")
    forged = [at("9.9.9.9", **{"X-Forwarded-For": f"1.2.3.{n}"}) for n in range(4)]
    assert [connects(site, **request) for request in forged] == [200, 200, 429, 429]
    assert not instance(site).one_address
    behind = make_site(LIMIT_IP_CONNECTIONS="2 per minute", TRUSTED_PROXIES=1)
    forged = [at("127.0.0.1", **{"X-Forwarded-For": f"1.2.3.{n}, 8.8.8.8"}) for n in range(4)]
    assert [connects(behind, **request) for request in forged] == [200, 200, 429, 429]
    other = at("127.0.0.1", **{"X-Forwarded-For": "8.8.8.8, 7.7.7.7"})
    assert connects(behind, **other) == 200
    fixed = make_site(LIMIT_IP_CONNECTIONS="2 per minute")
    fixed.app.wsgi_app = ProxyFix(fixed.app.wsgi_app, x_for=1)  # type: ignore[method-assign]
    assert [connects(fixed, **request) for request in forged] == [200, 200, 429, 429]


@pytest.mark.parametrize(
    ("proxies", "direct", "forwarded", "bucket"),
    [
        (0, "10.1.1.1", [], "10.1.1.1"),
        (0, "10.1.1.1", ["1.1.1.1"], "10.1.1.1"),
        (1, "10.1.1.1", [], "10.1.1.1"),
        (1, "10.1.1.1", ["6.6.6.6, 1.1.1.1"], "1.1.1.1"),
        (1, "10.1.1.1", ["6.6.6.6", "1.1.1.1"], "1.1.1.1"),
        (2, "10.1.1.1", ["6.6.6.6, 1.1.1.1, 10.2.2.2"], "1.1.1.1"),
        (3, "10.1.1.1", ["1.1.1.1"], "1.1.1.1"),
        (1, "10.1.1.1", ["1.1.1.1:8080"], "1.1.1.1"),
        (1, "10.1.1.1", ["[2001:db8:1:2::7]:8080"], "2001:db8:1:2::/64"),
        (1, "10.1.1.1", ['"2001:db8:1:2:ffff::1"'], "2001:db8:1:2::/64"),
        (1, "10.1.1.1", ["unknown"], "local"),
        (1, "10.1.1.1", [""], "local"),
        (0, "::ffff:1.2.3.4", [], "1.2.3.4"),
        (0, "fe80::1%eth0", [], "fe80::/64"),
        (0, "64:ff9b::1.2.3.4", [], "1.2.3.4"),
        (0, "64:ff9b::102:305", [], "1.2.3.5"),
        (0, "64:ff9b:0:0:0:1::", [], "64:ff9b::/64"),
        (0, "2002:102:304:5:6:7:8:9", [], "1.2.3.4"),
        (0, "2002:102:304:ffff::1", [], "1.2.3.4"),
        (0, "2001:0:4136:e378:8000:63bf:fefd:fcfb", [], "1.2.3.4"),
        (0, "2001:0:4136:e378:8000:63bf:fefd:fcfa", [], "1.2.3.5"),
        (1, "10.1.1.1", ["[64:ff9b::808:808]:443"], "8.8.8.8"),
        (0, "", [], "local"),
    ],
)
def test_r74_the_address_of_a_client(
    make_site: MakeSite, proxies: int, direct: str, forwarded: list[str], bucket: str
) -> None:
    """From the right by the number of proxies; IPv6 by /64, or by the IPv4 address in it (NAT64,
    6to4, Teredo); ports and zones are no part of it."""
    site = make_site(TRUSTED_PROXIES=proxies)
    headers = [("X-Forwarded-For", line) for line in forwarded]
    with site.app.test_request_context(headers=headers, environ_overrides={"REMOTE_ADDR": direct}):
        assert address_of(instance(site)) == bucket


def test_r74_a_proxy_that_hides_everybody_is_noticed(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """Else the whole site would share ten connections a minute, and nobody would know why."""
    site = make_site()
    for _ in range(3):
        connects(site, **at("127.0.0.1", **{"X-Forwarded-For": "1.2.3.4"}))
    warnings = [r for r in caplog.records if "HYBRID_TRUSTED_PROXIES" in r.getMessage()]
    assert len(warnings) == 1
    assert "HYBRID_TRUSTED_PROXIES" in instance(site).alerts()[0]


@given(st.lists(st.text(), min_size=1), st.lists(st.text(), min_size=1))
def test_r89_keys_never_collide_and_carry_no_text(one: list[str], other: list[str]) -> None:
    """Lists of names with any separators: the same key only for the same list."""
    assert (digest(*one) == digest(*other)) == (one == other)
    assert len(digest(*one)) == 16
    assert not set("{}*?[]:/| ") & set(digest(*one))


def test_r93_counters_in_memory_are_bounded() -> None:
    """An attacker with a million addresses; those who are counted still are, if they go on."""
    now = [0.0]
    windows = Windows(lambda: now[0])
    for number in range(MAX_WINDOWS * 2):
        windows.hit(f"k{number}", 60)
    assert len(windows._windows) <= MAX_WINDOWS
    assert windows.hit("a", 60) == (1, 60)
    now[0] = 59.0
    assert windows.hit("a", 60) == (2, 1.0)
    now[0] = 60.0
    assert windows.hit("a", 60) == (1, 60.0)


# -- the application's own Limiter


@pytest.mark.parametrize("first", ["limiter", "hybrid"])
def test_r80_the_applications_limiter_counts_and_nothing_counts_twice(first: str) -> None:
    """Its storage, whatever its key_func says; its default limits stay off our endpoints."""
    app = Flask(__name__)
    app.testing = True
    app.config.update(HYBRID_LIMIT_IP_CONNECTIONS="4 per minute", HYBRID_LIMIT_POLLS=None)
    limiter = Limiter(lambda: "", default_limits=["1 per hour"], storage_uri="memory://")
    if first == "limiter":
        limiter.init_app(app)
    realtime = Hybrid(app)
    if first == "hybrid":
        limiter.init_app(app)
    realtime.identify(lambda: Identity("alice"))
    client = app.test_client()
    statuses = []
    for _ in range(6):
        response = client.get(f"{PREFIX}/sse")
        response.close()
        statuses.append(response.status_code)
    assert statuses == [200] * 4 + [429] * 2
    assert {client.get(f"{PREFIX}/polling").status_code for _ in range(5)} == {200}
    counted = limiter.storage.storage  # type: ignore[attr-defined] # that of the memory
    assert [name for name in counted if "hybrid/ip_connections" in name]
    app.extensions["hybrid"].instance().stop()
    limiter.storage.timer.cancel()  # type: ignore[attr-defined]
    limiter.storage.timer.join()  # type: ignore[attr-defined]


def test_r80_limits_that_are_switched_off_are_off() -> None:
    """RATELIMIT_ENABLED=False, as in many an application's tests."""
    app = Flask(__name__)
    app.testing = True
    app.config.update(RATELIMIT_ENABLED=False, HYBRID_LIMIT_POLLS="1 per minute")
    Limiter(lambda: "x", app=app, storage_uri="memory://")
    Hybrid(app)
    client = app.test_client()
    assert [client.get(f"{PREFIX}/polling").status_code for _ in range(3)] == [200] * 3
    app.extensions["hybrid"].instance().stop()


# -- a shared storage, and what happens without it


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


class Made:
    """Limits and slots on a Redis, each as in a process of its own, ended with the test."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ends = ExitStack()

    def reach(self, url: str = "") -> tuple[Any, Reach]:
        client = connect(url or self._url, connections=1)
        self._ends.callback(client.connection_pool.disconnect)
        reach = Reach(client.ping)
        self._ends.callback(reach.stop)
        return client, reach

    def rates(self, limit: str) -> Rates:
        client, reach = self.reach()
        return Rates({"polls": limit}, client=client, reach=reach, prefix="{app}:limits")

    def slots(self, me: str, **bounds: Any) -> Slots:
        client, reach = self.reach()
        return Slots(client=client, reach=reach, prefix="{app}:slots", me=me, **bounds)

    def close(self) -> None:
        self._ends.close()


@pytest.fixture
def made(server: RedisServer) -> Iterator[Made]:
    with server.client() as direct:
        direct.flushall()
    made = Made(server.url)
    yield made
    made.close()


def wait_for(condition: Callable[[], bool], why: str) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < DEADLINE, why
        time.sleep(0.005)
    return time.monotonic() - began


def gone(name: str) -> bool:
    return all(thread.name != name for thread in threading.enumerate())


def courier_runs(call: Callable[[], object], reach: Reach) -> None:
    """Have it done as everything that is asked of Redis is, and wait for that."""
    reach.ask(lambda asked: [call() for _ in asked], None, Patience(DEADLINE))


def test_instances_share_their_counters(made: Made, server: RedisServer) -> None:
    """Two instances and one limit; every key is in the namespace's hash tag and expires."""
    rates = [made.rates("3 per minute") for _ in range(2)]
    assert [rates[n % 2].hit("polls", "alice") is None for n in range(5)] == [True] * 3 + [
        False
    ] * 2
    assert rates[0].hit("polls", "bob") is None
    with server.client() as direct:
        keys = direct.keys("*")
        assert keys
        assert all(key.startswith("{app}:limits") and direct.ttl(key) > 0 for key in keys)


class Side:
    """What of one process asks its Redis for requests: limits, slots and tickets on one reach."""

    def __init__(self, made: Made, url: str) -> None:
        client, self.reach = made.reach(url)
        self.rates = Rates(
            {"polls": "3 per minute"}, client=client, reach=self.reach, prefix="{app}:limits"
        )
        self.slots = Slots(
            per_user=2,
            per_address=9,
            client=client,
            reach=self.reach,
            prefix="{app}:slots",
            me="a",
        )
        self.tickets = Tickets("s" * 16, client=client, reach=self.reach, prefix="{app}:tickets")

    def request(self, user: str) -> float:
        """Ask for all that a request may ask for, with a fresh ticket; seconds that it took."""
        patience = Patience()
        began = time.monotonic()
        self.rates.hit("polls", user, patience=patience)
        with contextlib.suppress(ConnectionError):
            self.tickets.redeem(self.tickets.issue(Identity(user), ()), patience)
        with contextlib.suppress(TooManyOfOne):
            self.slots.take(user, "1.1.1.1", patience)
        assert 0 <= patience.left <= PATIENCE
        return time.monotonic() - began


@pytest.mark.parametrize("how", ["frozen", "killed", "swallowed", "unresolved"])
def test_r75_a_storage_that_is_away_delays_nobody_and_its_return_is_noticed(
    made: Made,
    tmp_path: Path,
    how: str,
    known: threading.Event,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its first victim waits less than half a second for all together, the others not at all.

    Limits and bounds hold in memory meanwhile, no ticket is taken twice, and nobody asks before
    it is back: not one question goes out to find that out.
    """
    with redis_server(tmp_path) as server:
        proxy = Proxy(server.port)
        try:
            host = "redis.example" if how == "unresolved" else "127.0.0.1"
            side = Side(made, f"redis://{host}:{proxy.port}/0")
            rates, slots, tickets = side.rates, side.slots, side.tickets
            assert rates.hit("polls", "alice") is None
            slots.take("alice", "1.1.1.1")
            if how == "frozen":
                server.stop()
            elif how == "killed":
                server.kill()
            elif how == "swallowed":
                proxy.swallow = True
            else:
                known.clear()
                proxy.cut()
            waits = [side.request("bob") for _ in range(20)]
            print(f"{how}: waited {waits[0]:.3f} s, then {sum(waits[1:]):.4f} s for 19")
            assert sum(waits) < 1.2, "it was waited for more than once; the machine may be busy"
            assert side.reach.away
            assert rates.hit("polls", "bob") is not None, "no limit while the storage is away"
            slots.take("alice", "1.1.1.1")
            with pytest.raises(TooManyOfOne):
                slots.take("alice", "1.1.1.1")
            with pytest.raises(ConnectionError):
                tickets.redeem(tickets.issue(Identity("alice"), ()))
            if how == "frozen":
                server.go_on()
            elif how == "killed":
                server.start()
            proxy.swallow = False
            if how == "swallowed":
                proxy.cut()  # it gives up what was lost in it
            known.set()
            took = wait_for(lambda: not side.reach.away, "never came back")
            print(f"back after {took:.3f} s")
            assert caplog.text.count("limits are counted in this process alone") == 1
            wait_for(lambda: "the storage of the limits is back" in caplog.text, "not logged")
            assert caplog.text.count("the storage of the limits is back") == 1
            with server.client() as direct:
                assert direct.hget("{app}:slots:held:a", digest("user", "alice")) == "2"
                assert direct.hget("{app}:slots:held:a", digest("user", "bob")) == "2"
                assert rates.hit("polls", "carol") is None
                assert direct.keys("{app}:limits*"), "it is counted there again"
            assert tickets.redeem(tickets.issue(Identity("alice"), ())) is not None
        finally:
            known.set()
            made.close()
            proxy.close()


def test_r75_many_answers_that_are_slow_are_not_waited_for_each(
    made: Made, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """One request has one patience. A storage that answers, however slowly, is not away."""
    proxy = Proxy(server.port)
    try:
        side = Side(made, proxy.url)
        assert side.rates.hit("polls", "alice") is None
        side.request("alice")  # the scripts are known there from now on
        proxy.delay = 0.2
        patience = Patience()
        for user in ("bob", "carol", "dave", "eve", "fay"):
            side.rates.hit("polls", user, patience=patience)
        assert patience.left == 0
        with server.client() as direct:
            assert len(direct.keys("{app}:limits*")) < 7, "the rest is counted here"
        proxy.delay = 0
        assert not side.reach.away
        assert "counted in this process alone" not in caplog.text
    finally:
        made.close()
        proxy.close()


def test_r75_nobody_waits_for_a_first_look_that_does_not_end(made: Made) -> None:
    """The name of the storage hangs as the process starts: one waits, and nobody else."""
    hang = threading.Event()
    reach = Reach(lambda: hang.wait(DEADLINE))
    patiences = [Patience(0.1) for _ in range(5)]
    for patience in patiences:
        with pytest.raises(Away):
            reach.ask(lambda asked: asked, "x", patience)
    assert [patience.left for patience in patiences] == [0, *[0.1] * 4]
    hang.set()
    wait_for(lambda: not reach.away, "never came back")
    assert reach.ask(lambda asked: asked, "x", Patience()) == "x"
    reach.stop()


def test_a_circuit_lets_one_pay() -> None:
    """Nobody asks while it is open; after the return everybody does. At the end nothing looks."""
    broken = [True]
    asked: list[str] = []

    def call(what: Sequence[str]) -> Sequence[str]:
        asked.extend(what)
        if broken[0]:
            raise OSError("away")
        return what

    reach = Reach(lambda: not broken[0] or not asked)
    for question in "abc":
        with pytest.raises(Away):
            reach.ask(call, question, Patience())
    assert asked == ["a"]
    broken[0] = False
    wait_for(lambda: not reach.away, "never came back")
    assert reach.ask(call, "d", Patience()) == "d"
    reach.stop()
    with pytest.raises(Away):
        reach.ask(call, "e", Patience())
    wait_for(lambda: gone("hybrid-limits"), "a thread stays")


def test_what_the_limits_have_waited_for_no_emit_waits_for_again(server: RedisServer) -> None:
    """And the other way round: a process finds out once that its Redis does not answer."""
    settings = Settings(url=server.url, namespace="once")
    one, other = (Instance(settings, lambda *_: (None, ()), secret="s") for _ in range(2))
    try:
        for instance in (one, other):
            instance.start()
            assert instance.reach is not None
            assert instance.bus.state == "ok"
            assert instance.rates.hit("polls", "alice") is None
        event = Event("e1", "tick", "1", 1, Audience())
        server.stop()
        assert one.rates.hit("polls", "alice") is None
        assert one.bus.state == "degraded"
        assert one.publish([event])[0].stored == "outbox"
        assert other.publish([event])[0].stored == "outbox"
        assert other.reach is not None
        assert other.reach.away
    finally:
        server.go_on()
        for instance in (one, other):
            instance.stop()


def test_who_reads_the_log_may_emit(server: RedisServer) -> None:
    """A handler that shows log lines on a dashboard: nothing is logged while a lock is held."""
    instance = Instance(Settings(url=server.url, namespace="told"), lambda *_: (None, ()))
    told: list[str] = []

    class Emits(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            event = Event(f"line-{len(told)}", "line", "1", 1, Audience())
            emitting = threading.Thread(target=instance.publish, args=([event],), daemon=True)
            emitting.start()
            emitting.join(DEADLINE)
            told.append("stuck" if emitting.is_alive() else record.getMessage()[:19])

    instance.start()
    handler = Emits()
    logging.getLogger("hybrid").addHandler(handler)
    try:
        server.kill()
        wait_for(lambda: instance.bus.state == "degraded", "the bus never notices")
        wait_for(lambda: len(told) == 2, f"told: {told}")
        server.start()
        wait_for(lambda: len(told) == 5, f"told: {told}")
        assert sorted(told) == [
            "Redis is back after",
            "Redis is out of rea",
            "limits are counted ",
            "the log in Redis is",
            "the storage of the ",
        ]
    finally:
        logging.getLogger("hybrid").removeHandler(handler)
        instance.stop()


def test_a_storage_that_refuses_is_there(caplog: pytest.LogCaptureFixture) -> None:
    """For want of a right, or of memory: one line, not two a request, and other calls go on."""
    reach = Reach(lambda: True)
    refusing = [True]

    def count(asked: Sequence[str]) -> Sequence[str]:
        if refusing[0]:
            raise redis.exceptions.NoPermissionError("NOPERM")
        return asked

    def take(asked: Sequence[str]) -> Sequence[str]:
        return asked

    for _ in range(3):
        with pytest.raises(Away):
            reach.ask(count, "a", Patience(DEADLINE))
        assert reach.ask(take, "b", Patience(DEADLINE)) == "b"
    refusing[0] = False
    assert reach.ask(count, "a", Patience(DEADLINE)) == "a"
    reach.stop()
    lines = [record.getMessage()[:20] for record in caplog.records]
    assert lines == ["limits are counted i", "the storage of the l"]


def test_what_is_left_of_a_patience_is_no_silence() -> None:
    """Who has hardly waited cannot tell; who has waited in vain does, and not for itself alone."""
    reach = Reach(lambda: True)
    heard: list[Exception] = []
    reach.on_silence = heard.append
    hang = threading.Event()

    def call(asked: Sequence[str]) -> Sequence[str]:
        hang.wait(DEADLINE)
        return asked

    assert reach.ask(lambda asked: asked, "x", Patience(DEADLINE)) == "x"
    with pytest.raises(Away):
        reach.ask(call, "a", Patience(0.02))
    assert not reach.away
    assert not heard
    with pytest.raises(Away):
        reach.ask(call, "b", Patience())
    assert reach.away
    assert [type(error) for error in heard] == [TimeoutError]
    hang.set()
    reach.stop()


def test_what_was_answered_counts_though_the_same_journey_failed() -> None:
    """A ticket that was used up is not refused because a limit could not be counted after it."""
    reach = Reach(lambda: True)
    begun, go = threading.Event(), threading.Event()

    def first(asked: Sequence[str]) -> Sequence[str]:
        begun.set()
        go.wait(DEADLINE)
        return asked

    def fails(asked: Sequence[str]) -> Sequence[str]:
        raise OSError("away")

    found: dict[str, object] = {}

    def ask(call: Callable[[Sequence[str]], Sequence[str]], what: str) -> None:
        try:
            found[what] = reach.ask(call, what, Patience(DEADLINE))
        except Away:
            found[what] = Away

    def ticket(asked: Sequence[str]) -> Sequence[str]:
        return asked

    threads = []
    for place, (call, what) in enumerate([(first, "first"), (ticket, "used"), (fails, "limit")]):
        threads.append(threading.Thread(target=ask, args=(call, what)))
        threads[-1].start()
        if place:
            wait_for(lambda place=place: reach._couriers[0].waiting == place, "it is not asked")  # type: ignore[misc]
        else:
            assert begun.wait(DEADLINE)
    go.set()
    for thread in threads:
        thread.join(DEADLINE)
    assert found == {"first": "first", "used": "used", "limit": Away}
    reach.stop()


def test_a_crowd_shares_its_calls(
    made: Made, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Who comes while Redis is being asked shares the next call, and is judged in turn.

    Sixty at once are four calls, not sixty one after the other; all limits are exact.
    """
    rates = made.rates("20 per minute")
    mine, theirs = (made.slots(me, per_user=20, per_address=90) for me in "ab")
    for _ in range(5):
        theirs.take("alice", "1.1.1.1")
    answers: Counter[str] = Counter()

    def visit() -> None:
        answers["counted" if rates.hit("polls", "alice", patience=slow()) is None else "much"] += 1

    def connect() -> None:
        try:
            mine.take("alice", "1.1.1.1", slow())
            answers["taken"] += 1
        except TooManyOfOne:
            answers["too many"] += 1

    def slow() -> Patience:
        return Patience(DEADLINE)

    def calls() -> int:
        with server.client() as direct:
            stats = direct.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in CALLS)

    rates.hit("polls", "bob")  # the scripts are known, the connections made
    mine.take("bob", "2.2.2.2")
    before = calls()
    for visitor, reach in ((visit, rates._reach), (connect, mine._reach)):
        assert reach is not None
        busy, go_on = threading.Event(), threading.Event()

        def hold(busy: threading.Event = busy, go_on: threading.Event = go_on) -> None:
            busy.set()
            go_on.wait(DEADLINE)

        held = threading.Thread(target=courier_runs, args=(hold, reach))
        held.start()
        assert busy.wait(DEADLINE)
        threads = [threading.Thread(target=visitor) for _ in range(60)]
        for thread in threads:
            thread.start()
        (courier,) = reach._couriers
        wait_for(lambda courier=courier: courier.waiting == 60, "somebody does not wait")  # type: ignore[misc]
        go_on.set()
        for thread in (held, *threads):
            thread.join(DEADLINE)
    assert answers == {"counted": 20, "much": 40, "taken": 15, "too many": 45}
    assert calls() - before <= 4
    assert "in this process alone" not in caplog.text
    with server.client() as direct:
        assert direct.hget("{app}:slots:held:a", digest("user", "alice")) == "15"


CALLS = ("eval", "evalsha")


def test_a_place_that_nobody_waits_for_any_more_is_free(made: Made, server: RedisServer) -> None:
    """Redis answers after the request has gone: on with a place of its own, or ended."""
    slots = made.slots("a", per_user=9, per_address=None)
    slots.take("alice", "1.1.1.1")
    reach = slots._reach
    assert reach is not None
    original, late = slots._call, threading.Event()

    def call(arguments: list[str | int]) -> tuple[list[int], int]:
        answer = original(arguments)
        late.wait(DEADLINE)
        return answer

    slots._call = call  # type: ignore[method-assign] # an answer on a slow line
    slots.take("alice", "1.1.1.1", Patience(0.05))

    class Ended(BaseException):
        pass

    class Impatient(Patience):
        def spend(self, wait: Callable[[float], bool]) -> bool:
            raise Ended

    with pytest.raises(Ended):
        slots.take("alice", "1.1.1.1", Impatient())
    late.set()
    slots._call = original  # type: ignore[method-assign]
    wait_for(lambda: not reach._couriers[0].busy and not reach.away, "it never ends")
    assert slots.held == {digest("user", "alice"): 2}
    courier_runs(slots._flush, reach)
    with server.client() as direct:
        assert direct.hgetall("{app}:slots:held:a") == {digest("user", "alice"): "2"}


def test_the_limiters_own_storage_is_not_waited_for_either(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it is and whatever its timeouts are; each instance counts for itself meanwhile."""
    with redis_server(tmp_path) as server:
        storage = RedisStorage(server.url)
        strategy = FixedWindowRateLimiter(storage)
        rates = Rates({"polls": "3 per minute"})
        hit = partial(rates.hit, "polls", strategy=strategy)
        assert hit("alice") is None
        server.stop()
        began = time.monotonic()
        answers = [hit("bob", patience=Patience()) is None for _ in range(6)]
        assert time.monotonic() - began < 2, "each of them waited; the machine may be busy"
        assert answers == [True] * 3 + [False] * 3
        server.go_on()
        (reach,) = rates._reaches.values()
        wait_for(lambda: not reach.away, "never came back")
        assert caplog.text.count("limits are counted in this process alone") == 1
        assert [hit("alice") is None for _ in range(3)] == [True, True, False]
        rates.stop()
        storage.storage.connection_pool.disconnect()


def test_a_call_that_hangs_holds_up_no_other_of_the_limiters_storage() -> None:
    """Each of its calls is one question, and several are under way at once."""
    hang, hanging = threading.Event(), threading.Barrier(3)

    def each(asked: Sequence[str]) -> Sequence[str]:
        if asked == ["slow"]:
            hanging.wait(DEADLINE)
            hang.wait(DEADLINE)
        return asked

    reach = Reach(lambda: True, hands=4, cargo=1)
    threads = [
        threading.Thread(target=reach.ask, args=(each, "slow", Patience(DEADLINE)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    hanging.wait(DEADLINE)
    assert [reach.ask(each, str(n), Patience(DEADLINE)) for n in range(9)] == [*"012345678"]
    hang.set()
    for thread in threads:
        thread.join(DEADLINE)
    reach.stop()


def test_a_pool_that_is_in_use_is_no_storage_that_is_away(caplog: pytest.LogCaptureFixture) -> None:
    """One is counted in this process for once, and nobody else is: limits do not flap."""
    reach = Reach(lambda: True)

    def crowded(errors: Sequence[Exception]) -> Sequence[None]:
        raise errors[0]

    for error in (
        redis.ConnectionError("No connection available."),
        type("MaxConnectionsError", (redis.ConnectionError,), {})("Too many connections"),
    ):
        with pytest.raises(Away):
            reach.ask(crowded, error, Patience())
        assert not reach.away
    assert not caplog.records
    reach.stop()


# -- how many at once


def test_r78_the_caps_over_http(make_site: MakeSite) -> None:
    """429 for a user's and an address's, with Retry-After; a closed stream leaves its place."""
    site = make_site(MAX_CONNECTIONS_PER_USER=2, MAX_CONNECTIONS_PER_IP=3)
    streams = [site.stream(headers=ALICE) for _ in range(2)]
    as_problem(site.get("/sse", headers=ALICE), 429)
    streams.append(site.stream(headers={"X-User": "bob"}))
    as_problem(site.get("/sse", headers={"X-User": "carol"}), 429)
    streams.append(Reading(site.get("/sse", **at("9.9.9.9", **{"X-User": "dave"}))))
    # a poll is answered all the same, it only does not wait
    assert site.poll(f"?since={site.realtime.cursor()}&wait=20", headers=ALICE)["events"] == []
    streams.pop(0).response.close()
    streams.append(site.stream(headers=ALICE))
    assert site.get("/monitor").status_code in (200, 403)
    assert instance(site).slots.refused == 3
    for stream in streams:
        stream.response.close()
    assert instance(site).slots.held == {}


def test_r15_a_slot_is_given_back_however_a_stream_ends(make_site: MakeSite) -> None:
    """HEAD, a body that is never started, an after_request that fails, a full instance."""
    site = make_site(MAX_CONNECTIONS_PER_USER=1, MAX_CONNECTIONS=1)
    for _ in range(3):
        assert site.client.head(PREFIX + "/sse", headers=ALICE).status_code == 200
        body, _ = site.raw("/sse", headers=ALICE)
        body.close()
        assert instance(site).slots.held == {}
    with site.stream(headers=ALICE):
        as_problem(site.get("/sse", headers={"X-User": "bob"}), 503)
    assert instance(site).slots.held == {}


def test_r78_the_caps_are_exact_over_random_lives(
    made: Made, server: RedisServer, seed: int
) -> None:
    """1000 opens, closes and deaths on three instances: refused exactly at the bound."""
    dice = random.Random(seed)
    serial = 0

    def instance() -> Slots:
        nonlocal serial
        serial += 1
        return made.slots(f"i{serial}", per_user=3, per_address=5, lease=3600)

    instances = [instance() for _ in range(3)]
    held: list[tuple[Slots, str, str]] = []
    refused = 0
    with server.client() as direct:
        for _ in range(1000):
            act = dice.random()
            if act < 0.6:
                user, address = dice.choice("abcd"), dice.choice(["1.1.1.1", "2.2.2.2"])
                mine = dice.choice(instances)
                full = (
                    sum(who == user for _, who, _ in held) >= 3
                    or sum(where == address for _, _, where in held) >= 5
                )
                try:
                    mine.take(user, address)
                except TooManyOfOne:
                    assert full
                    refused += 1
                else:
                    assert not full
                    held.append((mine, user, address))
            elif act < 0.98 and held:
                mine, user, address = held.pop(dice.randrange(len(held)))
                mine.give_back(user, address)
            elif act >= 0.98:
                dead = dice.randrange(3)
                held = [each for each in held if each[0] is not instances[dead]]
                # its lease is over: what was killed does not say goodbye
                direct.zadd("{app}:slots:instances", {instances[dead]._me: 1})
                instances[dead] = instance()
            for each in instances:
                courier_runs(each._flush, each._reach)  # type: ignore[arg-type] # it has one
    assert refused > 50


def test_r78_nothing_is_lost_among_threads(made: Made, server: RedisServer) -> None:
    """Two instances with many threads: never over the bound, and in the end nothing is held."""
    instances = [made.slots(name, per_user=10, per_address=None) for name in "ab"]
    most = 0
    now = 0
    lock = threading.Lock()

    def life(slots: Slots, seed: int) -> None:
        nonlocal now, most
        dice = random.Random(seed)
        for _ in range(60):
            try:
                slots.take("alice", "1.1.1.1")
            except TooManyOfOne:
                continue
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(dice.random() / 1000)
            with lock:
                now -= 1
            slots.give_back("alice", "1.1.1.1")

    for slots in instances:
        slots.start()
    threads = [threading.Thread(target=life, args=(instances[n % 2], n)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert 0 < most <= 10
    with server.client() as direct:
        wait_for(lambda: not direct.keys("{app}:slots:held:*"), "something stays held")
        for slots in instances:
            slots.stop()
        wait_for(lambda: not direct.exists("{app}:slots:instances"), "they did not leave")
    wait_for(lambda: gone("hybrid-slots"), "a thread stays")


def test_the_cost_at_rest_does_not_grow_with_the_clients(made: Made, server: RedisServer) -> None:
    """A renewal is one call for one stream or for ten thousand; what Redis lost is rewritten."""
    slots = made.slots("a", per_user=None, per_address=20_000, lease=60)
    reach = slots._reach
    assert reach is not None
    for number in range(2000):
        slots.take(None, f"10.0.{number // 256}.{number % 256}")
    courier_runs(slots._flush, reach)

    def calls() -> int:
        with server.client() as direct:
            return int(direct.info("stats")["total_commands_processed"])

    before = calls()
    courier_runs(slots._renew, reach)
    few = calls() - before
    assert few < 15, f"{few} commands for one renewal"
    with server.client() as direct:
        assert direct.hlen("{app}:slots:held:a") == 2000
        direct.flushall()
        courier_runs(slots._renew, reach)
        assert direct.hlen("{app}:slots:held:a") == 2000
        assert 0 < direct.pttl("{app}:slots:held:a") <= 60_000


def test_two_workers_hold_a_user_to_one_cap(tmp_path: Path, server: RedisServer) -> None:
    """Over real workers: the streams of all count, and those of a killed one soon do not."""
    with server.client() as direct:
        direct.flushall()
    with gunicorn(tmp_path / "log", "-w", "2", url=server.url, max_connections_per_user=4) as web:
        streams = [web.stream("user=alice") for _ in range(4)]
        for stream in streams:
            stream.hello()
        for _ in range(4):
            with web.stream("user=alice") as refused:
                assert refused.read_head() == 429
                assert int(refused.headers["retry-after"]) > 0
        with web.stream("user=bob") as other:
            other.hello()
        streams.pop().close()

        def room() -> bool:
            # while workers are started there is nobody to answer
            with contextlib.suppress(OSError, AssertionError), web.stream("user=alice") as stream:
                return stream.read_head() == 200
            return False

        wait_for(room, "the place of a closed stream stays taken")
        full = web.stream("user=alice")
        while full.read_head() != 200:
            full = web.stream("user=alice")
        for worker in psutil.Process(web.process.pid).children():
            os.kill(worker.pid, signal.SIGKILL)
        # All four streams are dead. Their places are free with the workers' lease, and not
        # before: nobody could know.
        took = wait_for(room, "the places of killed workers stay taken")
        print(f"free {took:.1f} s after the kill")


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
def test_r75_no_request_waits_a_second_for_a_frozen_redis(
    tmp_path: Path, server: RedisServer, worker: str
) -> None:
    """Over a real worker: twenty requests of each kind that count, emit and take a place.

    One of them all waits; what is counted in memory meanwhile has its bound; and when Redis is
    back, so are its counters, for who was refused a moment before as well.
    """
    with server.client() as direct:
        direct.flushall()
    with gunicorn(
        tmp_path / "log",
        *(("--threads", "8") if worker == "gthread" else ()),
        worker=worker,
        url=server.url,
        max_connections=50,
        max_connections_per_user=5,
        limit_polls="8 per minute",
        limit_user_events="100 per minute",
        limit_ip_connections="100 per minute",
    ) as web:

        def polls(user: str, count: int) -> list[int]:
            path = f"{PREFIX}/polling?user={user}"
            return [web.call("GET", path)[0] for _ in range(count)]

        assert polls("alice", 1) == [200]
        server.stop()
        try:
            waits = []
            for number in range(20):
                began = time.monotonic()
                status, _ = web.call("POST", f"{PREFIX}/test?user=bob", {"users": ["bob"]})
                assert status == (202 if number else status)
                assert polls(f"u{number}", 1) == [200]
                if worker == "gevent":  # a thread would be held by each until its next heartbeat
                    with web.stream(f"user=u{number}") as stream:
                        assert stream.read_head() == 200
                waits.append(time.monotonic() - began)
            print(f"{worker}: waited {waits[0]:.2f} s, then {sum(waits[1:]):.2f} s for 19 rounds")
            assert sum(waits) < 4, "several of them waited; the machine may be busy"
            assert polls("carol", 10) == [200] * 8 + [429] * 2
        finally:
            server.go_on()
        users = itertools.count()
        with server.client() as direct:
            before = len(direct.keys("*limits/*polls*"))

            def counted_there() -> bool:
                assert polls(f"d{next(users)}", 1) == [200]
                return len(direct.keys("*limits/*polls*")) > before

            web.until(counted_there, "limits never came back")
        assert polls("carol", 1) == [200], "its counter in Redis has none yet"
