"""Clocks that differ between hosts, and clocks that are set: nobody is refused for that."""

import json
import time
from collections.abc import Callable

import jwt
import pytest
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from hybrid import Identity
from hybrid.auth import SKEW_SECONDS, TICKET_SECONDS, Tickets, bearer_identity
from hybrid.limits import Rates
from sites import MakeSite, Site, as_problem

KEY = "a key of thirty-two bytes or more"
SetClock = Callable[[float], None]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """Sets the time of day so many seconds off; the monotonic clock goes on as it did."""
    real = time.time
    return lambda off: monkeypatch.setattr("time.time", lambda: real() + off)


@pytest.mark.parametrize(
    ("off", "good"),
    [(0.5, True), (1, True), (4.5, True), (6, False), (-1, True), (-25, True), (-31, False)],
)
def test_a_ticket_may_come_from_a_clock_that_is_ahead(
    site: Site, set_clock: SetClock, off: float, good: bool
) -> None:
    """Five seconds, as elsewhere; behind, it is so much older, and thirty seconds are its life."""
    assert (SKEW_SECONDS, TICKET_SECONDS) == (5, 30)
    set_clock(off)
    ticket = site.realtime.ticket(Identity("alice"))
    set_clock(0)
    response = site.get(f"/sse?ticket={ticket}")
    if good:
        assert response.status_code == 200
        assert [c.identity.user for c in site.hub.connections.values()] == ["alice"]
        response.close()
        as_problem(site.get(f"/sse?ticket={ticket}"), 401)  # and once, for all its life
    else:
        as_problem(response, 401)


@pytest.mark.parametrize(("clock", "shut_out"), [("another", True), (None, False)])
def test_a_clock_that_is_ahead_lets_no_ticket_outlive_a_revocation(
    site: Site, set_clock: SetClock, clock: str | None, shut_out: bool
) -> None:
    """One from another host may be older than it says, so it counts as five seconds older."""
    instance = site.app.extensions["hybrid"].instance()
    if clock is None:
        site.realtime.revoke(user="alice")
        after = time.time() + 0.003  # a millisecond is what times of day are told by
        while time.time() < after:
            pass
        ticket = site.realtime.ticket(Identity("alice"))
    else:
        theirs = Tickets("for tests", clock=clock)
        set_clock(3)
        ticket = theirs.issue(Identity("alice"), [])
        set_clock(0)
        site.realtime.revoke(user="alice")
    with site.stream(f"?ticket={ticket}") as stream:
        stream.hello()
        ended = [c.leaving for c in instance.hub.connections.values() if c.farewell]
    assert ended == (["revoked"] if shut_out else [])


@pytest.mark.parametrize("off", [-3600, 3600])
def test_a_stream_on_a_ticket_ends_by_a_clock_that_nobody_sets(
    site: Site, set_clock: SetClock, monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    """Set back an hour it would have lived an hour longer, and set forward none at all."""
    state = site.app.extensions["hybrid"]
    recheck = state.instance().recheck
    with site.stream(f"?ticket={site.realtime.ticket(Identity('alice'))}") as stream:
        stream.hello()
        set_clock(off)
        recheck.step()
        assert not [c for c in site.hub.connections.values() if c.farewell]
        monkeypatch.setattr(state, "clock", lambda: time.monotonic() + 901)
        recheck.step()
        assert json.loads(stream.upto("hybrid.bye")[-1].data)["reason"] == "revoked"


@pytest.mark.parametrize(
    ("claims", "good"),
    [
        ({"iat": 2}, True),
        ({"nbf": 4}, True),
        ({"iat": 60}, False),
        ({"nbf": 60}, False),
        ({"exp": -2}, False),
    ],
)
def test_a_token_may_come_from_a_clock_that_is_ahead(
    site: Site, claims: dict[str, int], good: bool
) -> None:
    """Its beginning may; its end is its end."""
    site.realtime.identify(bearer_identity(KEY))
    now = int(time.time())
    told = {"sub": "alice", "exp": now + 600} | {name: now + off for name, off in claims.items()}
    headers = {"Authorization": f"Bearer {jwt.encode(told, KEY, 'HS256')}"}
    assert site.get("/polling", headers=headers).status_code == (200 if good else 401)


def test_a_clock_that_is_set_back_lengthens_no_refusal(
    make_site: MakeSite, set_clock: SetClock
) -> None:
    """A window has its minute, whatever the time of day says meanwhile."""
    site = make_site(LIMIT_POLLS="1 per minute")
    rates = site.app.extensions["hybrid"].instance().rates
    later = 0.0
    rates._clock = rates._memory._clock = lambda: time.monotonic() + later
    assert [site.get("/polling").status_code for _ in range(2)] == [200, 429]
    set_clock(-3600)
    refused = site.get("/polling")
    assert refused.status_code == 429
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    later = 61.0
    assert site.get("/polling").status_code == 200


def test_monotonic_time_is_what_limits_are_counted_by() -> None:
    """Not the time of day, which an operator or NTP may set."""
    rates = Rates({"polls": "1 per minute"})
    assert rates._clock is time.monotonic
    assert rates._memory._clock is time.monotonic


def test_a_wait_is_never_longer_than_its_window(set_clock: SetClock) -> None:
    """The storage of an application's Limiter tells a time of day, maybe by another clock."""
    rates = Rates({"polls": "1 per minute"})
    storage = MemoryStorage()
    strategy = FixedWindowRateLimiter(storage)
    assert rates.hit("polls", "user:alice", strategy=strategy) is None
    assert rates.hit("polls", "user:alice", strategy=strategy) is not None
    set_clock(-3600)
    assert rates.hit("polls", "user:alice", strategy=strategy) == 60
    storage.timer.cancel()
    storage.timer.join()
