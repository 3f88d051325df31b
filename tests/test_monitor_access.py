"""Who may look at the monitor, who may act, and what a request may say."""

import logging
import time
from typing import Any

import pytest
from flask import Flask, request
from flask.testing import FlaskClient

from hybrid import Hybrid, Identity
from hybrid.connection import Connection
from hybrid.instance import MAX_TYPES
from hybrid.monitor.alerts import Change, Rule
from hybrid.monitor.errors import REPORTS_PER_MINUTE
from hybrid.monitor.monitor import Monitor
from hybrid.monitor.snapshot import told
from hybrid.wire import to_json
from sites import Reading

PREFIX = "/api/realtime"
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
LOOKING = [
    "/monitor",
    "/monitor/history",
    "/monitor/connections",
    "/monitor/sse",
    "/monitor/polling",
    "/metrics",
]


class Site:
    """An application whose users are named by a header; `eye` may look, `hand` may act too."""

    def __init__(self, *, rights: bool = True, **config: Any) -> None:
        self.app = Flask(__name__)
        self.app.testing = True
        self.app.config.update({f"HYBRID_{key}": value for key, value in config.items()})
        self.realtime = Hybrid(self.app)
        self.realtime.identify(lambda: Identity(request.headers.get("X-User") or None))
        if rights:
            self.realtime.can_monitor(lambda identity: identity.user in ("eye", "hand"))
            self.realtime.can_operate(lambda identity: identity.user == "hand")
        self.client: FlaskClient = self.app.test_client()

    def get(self, path: str, user: str = "", **headers: str) -> Any:
        return self.client.get(PREFIX + path, headers={"X-User": user, **headers}, buffered=False)

    def post(self, path: str, body: Any, user: str = "", **headers: str) -> Any:
        return self.client.post(PREFIX + path, json=body, headers={"X-User": user, **headers})


@pytest.mark.parametrize(("user", "status"), [("", 401), ("stranger", 403)])
def test_a_browser_that_may_not_look_gets_a_page(user: str, status: int) -> None:
    """A person typed the address: under the same status they read what to do. A program gets
    problem details as ever, and so do the endpoints that the page asks."""
    site = Site(ANONYMOUS=False)
    answer = site.get("/monitor", user, **HTML)
    assert answer.status_code == status
    assert answer.content_type == "text/html; charset=utf-8"
    assert "no-store" in answer.headers["Cache-Control"]
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    text = answer.get_data(as_text=True)
    assert ("Log in to the application" if status == 401 else "can_monitor") in text
    problem = "application/problem+json"
    for path, headers in (("/monitor", {}), ("/monitor/history", HTML), ("/monitor/sse", HTML)):
        plain = site.get(path, user, **headers)
        assert (plain.status_code, plain.content_type) == (status, problem)


@pytest.mark.parametrize("path", LOOKING)
def test_it_is_off_unless_debug_or_allowed(path: str) -> None:
    """Without a hook nobody looks, but for debug mode; with one it alone decides."""
    closed = Site(rights=False)
    assert closed.get(path, "eye").status_code == 403
    closed.app.debug = True
    answer = closed.get(path, "eye")
    assert answer.status_code == 200
    answer.close()
    site = Site()
    site.app.debug = True
    assert site.get(path, "stranger").status_code == 403
    answer = site.get(path, "eye")
    assert answer.status_code == 200
    answer.close()


def test_who_comes_in_the_middle_sees_the_newest_events() -> None:
    """Also while somebody else watches, in a second in which nothing was emitted."""
    site = Site()
    for number in range(25):
        site.realtime.emit("tick", number)
    tail = site.app.extensions["hybrid"].monitor().tail
    for _ in range(3):
        assert len(tail.newest()["rows"]) == 20
        tail.sample(wanted=True)
    for number in range(30):
        site.realtime.emit("tock", number)
    tail.sample(wanted=True)
    newest = tail.newest()
    assert [row["type"] for row in newest["rows"]] == ["tock"] * 20
    assert newest["skipped"] in (0, 10)  # 0 if its own timer has just taken them as well


def test_looking_and_acting_are_two_rights(caplog: pytest.LogCaptureFixture) -> None:
    """Who may look may not act; who may act without being allowed to look may do nothing."""
    site = Site()
    site.realtime.emit("secret", {"n": 1})
    place = site.realtime.cursor()
    assert site.get(f"/monitor/event?cursor={place}", "eye").status_code == 403
    assert site.post("/monitor/disconnect", {"user": "x"}, "eye").status_code == 403
    with caplog.at_level(logging.WARNING):
        shown = site.get(f"/monitor/event?cursor={place}", "hand")
        assert shown.get_json()["data"] == {"n": 1}
        assert site.post("/monitor/disconnect", {"user": "x\ny"}, "hand").status_code == 200
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"monitor: 'hand' from 127.0.0.1: read the event {place!r}",
        "monitor: 'hand' from 127.0.0.1: disconnect the user 'x\\ny'",
    ]
    site.realtime.can_monitor(lambda _: False)
    assert site.get(f"/monitor/event?cursor={place}", "hand").status_code == 403
    assert site.post("/monitor/disconnect", {"user": "x"}, "hand").status_code == 403


def test_an_alert_is_snoozed_by_who_may_act(caplog: pytest.LogCaptureFixture) -> None:
    """Refused without the right, for what does not stand and for nonsense; seen in the monitor,
    logged, and told to nobody."""
    site = Site()
    heard: list[Change] = []
    level = [1.0]
    rule = Rule("full", "critical", lambda _: (level[-1], "it is full"), 0.9, 0.8, rest=0)
    state = site.app.extensions["hybrid"]
    state.monitor().stop()
    # One that is not started: nobody but the test has it look.
    monitor = Monitor(state.instance(), interval=60, rules=[rule], on_change=heard.append)
    monitor._keeping = True  # and tells of what it finds
    state._monitor = monitor
    wish = {"rule": "full", "minutes": 60}
    assert site.post("/monitor/snooze", wish, "hand").status_code == 404
    full = monitor.picture()
    monitor._judge(full)
    assert [change.kind for change in heard] == ["raised"]
    assert site.post("/monitor/snooze", wish, "eye").status_code == 403
    for wrong in ({"rule": "full"}, wish | {"minutes": -1}, wish | {"minutes": 1e9}, {"rule": 1}):
        assert site.post("/monitor/snooze", wrong, "hand").status_code == 400
    with caplog.at_level(logging.WARNING):
        answer = site.post("/monitor/snooze", wish, "hand")
        assert (answer.status_code, answer.json) == (200, {"missing": []})
    assert "monitor: 'hand' from 127.0.0.1: snooze for 60 minutes 'full'" in caplog.messages
    (alert,) = site.get("/monitor", "eye").get_json()["alerts"]
    assert alert["snoozed_until"] > time.time() * 1000 + 3_500_000
    level.append(0.0)
    monitor._judge(full)
    level.append(1.0)
    monitor._judge(full)
    assert [change.kind for change in heard] == ["raised", "resolved"], "and not raised again"


def test_by_default_nobody_acts_outside_of_debug_mode() -> None:
    """A hook for looking opens nothing else."""
    site = Site(rights=False)
    site.realtime.can_monitor(lambda _: True)
    assert site.post("/monitor/disconnect", {"user": "x"}, "eye").status_code == 403
    site.app.debug = True
    assert site.post("/monitor/disconnect", {"user": "x"}, "eye").status_code == 200


def test_what_a_search_finds_can_be_ended_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """By operators alone, not more than they have seen, never everybody, and it is logged."""
    site = Site()
    users = ["zoe", "zoltan", "ada"]
    streams = {user: Reading(site.get("/sse", user)) for user in users}
    for stream in streams.values():
        stream.hello()
    wish: dict[str, Any] = {"search": "ZO", "count": 2}
    assert site.post("/monitor/disconnect", wish, "eye").status_code == 403
    for wrong in ({"search": "zo"}, {"search": " ", "count": 3}, {"search": "zo", "count": True}):
        assert site.post("/monitor/disconnect", wrong, "hand").status_code == 400
    assert site.post("/monitor/disconnect", wish | {"count": 1}, "hand").status_code == 409
    assert site.get("/monitor/connections?q=zo", "eye").get_json()["total"] == 2
    with caplog.at_level(logging.WARNING):
        answer = site.post("/monitor/disconnect", wish, "hand")
    assert answer.get_json() == {"ended": 2, "missing": []}
    assert "'hand' from 127.0.0.1: disconnect all that match 'ZO'" in caplog.text
    for user in users[:2]:
        assert streams[user].upto("hybrid.bye")[-1].type == "hybrid.bye"
    site.realtime.emit("on")
    assert streams["ada"].upto("on")[-1].type == "on"
    for stream in streams.values():
        stream.response.close()


@pytest.mark.parametrize("path", ["/monitor/disconnect", "/report"])
def test_actions_are_for_pages_of_this_site_and_json(path: str) -> None:
    """Another site's form or script acts with nobody's cookies."""
    site = Site()
    body = {"message": "x"} if path == "/report" else {"user": "x"}
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        assert site.post(path, body, "hand", **headers).status_code == 403
    form = site.client.post(PREFIX + path, data=body, headers={"X-User": "hand"})
    assert form.status_code == 415
    assert site.get(path, "hand").status_code == 405
    both = {"user": "", "connection": ""}
    wrongs: list[Any] = [{}, {"other": 1}, [], {"message": 5}, {"user": 5}, both]
    for wrong in wrongs:
        assert site.post(path, wrong, "hand").status_code == 400


def test_who_may_read_by_cors_does_not_act() -> None:
    """HYBRID_CORS_ORIGINS says whose pages may read; the operator's cookies are not theirs."""
    site = Site(CORS_ORIGINS=["https://app.example"])
    site.realtime.emit("secret", {"n": 1})
    event = f"/monitor/event?cursor={site.realtime.cursor()}"
    for site_of in ({}, {"Sec-Fetch-Site": "cross-site"}):
        friend = {"Origin": "https://app.example", **site_of}
        assert site.get("/monitor", "hand", **friend).status_code == 200
        assert site.get(event, "hand", **friend).status_code == 403
        assert site.post("/monitor/disconnect", {"user": "x"}, "hand", **friend).status_code == 403


def test_what_is_shown_of_the_redis_is_no_secret() -> None:
    """Not in the monitor, nor in the health check, which anybody may ask."""
    for url, shown in (
        ("redis://u:hunter2@h:1/0?password=hunter3", "redis://…@h:1/0"),
        ("redis://h:1/0?password=hun%40ter2", "redis://h:1/0"),
        ("redis://h?password=hun@ter2", "redis://h"),
        (
            "redis+sentinel://:hunter2@a:1,b:2/main?sentinel_password=x",
            "redis+sentinel://…@a:1,b:2/main",
        ),
        ("unix://:hunter2@/run/redis.sock?db=1", "unix://…@/run/redis.sock"),
        ("memory://", "memory://"),
    ):
        assert told(url) == shown
    site = Site(URL="redis://127.0.0.1:1/0?password=hunter2")
    ready = site.get("/health/ready").get_json()
    assert ready["alerts"] == ["Redis is out of reach"]
    assert "hunter2" not in site.get("/monitor", "eye").get_data(as_text=True)
    state = site.app.extensions["hybrid"]
    assert "hunter2" not in repr(state.settings)
    state.instance().stop()


def test_made_up_types_are_counted_together() -> None:
    """Whoever may send to themselves may name a new type each time; the sum stays right."""
    site = Site()
    for number in range(3 * MAX_TYPES):
        site.realtime.emit(f"t{number}", topics=[])
        site.realtime.emit("real", topics=[])
    events = site.get("/monitor", "eye").get_json()["events"]
    assert events["emitted"] == 6 * MAX_TYPES
    assert events["by_type"]["real"] == 3 * MAX_TYPES
    assert len(site.app.extensions["hybrid"].instance().emitted) <= MAX_TYPES + 1


def test_the_page_keeps_to_itself() -> None:
    """A strict policy, nothing stored, nothing inline; JSON to who does not ask for a page."""
    site = Site()
    page = site.get("/monitor", "eye", **HTML)
    text = page.get_data(as_text=True)
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["Cache-Control"] == "private, no-store"
    assert "Accept" in page.headers["Vary"]
    assert "<script>" not in text
    assert "style=" not in text
    assert " onclick" not in text
    assert "https://" not in text
    assert "data-operates" not in text
    assert "data-operates" in site.get("/monitor", "hand", **HTML).get_data(as_text=True)
    assert site.get("/monitor", "eye", Accept="*/*").content_type == "application/json"
    assert "Accept" in site.get("/monitor", "eye").headers["Vary"]
    host = site.client.get(f"{PREFIX}/monitor", headers={"X-User": "eye", "Host": 'a"><b>', **HTML})
    assert "<b>" not in host.get_data(as_text=True)


@pytest.mark.parametrize(
    "query",
    ["sort=secret", "page=0", "page=21", "page=x", "page=1e1"],
)
def test_a_list_that_cannot_be_is_refused(query: str) -> None:
    """And never a 500."""
    site = Site()
    assert site.get(f"/monitor/connections?{query}", "eye").status_code == 400
    assert site.get("/monitor/history?range=7d", "eye").status_code == 400
    assert site.get("/monitor/event?cursor=x", "hand").status_code == 404
    assert (
        site.get(f"/monitor/connections?q={'x' * 5000}&transport=pigeon", "eye").status_code == 200
    )


def test_reports_are_limited() -> None:
    """A page with an error in a loop fills nothing."""
    site = Site()
    for _ in range(REPORTS_PER_MINUTE):
        assert site.post("/report", {"message": "x"}).status_code in (202, 429)
    refused = site.post("/report", {"message": "x"})
    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "60"
    (group,) = site.get("/monitor", "eye").get_json()["errors"]["groups"]
    assert group["count"] <= REPORTS_PER_MINUTE


def test_prometheus_comes_with_a_key() -> None:
    """Since it cannot log in; without a key set there is no other way in than can_monitor."""
    key = {"Authorization": "Bearer 0123456789abcdef"}
    site = Site(METRICS_KEY="0123456789abcdef")
    assert site.get("/metrics", "", **key).status_code == 200
    assert site.get("/metrics", "", Authorization="Bearer 0123456789abcdeX").status_code == 401
    assert site.get("/metrics").status_code == 403
    assert site.get("/metrics", "eye").status_code == 200
    assert Site().get("/metrics", "", **key).status_code == 403


def test_rules_that_cannot_be_stop_the_application() -> None:
    """At init_app, not when the first alert would be due."""
    with pytest.raises(ValueError, match="HYBRID_ALERTS: there is no rule 'lag'"):
        Site(ALERTS={"lag": None})
    with pytest.raises(ValueError, match="HYBRID_ALERTS"):
        Site(ALERTS={"full": {"threshold": "high"}})


def test_ten_thousand_connections_are_a_number_and_pages() -> None:
    """What is pushed does not grow with them; the list comes in pages, found where it is."""
    site = Site(MAX_CONNECTIONS=20_000)
    state = site.app.extensions["hybrid"]
    hub = state.instance().hub

    def pushed() -> int:
        return len(to_json(state.monitor().state()))

    def open_more(count: int) -> None:
        for number in range(len(hub.connections), count):
            hub.open(
                Connection(
                    f"connection-{number:05}",
                    Identity(f"user-{number % 1000:03}"),
                    frozenset({f"topic-{number % 100}"}),
                    position=0,
                    transport="sse",
                    opened_at=hub.clock() - number,
                )
            )

    open_more(10)
    few = pushed()
    open_more(10_000)
    assert pushed() < few + 1000  # the numbers have more digits, the charts more seconds
    began = time.perf_counter()
    page = site.get("/monitor/connections?sort=age&page=20", "eye").get_json()
    print(f"page 20 of 10,000: {1000 * (time.perf_counter() - began):.0f} ms")
    assert (page["total"], page["pages"], len(page["rows"])) == (10_000, 20, 50)
    assert page["rows"][0]["id"] == f"connection-{10_000 - 19 * 50 - 1:05}"
    found = site.get("/monitor/connections?q=USER-007&sort=user", "eye").get_json()
    assert (found["total"], found["rows"][0]["user"]) == (10, "user-007")
    by_id = site.get("/monitor/connections?q=connection-00042", "eye").get_json()
    assert [row["id"] for row in by_id["rows"]] == ["connection-00042"]
    assert site.get("/monitor/connections?q=conn", "eye").get_json()["total"] == 0
    assert site.get("/monitor", "eye").get_json()["connections"]["open"] == 10_000
    for connection in list(hub.connections.values()):
        hub.close(connection, "client")
