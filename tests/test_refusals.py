"""What an operator sees of refusals: all of them, and why."""

import re
from typing import Any

import pytest
import redis

from hybrid.bus.diagnosis import diagnose
from hybrid.limits import Seldom
from hybrid.monitor.terminal import table
from servers import PREFIX
from sites import MakeSite, Site, as_problem

ALICE = {"headers": {"X-User": "alice"}}


def close(response: Any) -> int:
    response.close()
    return int(response.status_code)


def look(site: Site) -> Any:
    picture = site.get("/monitor").get_json()
    assert picture["connections"]["refused"] == sum(picture["connections"]["refused_by"].values())
    return picture


def told(site: Site) -> dict[str, int]:
    refused = look(site)["connections"]["refused_by"]
    return {reason: times for reason, times in refused.items() if times}


def test_refusals_are_counted_by_reason(make_site: MakeSite) -> None:
    """A 429 as well as a 503; the page used to say that there were none."""
    site = make_site(
        LIMIT_POLLS="2 per minute",
        LIMIT_USER_CONNECTIONS="3 per minute",
        MAX_CONNECTIONS_PER_USER=2,
        MAX_CONNECTIONS=3,
    )
    site.realtime.can_monitor(lambda _: True)
    assert told(site) == {}
    for _ in range(5):
        close(site.get("/polling", **ALICE))
    assert told(site) == {"polls": 3}
    streams = [site.get("/sse", **ALICE) for _ in range(4)]
    assert [stream.status_code for stream in streams] == [200, 200, 429, 429]
    assert told(site) == {"polls": 3, "streams": 1, "user_connections": 1}
    streams += [site.get("/sse", headers={"X-User": name}) for name in ("bob", "carol")]
    assert [stream.status_code for stream in streams[4:]] == [200, 503]
    site.hub.draining = True
    assert close(site.get("/sse", headers={"X-User": "dora"})) == 503
    site.hub.draining = False
    site.app.testing = False
    assert close(site.get("/sse", headers={"X-User": "dora"})) == 503
    assert told(site) == {
        "polls": 3,
        "streams": 1,
        "user_connections": 1,
        "full": 1,
        "draining": 1,
        "no_streaming": 1,
    }
    sampler = site.app.extensions["hybrid"].monitor().sampler
    sampler.sample(sampler.points[-1].at + 1 if sampler.points else 1)
    assert sum(point["refused"] for point in sampler.points) == 8
    for stream in streams:
        stream.close()


def test_metrics_and_terminal_say_why(make_site: MakeSite) -> None:
    """One series for each reason; the two most frequent in the terminal."""
    site = make_site(LIMIT_POLLS="2 per minute", MAX_CONNECTIONS=0)
    site.realtime.can_monitor(lambda _: True)
    for _ in range(5):
        close(site.get("/polling", **ALICE))
    close(site.get("/sse", **ALICE))
    text = site.get("/metrics").get_data(as_text=True)
    series = dict(re.findall(r'hybrid_connections_refused_total\{reason="(\w+)"\} (\S+)', text))
    assert series == {"polls": "3.0", "full": "1.0"}
    assert "4 refused (polls 3, full 1)" in table(look(site))


def test_a_thousand_addresses_do_not_fill_the_log(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """A line for each that reaches a limit, sixty in a minute; all are counted."""
    site = make_site(LIMIT_POLLS="1 per minute")
    rates = site.app.extensions["hybrid"].instance().rates
    for number in range(1000):
        for _ in range(2):
            rates.hit("polls", f"address:10.0.{number // 256}.{number % 256}")
    assert rates.refused["polls"] == 1000
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 60
    assert [line for line in lines if "only counted" in line] == lines[-1:]


def test_the_health_check_does_not_say_where_redis_is(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may ask it, also while messages do not arrive."""
    bus = site.app.extensions["hybrid"].instance().bus
    monkeypatch.setattr(bus, "deaf", True)
    error = redis.ConnectionError("connecting to redis.internal:6379")
    monkeypatch.setattr(bus, "trouble", str(diagnose(error)))
    monkeypatch.setattr(bus, "headline", diagnose(error).what)
    assert "internal" in bus.trouble
    detail = as_problem(site.get("/health/ready"), 503)["detail"]
    assert "internal" not in detail


def closed(site: Site, topic: str = "secret") -> str:
    answer = site.get("/sse", query_string={"topic": topic}, headers={"X-User": "alice"})
    return str(as_problem(answer, 403)["detail"])


def test_a_refused_topic_is_a_line_in_the_log_and_not_a_flood(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """With the topic, the user and the reason; the rest of a minute is counted."""
    site = make_site()
    site.realtime.authorize(lambda *_: False)
    instance = site.app.extensions["hybrid"].instance()
    now = 0.0
    instance.closed_topics = Seldom(lambda: now)
    for _ in range(50):
        assert closed(site) == "the topic 'secret' is not open to you"
    now = 60.0
    closed(site, "ev\u0456l")
    first, second = [record.getMessage() for record in caplog.records]
    assert first == "topic 'secret' refused to user 'alice': the authorize hook said no"
    assert second.isascii()
    assert second.endswith("said no (49 more since the last line like this one)")


@pytest.mark.parametrize("debug", [True, False])
def test_a_hook_that_is_missing_is_named(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture, debug: bool
) -> None:
    """In the log, and to who develops; a stranger is not told how the site is made."""
    site = make_site(identify=False)
    site.app.debug = debug
    said = closed(site)
    assert ("no @realtime.authorize hook is set" in said) is debug
    assert said.startswith("the topic 'secret' is not open to you")
    assert "no @realtime.authorize hook is set" in caplog.text
    site.realtime.authorize(lambda *_: False)
    assert closed(site) == "the topic 'secret' is not open to you"


def test_an_instance_of_an_older_version_does_not_tell_why(make_site: MakeSite) -> None:
    """While servers are updated one by one, its record has the number alone."""
    from hybrid.monitor.deployment import deployment
    from hybrid.monitor.records import Seen

    site = make_site(MAX_CONNECTIONS=0)
    close(site.get("/sse"))
    record = site.app.extensions["hybrid"].monitor().record()
    older = record | {"connections": dict(record["connections"])}
    del older["connections"]["refused_by"]
    picture = deployment([Seen(older, 0), Seen(record, 0)], record, [], [])
    assert picture["connections"]["refused"] == 2
    assert picture["connections"]["refused_by"] == {"full": 1}


@pytest.mark.parametrize("name", ["identify", "authorize", "can_monitor"])
def test_a_hook_that_raises_is_named(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """In the log with its function, for whom and at what; to the client what was not decided."""
    site = make_site()

    def broken(*_: Any) -> Any:
        raise LookupError("the database is away")

    getattr(site.realtime, name)(broken)
    path = "/monitor" if name == "can_monitor" else "/sse"
    answer = site.get(path, query_string={"topic": "room"}, headers={"X-User": "alice"})
    detail = as_problem(answer, 503)["detail"]
    (record,) = [each for each in caplog.records if "hook" in each.message]
    assert f"the {name} hook (test_refusals." in record.message
    assert ("for user 'alice'" in record.message) == (name != "identify")
    assert f"at GET {PREFIX}{path}; answered 503" in record.message
    assert ("topic 'room'" in record.message) == (name == "authorize")
    assert ("who you are" in detail) == (name == "identify")
    assert ("the topic 'room'" in detail) == (name == "authorize")
