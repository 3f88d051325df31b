"""Limits come before the application is asked, and what is counted is never taken for another."""

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Response
from werkzeug.exceptions import abort

from hybrid import Identity
from hybrid.audience import Audience
from hybrid.distinct import Distinct
from hybrid.events import Event
from hybrid.limits import MAX_WINDOWS, Windows
from hybrid.monitor.errors import Errors
from hybrid.wire import to_json
from servers import PREFIX
from sites import MakeSite, Site, as_problem

ASKED = [
    ("HEAD", "/sse?topic=a&topic=b"),
    ("GET", "/polling"),
    ("HEAD", "/polling"),
    ("POST", "/test"),
    ("POST", "/report"),
    ("GET", "/monitor"),
    ("HEAD", "/monitor"),
    ("GET", "/monitor/history"),
    ("GET", "/monitor/connections"),
    ("GET", "/monitor/event"),
    ("POST", "/monitor/disconnect"),
    ("POST", "/monitor/snooze"),
    ("HEAD", "/monitor/sse"),
    ("GET", "/monitor/polling"),
    ("GET", "/metrics"),
]
"""Every endpoint that asks a hook of the application."""


class Hooks:
    """Hooks of an application that count how often they are asked."""

    def __init__(self, site: Site, identity: Identity | None, *, open: bool) -> None:
        self.asked: Counter[str] = Counter()
        self._open = open

        @site.realtime.identify
        def identify() -> Identity | None:
            self.asked["identify"] += 1
            return identity

        for hook in ("authorize", "can_test", "can_monitor", "can_operate"):
            getattr(site.realtime, hook)(self._permit)

    def _permit(self, *_: Any) -> bool:
        self.asked["others"] += 1
        return self._open


def statuses(site: Site, method: str, path: str, times: int, **options: Any) -> list[int]:
    answers = []
    for _ in range(times):
        if method == "POST":
            options["json"] = {}
        with site.client.open(PREFIX + path, method=method, **options) as response:
            answers.append(response.status_code)
    return answers


@pytest.mark.parametrize(("method", "path"), ASKED)
def test_who_has_no_identity_is_counted_before_the_hooks_are_asked(
    make_site: MakeSite, method: str, path: str
) -> None:
    """A 401 is not free: beyond the number of polls the address is refused unasked."""
    site = make_site(LIMIT_POLLS="3 per minute")
    hooks = Hooks(site, None, open=True)
    assert statuses(site, method, path, 7) == [401] * 3 + [429] * 4
    assert hooks.asked == {"identify": 4}
    # another address is none the worse
    other = {"environ_overrides": {"REMOTE_ADDR": "10.9.9.9"}}
    assert statuses(site, method, path, 1, **other) == [401]


@pytest.mark.parametrize(("method", "path"), ASKED)
def test_requests_of_an_address_are_counted_before_the_hooks_are_asked(
    make_site: MakeSite, method: str, path: str
) -> None:
    """Whatever they would have answered; HEAD as well, which used to be free on a stream."""
    site = make_site(LIMIT_IP_REQUESTS="3 per minute")
    hooks = Hooks(site, Identity("alice"), open=True)
    answers = statuses(site, method, path, 8)
    assert 429 not in answers[:3]
    assert answers[3:] == [429] * 5
    assert hooks.asked["identify"] == 3
    if method != "HEAD":
        refused = site.client.open(PREFIX + path, method=method)
        assert 0 < int(refused.headers["Retry-After"]) <= 60
        as_problem(refused, 429)


def test_a_head_of_a_stream_counts_as_a_stream(make_site: MakeSite) -> None:
    """It takes no slot, and asks as much of the application as GET does."""
    site = make_site(LIMIT_IP_CONNECTIONS="4 per minute", LIMIT_USER_CONNECTIONS="2 per minute")
    hooks = Hooks(site, Identity("alice"), open=True)
    query = "&".join(f"topic=t{n}" for n in range(40))
    assert statuses(site, "HEAD", f"/sse?{query}", 6) == [200] * 2 + [429] * 4
    assert hooks.asked == {"identify": 4, "others": 4 * 40}
    assert not site.hub.opened


def test_topics_cannot_be_tried_without_end(make_site: MakeSite) -> None:
    """A refused topic counts for the address, as does a hook that aborts."""
    site = make_site(LIMIT_POLLS="5 per minute")
    hooks = Hooks(site, Identity("alice"), open=False)
    site.realtime.identify(lambda: Identity(None))
    for refuse in (None, lambda *_: abort(403)):
        if refuse is not None:
            site.realtime.authorize(refuse)
        answers = statuses(site, "HEAD", "/sse?topic=secret", 4)
    assert answers == [403, 429, 429, 429]
    assert hooks.asked["others"] == 4


def test_honest_users_of_one_address_keep_what_is_promised_to_each(make_site: MakeSite) -> None:
    """Three hundred polls a minute each, at whatever address, with the defaults of the contract."""
    site = make_site(LIMIT_POLLS="300 per minute", LIMIT_IP_REQUESTS="30000 per minute")
    for user in ("alice", "bob", "carol"):
        headers = {"X-User": user}
        assert statuses(site, "GET", "/polling", 300, headers=headers) == [200] * 300
    assert statuses(site, "GET", "/polling", 1, headers={"X-User": "alice"}) == [429]


def test_what_another_site_asks_for_counts_for_nobody(make_site: MakeSite) -> None:
    """It is refused before a hook is asked: no page shuts the address of its reader out."""
    site = make_site(LIMIT_POLLS="2 per minute", LIMIT_IP_REQUESTS="2 per minute")
    hooks = Hooks(site, Identity("alice"), open=True)
    for method, path in ASKED:
        answers = statuses(site, method, path, 4, headers={"Sec-Fetch-Site": "cross-site"})
        assert answers == [403] * 4
    assert not hooks.asked
    assert statuses(site, "GET", "/polling", 2) == [200] * 2


def test_reports_are_counted_before_it_is_asked_who_reports(site: Site) -> None:
    """Ten a minute of an address; the hook is not asked about more."""
    hooks = Hooks(site, Identity("alice"), open=True)
    report = {"json": {"message": "broken"}}
    answers = [site.client.post(f"{PREFIX}/report", **report).status_code for _ in range(15)]
    assert answers == [202] * 10 + [429] * 5
    assert hooks.asked["identify"] == 10


@pytest.mark.parametrize("address", ["9.9.9.9", "2001:db8:1:2::/64", "local"])
def test_a_user_who_is_named_like_an_address_is_another_one(
    make_site: MakeSite, address: str
) -> None:
    """Their polls are not those of the visitors there."""
    site = make_site(LIMIT_POLLS="3 per minute", MAX_CONNECTIONS_PER_USER=1)
    direct = "" if address == "local" else address.replace("::/64", "::1")
    named = {"headers": {"X-User": address}, "environ_overrides": {"REMOTE_ADDR": "10.0.0.1"}}
    assert statuses(site, "GET", "/polling", 4, **named) == [200] * 3 + [429]
    visitor = {"environ_overrides": {"REMOTE_ADDR": direct}}
    assert statuses(site, "GET", "/polling", 4, **visitor) == [200] * 3 + [429]


def test_an_end_that_names_nobody_is_not_that_of_the_user_named_none(site: Site) -> None:
    """What is in Redis may be of another version: a user is a text."""
    ends: list[Any] = [{}, {"user": None}, {"user": 17}, [], "None"]
    for data in ends:
        with site.stream(headers={"X-User": str(None)}) as stream:
            stream.hello()
            site.hub.control(
                Event("x", "hybrid.revoke", to_json(data), site.hub.wall(), Audience())
            )
            (connection,) = site.hub.connections.values()
            assert connection.farewell is None
    assert site.hub.shut_out.reason("None", 0.0) is None


def test_no_text_of_one_key_is_taken_for_the_next() -> None:
    """Clients that poll and errors that browsers report are told apart by all of their texts."""
    seen = Distinct()
    for name in (("a", "b\0c"), ("a\0b", "c"), ("", "a\0b\0c"), ("a", "b", "c")):
        seen.add(0.0, *name)
    assert seen.bits(0.0).bit_count() == 4
    errors = Errors(lambda: 0)
    for kind, place in (("a", "b\0c"), ("a\0b", "c")):
        errors.note("browser", "error", kind, "message", place)
    assert len(errors.groups()) == 2


def test_a_refusal_that_is_raised_again_keeps_nothing() -> None:
    """An exception that is made once, at import, holds on to the tracebacks of all its raises."""
    ours = [module for name, module in sys.modules.items() if name.startswith("hybrid.")]
    assert len(ours) > 30
    kept = [value for module in ours for value in vars(module).values()]
    assert not [value for value in kept if isinstance(value, Exception)]


def test_a_response_that_a_hook_aborts_with_counts_as_a_refusal(make_site: MakeSite) -> None:
    """Its status stands in the response alone."""
    site = make_site(LIMIT_POLLS="3 per minute")
    asked = []

    def identify() -> Identity:
        asked.append(1)
        abort(Response("log in", 401))

    site.realtime.identify(identify)
    codes = [site.get("/polling").status_code for _ in range(6)]
    assert codes[0] == 401
    assert codes[-1] == 429
    assert len(asked) < 6


def test_counters_in_memory_hold_when_threads_share_them() -> None:
    """Full of what is over and of what is not: the latter stays, and nothing raises."""
    now = 0.0
    windows = Windows(lambda: now)
    for number in range(MAX_WINDOWS - 1000):
        windows.hit(("over", number), 1)
    now = 2.0
    for number in range(1000):
        windows.hit(("live", number), 60)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: windows.hit(("new", number), 60), range(5000)))
    assert all(windows.hit(("live", number), 60)[0] == 2 for number in range(1000))
