"""The monitor's logic without a clock of its own: rings, alerts, errors, sketches, merging."""

import json
import logging
import socket
import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.audience import Audience
from hybrid.distinct import PERIOD, Distinct, estimate, pack, unpack
from hybrid.events import Event, random_id
from hybrid.histogram import Histogram, bound, quantile
from hybrid.log import Log
from hybrid.monitor import errors as monitor_errors
from hybrid.monitor.alerts import (
    MIN_WINDOWS,
    RULES,
    Alerts,
    Change,
    Reading,
    Rule,
    Scene,
    rules,
    unusual,
)
from hybrid.monitor.errors import MAX_GROUPS, REPORTS_OF_ONE, REPORTS_PER_MINUTE, Errors
from hybrid.monitor.history import FIELDS, RINGS, Point, Rings, columns, merge, roll
from hybrid.monitor.monitor import Monitor
from hybrid.monitor.records import Away
from hybrid.monitor.sinks import post
from hybrid.monitor.traffic import LISTED, LOOK, traffic
from sites import Site

COUNTED = [name for name, how in FIELDS.items() if how == (sum, sum)]
numbers = st.integers(0, 1000)
latencies = st.dictionaries(st.integers(0, 95), st.integers(1, 50), max_size=4)


@st.composite
def points(draw: st.DrawFn, at: int | None = None) -> Point:
    values = {name: draw(numbers) for name in FIELDS}
    return Point.of(draw(st.integers(1, 10**6)) if at is None else at, values, draw(latencies))


# -- points and rings


@given(points())
def test_a_point_survives_its_text(point: Point) -> None:
    """What is stored in Redis is read again as it was."""
    assert Point.unpack(point.pack()) == point


@pytest.mark.parametrize("text", ["", "nonsense", "[1,[2],[]]"])
def test_a_point_of_another_version_is_none(text: str) -> None:
    """An update of the package meets the history of the one before."""
    assert Point.unpack(text) is None


@given(st.lists(points(at=7), min_size=1, max_size=5))
def test_what_instances_counted_adds_up(told: list[Point]) -> None:
    """Counters and states are sums, the worst is the worst, and the order does not matter."""
    merged = merge(told)
    for name in [*COUNTED, "sse", "memory", "instances"]:
        assert merged[name] == sum(point[name] for point in told)
    for name in ("lag", "redis", "stored"):
        assert merged[name] == max(point[name] for point in told)
    counts: Counter[int] = sum((Counter(point.latency) for point in told), Counter())
    assert Counter(merged.latency) == counts
    assert merge(told[::-1]) == merged


@given(st.lists(points(), min_size=1, max_size=12))
def test_of_a_state_the_last_second_counts(told: list[Point]) -> None:
    """Ten seconds with 5, 6, 7 open streams end with 7, and not with 18."""
    rolled = roll(told, 0)
    assert rolled["sse"] == told[-1]["sse"]
    assert rolled["opened"] == sum(point["opened"] for point in told)
    assert rolled["stored"] == sum(point["stored"] for point in told)
    assert rolled["lag"] == max(point["lag"] for point in told)


@given(points())
def test_a_second_that_was_slept_through_counts_nothing(point: Point) -> None:
    """Five streams that were open still are; what was counted is counted already."""
    carried = point.carried(point.at + 1)
    assert (carried["sse"], carried["memory"]) == (point["sse"], point["memory"])
    assert [carried[name] for name in [*COUNTED, "stored", "lag"]] == [0] * (len(COUNTED) + 2)
    both = roll([point, carried], point.at)
    assert (both.values, both.latency) == (point.values, point.latency)


seconds = st.lists(st.integers(1, 9), min_size=1, max_size=400).map(
    lambda steps: [10_000 + sum(steps[: place + 1]) for place in range(len(steps))]
)


def second(at: int) -> Point:
    return Point.of(at, {"opened": at % 7, "sse": at % 11, "lag": at % 13}, {at % 5: 1})


@given(seconds)
def test_the_rings_are_bounded_ordered_and_lose_nothing(times: list[int]) -> None:
    """Whole steps add up to their seconds, whatever seconds are missing."""
    rings = Rings()
    for at in times:
        rings.append(second(at))
    for step, size in RINGS.items():
        kept = [point.at for point in rings.points(step)]
        assert len(kept) <= size
        assert kept == sorted(set(kept))
        assert all(at % step == 0 for at in kept)
    for step in (10, 60):
        done = [at for at in times if at // step < times[-1] // step]
        by_step = Counter({at // step * step: 0 for at in done})
        for at in done:
            by_step[at // step * step] += at % 7
        kept_ones = {point.at: point["opened"] for point in rings.points(step)}
        assert kept_ones == dict(list(by_step.items())[-RINGS[step] :])


@given(seconds, st.data())
def test_a_takeover_at_any_second_changes_nothing(times: list[int], data: st.DataObject) -> None:
    """A new keeper that begins with what is stored goes on as the old one would have."""
    whole, first = Rings(), Rings()
    stored: dict[int, list[Point]] = {step: [] for step in RINGS}
    cut = data.draw(st.integers(0, len(times)))
    for at in times:
        whole.append(second(at))
    for at in times[:cut]:
        for step, point in first.append(second(at)):
            stored[step] = [*stored[step], point][-RINGS[step] :]
    heir = Rings(
        {
            step: [p for each in kept if (p := Point.unpack(each.pack()))]
            for step, kept in stored.items()
        }
    )
    again = data.draw(st.integers(0, cut))
    for at in times[again:]:  # it may hear seconds again that were taken already
        heir.append(second(at))
    for step in RINGS:
        assert heir.points(step) == whole.points(step)


def test_columns_are_for_charts() -> None:
    """One list a field, quantiles in milliseconds, None where nothing was delivered."""
    table = columns([second(5), Point.of(6, {}, {})], 1)
    assert table["at"] == [5, 6]
    assert table["opened"] == [5, 0]
    assert table["p50"] == [0.1, None]


# -- histograms and sketches


@given(st.lists(st.floats(0, 1000), min_size=1), st.lists(st.floats(0, 1000)))
def test_histograms_add_up(first: list[float], second: list[float]) -> None:
    """Quantiles of two instances together are those of one that had seen it all."""
    one, two, both = Histogram(), Histogram(), Histogram()
    for value in first:
        one.observe(value)
        both.observe(value)
    for value in second:
        two.observe(value)
        both.observe(value)
    together = Counter(one.sparse()) + Counter(two.sparse())
    for q in (0.5, 0.95, 0.99):
        assert quantile(together, q) == both.quantile(q)
    exact = sorted([*first, *second])[max(0, -(-len(first + second) // 2) - 1)]
    median = both.quantile(0.5)
    assert median is not None
    assert exact <= max(median, bound(0)) * 1.0001
    assert median <= max(exact, bound(0)) * 1.2 or median == bound(0)


@pytest.mark.parametrize("count", [0, 1, 5, 60, 500, 3000])
def test_a_sketch_counts_everybody_once(count: int) -> None:
    """However often, and in however many processes they were seen; within 5 %."""
    sketches = [Distinct() for _ in range(3)]
    for client in range(count):
        for time in range(3):
            sketches[(client + time) % 3].add(100.0, f"user {client}", "10.0.0.1")
    found = estimate(unpack(pack(sketch.bits(101.0))) for sketch in sketches)
    assert abs(found - count) <= max(1, 0.05 * count)


def test_a_sketch_forgets() -> None:
    """Who was seen 15 s ago counts for certain, who was seen 30 s ago does not."""
    sketch = Distinct()
    sketch.add(100.0, "a")
    assert estimate([sketch.bits(100.0 + PERIOD)]) == 1
    assert estimate([sketch.bits(100.0 + 2 * PERIOD)]) == 0
    sketch = Distinct()
    sketch.add(100.0, "a")
    assert estimate([sketch.bits(500.0)]) == 0


@pytest.mark.parametrize("text", ["x", "AAAA", "é", "eJwDAAAAAAE="])
def test_a_sketch_of_another_version_is_refused(text: str) -> None:
    """And not taken for a number of clients."""
    with pytest.raises(ValueError, match="no sketch"):
        unpack(text)


# -- alerts


def at(now: float, value: float, **picture: Any) -> Scene:
    return Scene(now, {"value": value, "instances": [], **picture}, [], [])


def reads(scene: Scene) -> Reading:
    value = scene.picture["value"]
    return None if value is None else (value, f"it is {value}")


RULE = Rule("test", "warning", reads, 10, 5, hold=30, rest=20)


def kinds(changes: list[Change]) -> list[str]:
    return [change.kind for change in changes]


def test_an_alert_takes_its_time_is_raised_once_and_resolved_once() -> None:
    """Threshold, duration, hysteresis, and another duration on the way back."""
    alerts = Alerts([RULE])
    assert alerts.step(at(0, 11)) == []
    assert alerts.step(at(29, 50)) == []
    (raised,) = alerts.step(at(30, 12))
    assert (raised.kind, raised.rule, raised.value, raised.since) == ("raised", "test", 12, 30_000)
    assert "it is 12" in raised.why
    assert alerts.step(at(31, 99)) == []
    assert alerts.standing()[0]["value"] == 99
    assert alerts.step(at(40, 8)) == []  # between the two thresholds: it stands
    assert alerts.step(at(50, 5)) == []
    assert alerts.step(at(60, 8)) == []  # back: the time begins anew
    assert alerts.step(at(61, 4)) == []
    assert alerts.step(at(80, 4)) == []
    (resolved,) = alerts.step(at(81, 4))
    assert (resolved.kind, resolved.since, resolved.at) == ("resolved", 30_000, 81_000)
    assert alerts.standing() == []
    assert [change["kind"] for change in alerts.changes()] == ["resolved", "raised"]


def test_the_end_of_an_alert_reads_as_an_end() -> None:
    """Not as an outage of nobody: "0 of 1 instances are without the shared log ()"."""
    alerts = Alerts([rule for rule in RULES if rule.name == "redis_away"])
    away = deployed(state="degraded", trouble="refused")
    changes = [
        change
        for now in range(40)
        for change in alerts.step(Scene(now, away if now < 20 else deployed(), BASE, USUAL))
    ]
    raised, resolved = changes
    assert raised.why.startswith("1 of 1 instances are without the shared log (web-1:17)")
    assert resolved.why == f"it is over, after 20 s. It was: {raised.why}"


def test_who_cannot_be_heard_is_not_gone() -> None:
    """Without Redis an instance knows of itself alone, and says no more than that."""
    alerts = Alerts([rule for rule in RULES if rule.name in ("redis_away", "instance_gone")])
    away = deployed(state="degraded", trouble="refused")
    gone = {**away["instances"][0], "state": "gone", "pid": 18}
    scenes = [
        Scene(now, {**away, "instances": [*away["instances"], gone]}, BASE, USUAL, complete=False)
        for now in range(30)
    ]
    (raised,) = [change for scene in scenes for change in alerts.step(scene)]
    assert raised.why.startswith("at least 1 of 1 instances are without the shared log (web-1:17)")
    (late,) = alerts.step(replace(scenes[-1], now=31, complete=True))
    assert late.rule == "instance_gone"
    alone = Scene(32, away, BASE, USUAL, complete=False)
    assert alerts.step(alone) == [], "nor is it over because nobody can be heard"
    assert [alert["rule"] for alert in alerts.standing()] == ["redis_away", "instance_gone"]


def test_each_process_without_redis_shows_its_alert_and_one_tells(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is true whoever answers; the webhook hears of it once."""
    told: list[str] = []

    def wrong(scene: Scene) -> tuple[float, str]:
        return float(not scene.complete), "it is away"

    def away(*_arguments: Any, **_named: Any) -> Any:
        raise Away

    monitor = Monitor(
        site.app.extensions["hybrid"].instance(),
        interval=5,
        rules=[Rule("wrong", "critical", wrong, 0, 0, hold=0, rest=0)],
        on_change=lambda change: told.append(change.kind),
    )
    monkeypatch.setattr(monitor._records, "beat", away)
    monitor._beat()
    assert monitor.picture()["state"] == "critical"
    assert told == []
    monitor._keeping = True
    monitor._alerts = Alerts([Rule("wrong", "critical", wrong, 0, 0, hold=0, rest=0)])
    monitor._beat()
    assert told == ["raised"]


def test_a_snoozed_alert_that_comes_again_is_told_nowhere_until_it_is_over() -> None:
    """It is seen, in silence, also by the next keeper; if it still stands when the time is over,
    it is told then. The end of what was told is told, of what was not is not."""
    alerts = Alerts([replace(RULE, hold=0, rest=0)])
    assert not alerts.snooze("test", 100_000), "nothing stands"
    (raised,) = alerts.step(at(1, 11))
    assert not raised.silent
    assert alerts.snooze("test", 100_000)
    assert not alerts.step(at(10, 1))[0].silent, "it had been told"
    assert [change.silent for change in alerts.step(at(20, 11))] == [True]
    assert [change.silent for change in alerts.step(at(30, 1))] == [True]
    assert [change.silent for change in alerts.step(at(40, 11))] == [True]
    after = Alerts([replace(RULE, hold=0, rest=0)])
    after.load(alerts.dump())
    assert after.step(at(99, 12)) == []
    assert after.standing()[0]["snoozed_until"] == 100_000
    (told,) = after.step(at(100, 12))
    assert (told.kind, told.silent, told.since) == ("raised", False, 40_000)
    assert after.step(at(101, 12)) == []
    assert [(change.kind, change.silent) for change in after.step(at(102, 1))] == [
        ("resolved", False)
    ]
    assert [change.silent for change in after.step(at(103, 11))] == [False]


def test_a_moment_under_the_threshold_begins_anew() -> None:
    """30 seconds in a row, not 30 in all."""
    alerts = Alerts([RULE])
    for now, value in ((0, 11), (20, 10), (21, 11), (50, 11)):
        assert alerts.step(at(now, value)) == []
    assert kinds(alerts.step(at(51, 11))) == ["raised"]


readings = st.lists(st.tuples(st.integers(1, 15), st.none() | st.integers(0, 20)), max_size=60)


@given(readings, st.integers(0, 60))
def test_random_lives_of_an_alert(steps: list[tuple[int, int | None]], cut: int) -> None:
    """Raised and resolved take turns; each was true for its whole time; a new keeper in the
    middle raises nothing twice."""
    alerts, now = Alerts([RULE]), 0
    seen: list[Change] = []
    history: list[tuple[int, float]] = []
    for place, (later, value) in enumerate(steps):
        now += later
        history.append((now, 5 if value is None else value))
        seen += alerts.step(at(now, value))  # type: ignore[arg-type]  # None is what the rule reads
        if place == cut:
            heir = Alerts([RULE])
            heir.load(alerts.dump())
            alerts = heir
    assert kinds(seen) == ["raised", "resolved"] * (len(seen) // 2) + ["raised"] * (len(seen) % 2)
    for change in seen:
        until = change.at // 1000
        span = RULE.hold if change.kind == "raised" else RULE.rest
        during = [value for when, value in history if until - span <= when <= until]
        if change.kind == "raised":
            assert all(value > RULE.threshold for value in during)
        else:
            assert all(value <= RULE.clear for value in during)


def test_what_stands_of_a_rule_that_is_off_now_is_forgotten() -> None:
    """Else it would stand for ever."""
    alerts = Alerts([Rule("old", "critical", reads, 0, 0)])
    alerts.step(at(0, 1))
    heir = Alerts([RULE])
    heir.load(alerts.dump())
    assert heir.standing() == []
    heir.load("of another version")
    assert heir.step(at(0, 1)) == []


def test_rules_can_be_changed_and_switched_off() -> None:
    """By name; what does not exist is said."""
    changed = {rule.name: rule for rule in rules({"loop_lag": {"threshold": 50}, "errors": None})}
    assert (changed["loop_lag"].threshold, changed["loop_lag"].clear) == (50, 50)
    assert "errors" not in changed
    with pytest.raises(ValueError, match="there is no rule 'lag'"):
        rules({"lag": None})
    with pytest.raises(ValueError, match="a rule has no 'limit'"):
        rules({"full": {"limit": 1}})


def deployed(**changes: Any) -> dict[str, Any]:
    """A picture of one instance that is well, with changes to its row."""
    row = {
        "host": "web-1",
        "pid": 17,
        "state": "ok",
        "connections": 5,
        "max_connections": 100,
        "loop_lag_ms": 3.0,
        "redis_ms": 0.4,
        "trouble": "",
        "alone": True,
        "skew_ms": 0,
    }
    clients = changes.pop("clients", {"sse": 90, "polling": 2})
    return {"instances": [row | changes], "connections": {"clients": clients}}


def history(count: int, step: int, **values: float) -> list[Point]:
    return [Point.of(10_000 - step * (count - place), values, {}) for place in range(count)]


BASE = history(300, 1, opened=2, emitted=3)
USUAL = history(60, 10, stored=100, resumed=1)

CASES: list[tuple[str, Scene, str]] = [
    ("loop_lag", Scene(10_000, deployed(), history(300, 1, lag=450), USUAL), "450 ms"),
    ("blocked", Scene(10_000, deployed(loop_lag_ms=10_200), BASE, USUAL),
        "web-1:17 did not run for 10.2 s"),
    ("redis_away", Scene(10_000, deployed(state="degraded", trouble="refused"), BASE, USUAL),
        "1 of 1 instances are without the shared log (web-1:17)"),
    ("redis_slow", Scene(10_000, deployed(redis_ms=80), BASE, USUAL), "80 ms"),
    ("instance_gone", Scene(10_000, deployed(state="gone"), BASE, USUAL), "web-1:17"),
    ("fallback", Scene(10_000, deployed(clients={"sse": 60, "polling": 40}), BASE, USUAL),
        "40 % of 100 clients poll"),
    ("resume", Scene(10_000, deployed(), history(300, 1, resumed=0.9, unresumed=0.1),
        history(60, 10, stored=100, resumed=10)),
        "30 of 300 clients"),
    ("reconnect_storm", Scene(10_000, deployed(), history(300, 1, resumed=2), USUAL),
        "120 clients came back within a minute, usually 6"),
    ("slow_clients", Scene(10_000, deployed(), [*BASE[:-1], Point.of(9_999, {"slow": 2}, {})],
        USUAL), "2 clients were cut"),
    ("overflow", Scene(10_000, deployed(), [*BASE[:-1], Point.of(9_999, {"overflow": 1}, {})],
        USUAL), "HYBRID_HISTORY_EVENTS"),
    ("full", Scene(10_000, deployed(connections=95), BASE, USUAL), "holds 95 of 100"),
    ("errors", Scene(10_000, deployed(), history(300, 1, opened=1, errors=0.1), USUAL),
        "30 errors to 300"),
    ("clock_skew", Scene(10_000, deployed(skew_ms=-2500), BASE, USUAL), "2.5 s off"),
    ("unshared", Scene(10_000, deployed(alone=False), BASE, USUAL), "HYBRID_URL"),
    ("event_rate", Scene(10_000, deployed(), BASE, [*USUAL, *history(2, 10, stored=900)]),
        "90.0 events a second, usually 10.0"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "scene", "words"), CASES, ids=[name for name, _, _ in CASES])
def test_each_rule_sees_what_it_is_for_and_says_why(name: str, scene: Scene, words: str) -> None:
    """In a scene where this one thing is wrong it is the one that speaks, with the numbers."""
    speaking = {}
    for rule in RULES:
        reading = rule.read(scene)
        if reading is not None and reading[0] > rule.threshold:
            speaking[rule.name] = reading[1]
    assert list(speaking) == [name]
    assert words in speaking[name]


def test_every_rule_has_a_case() -> None:
    """A new rule comes with a scene."""
    assert [rule.name for rule in RULES] == [name for name, _, _ in CASES]


def test_all_is_well_when_all_is_well() -> None:
    """And when nothing is there yet."""
    alerts = Alerts()
    assert alerts.step(Scene(10_000, deployed(), BASE, USUAL)) == []
    assert alerts.step(Scene(10_060, deployed(), [], [])) == []
    few = history(MIN_WINDOWS, 10, stored=1)
    assert alerts.step(Scene(10_120, deployed(), [], [*few, *history(1, 10, stored=999)])) == []


@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=50), st.floats(0, 1e6))
def test_unusual_is_about_zero_for_the_usual(values: list[float], value: float) -> None:
    """It grows with the value, and a constant past does not make everything unusual."""
    score = unusual(values, value)
    assert score <= unusual(values, value + 100)
    middle = sorted(values)[len(values) // 2] if len(values) % 2 else None
    if middle is not None:
        assert unusual(values, middle) == 0
    assert abs(unusual([5.0] * 40, 6.0)) < 1


# -- topics


def test_what_went_to_a_topic_in_the_last_minute() -> None:
    """Events and bytes a second of each, from the log; at high rates of the newest events."""
    log = Log("e", max_events=20_000, max_seconds=3600)

    def put(at: int, *topics: str) -> int:
        audience = Audience.of(None, None, topics or None)
        return len(log.append(Event(random_id(), "x", "1", at, audience), at).frame)

    now = 1_000_000
    assert traffic(log, now) == {}
    put(now - 61_000, "old")
    put(now - 1000)
    sizes = [put(now - 100 * number, "a", *(["b"] if number % 2 else [])) for number in range(30)]
    half = round(sum(sizes[1::2]) / 60, 1)
    assert traffic(log, now) == {
        "a": {"per_second": 0.5, "bytes_per_second": round(sum(sizes) / 60, 1), "newest": now},
        "b": {
            "per_second": 0.25,
            "bytes_per_second": half,
            "newest": now - 100,
        },
    }
    for number in range(LOOK):
        put(now + number, "flood", f"topic {number}")
    told = traffic(log, now + LOOK)
    assert len(told) == LISTED
    assert told["flood"]["per_second"] == 1000


# -- errors


class Clock:
    now = 1_000_000

    def __call__(self) -> int:
        return self.now


def test_errors_are_grouped_by_what_they_are() -> None:
    """A thousand times the same is one line; the newest message is shown."""
    clock = Clock()
    errors = Errors(clock)
    for number in range(1000):
        clock.now += 1
        errors.note("server", "error", "cannot reach %s", f"cannot reach {number}", "hub.py:7")
    errors.note("server", "warning", "slow", "slow")
    newest, first = errors.groups()
    assert (first["count"], first["message"]) == (1000, "cannot reach 999")
    assert (first["first"], first["last"]) == (1_000_001, 1_001_000)
    assert newest["message"] == "slow"
    assert errors.total == 1000


def test_errors_are_bounded_whatever_browsers_say() -> None:
    """In number, in length and in time; numbers in a message make no new group."""
    clock = Clock()
    errors = Errors(clock)
    for number in range(REPORTS_PER_MINUTE):
        who = f"192.0.2.{number // REPORTS_OF_ONE}"
        assert errors.from_browser(f"row {number} failed" + "x" * 1000, "p" * 1000, who)
    assert not errors.from_browser("one more", "", "192.0.2.99")
    (group,) = errors.groups()
    assert group["count"] == REPORTS_PER_MINUTE
    assert len(group["message"]) == len(group["place"]) == 200
    clock.now += 60_000
    assert errors.from_browser("one more", "", "192.0.2.99")
    for number in range(2 * MAX_GROUPS):
        errors.note("server", "error", f"kind {number}", "")
    assert len(errors.groups()) == MAX_GROUPS


def test_browsers_do_not_push_out_what_the_server_says() -> None:
    """Anybody can make up as many messages as there is room for; one address speaks for itself."""
    clock = Clock()
    errors = Errors(clock)
    errors.note("server", "error", "real", "the real trouble")
    for number in range(20 * REPORTS_PER_MINUTE):
        clock.now += 1000
        errors.from_browser("made up " + "x" * number, "", f"192.0.2.{number % 200}")
    assert errors.total == 1
    assert errors.reported > REPORTS_PER_MINUTE
    assert errors.groups()[-1]["message"] == "the real trouble"
    assert errors.groups(10)[-1]["message"] == "the real trouble"
    clock.now += 60_000
    told = [errors.from_browser("x", "", "198.51.100.1") for _ in range(REPORTS_OF_ONE + 1)]
    assert told == [True] * REPORTS_OF_ONE + [False]
    assert errors.from_browser("x", "", "198.51.100.2")


@pytest.mark.parametrize(
    ("path", "answer"), [("/secret", b"this is no HTTP\r\n\r\n"), ("/secret\n", b"")]
)
def test_a_webhook_that_fails_in_any_way_is_one_line_without_its_address(
    path: str, answer: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of a webhook is often all that one needs to use it."""
    monkeypatch.setattr("hybrid.monitor.sinks.WEBHOOK_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with listening.accept()[0] as asked:
                asked.recv(65536)
                asked.sendall(answer)

        if answer:
            threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}{path}"
        post(url, Change("raised", "full", "critical", "why", 1, 0, 0, 0))
    (line,) = caplog.messages
    assert line.startswith("the alert webhook failed")
    assert "secret" not in caplog.text


def test_groups_of_instances_become_one() -> None:
    """Counts add up, the first is the earliest, the message is the newest."""
    one = {"id": "a", "count": 2, "first": 10, "last": 20, "message": "old"}
    two = {"id": "a", "count": 3, "first": 15, "last": 30, "message": "new"}
    assert monitor_errors.merge([[one], [two], []]) == [
        {"id": "a", "count": 5, "first": 10, "last": 30, "message": "new"}
    ]


def test_what_the_package_logs_is_heard_and_still_printed() -> None:
    """With the place where it was raised; the log itself goes where it went before."""
    errors = Errors(Clock())
    logger = logging.getLogger("hybrid")
    handlers = list(logger.handlers)
    monitor_errors.listen(errors)
    try:
        logger.info("of no interest")
        logger.warning("look at %s", "this")
        try:
            raise KeyError("secret")
        except KeyError:
            logger.exception("a hook raised")
    finally:
        monitor_errors.forget(errors)
    logger.warning("not heard any more")
    raised, warned = errors.groups()
    assert (warned["level"], warned["message"]) == ("warning", "look at this")
    assert raised["level"] == "error"
    assert raised["message"] == "KeyError: 'secret' (a hook raised)"
    assert "test_monitor_rules.py" in raised["place"]
    assert logger.handlers == handlers


def test_the_state_of_alerts_is_plain_data() -> None:
    """What is stored in Redis is JSON that another version may look into."""
    alerts = Alerts([Rule("now", "critical", reads, 0, 0)])
    alerts.step(at(1, 3))
    _, _, standing, changes = json.loads(alerts.dump())
    assert standing["now"]["severity"] == "critical"
    assert changes[0]["kind"] == "raised"
