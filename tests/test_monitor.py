"""The monitor over real workers and a real Redis: its figures against what really happened."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psutil
import pytest

from redises import RedisServer, redis_server
from servers import DEADLINE, PREFIX, ROOT, RawStream, Server, gunicorn
from whatwg import Block

pytestmark = pytest.mark.server

BLOCKED_MS = 3000
"""How long a test blocks an event loop: far longer than a busy machine ever holds one up."""
SEEN_MS = BLOCKED_MS - 250
"""What of that is seen at least, by a timer that rings four times a second."""
RULES = {
    "loop_lag": {"threshold": SEEN_MS - 250, "clear": SEEN_MS - 250, "hold": 0, "rest": 0},
    "redis_away": {"hold": 1, "rest": 1},
    # What a busy machine would raise by itself.
    "redis_slow": None,
    "event_rate": None,
}


@dataclass
class Hook:
    """A webhook: what was posted to it."""

    url: str
    posts: list[dict[str, Any]] = field(default_factory=list)

    def changes(self, rule: str) -> list[str]:
        return [post["kind"] for post in self.posts if post["rule"] == rule]


@pytest.fixture(scope="module")
def hook() -> Iterator[Hook]:
    posts: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Not into the test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Hook(f"http://127.0.0.1:{server.server_port}/", posts)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, redis: RedisServer, hook: Hook
) -> Iterator[Server]:
    """Two workers that see each other; one of them keeps the history."""
    with (
        gunicorn(
            tmp_path_factory.mktemp("server") / "log",
            *("-w", "2"),
            app="monitor_app:app",
            url=redis.url,
            monitor_seconds=1,
            metrics_key="the key of the tests",
            alert_webhook=hook.url,
            alerts=json.dumps(RULES),
        ) as server,
        redis.client() as client,
    ):
        # A worker begins to tell of itself with its first request.
        until(lambda: len(server.monitor()["instances"]) == 2, "two workers never saw each other")
        until(lambda: client.get("{hybrid}:keeper"), "no worker keeps the history")
        yield server


def until(what: Any, why: Any, seconds: float = DEADLINE + 20) -> Any:
    """Ask again and again until it says so; what it said."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, why() if callable(why) else why
        time.sleep(0.1)
    return found


def until_worker_says(server: Server, pid: int, what: Callable[[Any], bool]) -> None:
    """Ask until what this worker answers is so; any of them may answer."""
    seen: dict[int, Any] = {}

    def says() -> bool:
        picture = server.monitor()
        seen[picture["instance"]["pid"]] = picture
        return pid in seen and what(seen[pid])

    until(says, lambda: json.dumps({of: seen[of]["instance"] for of in seen}))


def workers(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def history(server: Server) -> Any:
    return server.call("GET", f"{PREFIX}/monitor/history?range=5m")[1]


def holes(server: Server, first: int, last: int) -> set[int]:
    """The seconds that the history lacks, but for those in which the machine let no worker run:
    of such a one the next second says how long the loop was held up."""
    table = history(server)
    lag = dict(zip(table["at"], table["lag"], strict=True))
    held_up = {at - 1 for at, ms in lag.items() if ms >= 500}
    return set(range(first, last + 1)) - lag.keys() - held_up


def pictures(server: Server) -> Iterator[tuple[int, Any]]:
    """The picture as each worker has it, by its pid."""
    seen: dict[int, Any] = {}
    while len(seen) < 2:
        picture = server.monitor()
        seen[picture["instance"]["pid"]] = picture
    yield from seen.items()


def size(block: Block) -> int:
    """Of the block's frame, in bytes."""
    return len(f"id: {block.id}\nat: 1234567890123\nevent: {block.type}\ndata: {block.data}\n\n")


@dataclass
class Script:
    """What a scripted run did, for all tests that look at what is told of it."""

    received: int
    """Bytes that all clients together were sent of events."""
    news: int
    """Bytes of the five events that went to the topic `open`, as each reader was sent them."""
    theirs: list[RawStream]
    """The streams of r0, r1 and r2, which began with a cursor."""


@pytest.fixture(scope="module")
def script(server: Server) -> Script:
    """Connects, resumes, gaps, refusals, polls, events, endings."""
    plain = [server.stream(f"user=u{n}&topic=open") for n in range(7)]
    resumed = [server.stream(f"user=r{n}&since=0") for n in range(3)]
    broken = [server.stream(f"user=b{n}&since=nonsense") for n in range(2)]
    streams = plain + resumed + broken
    for stream in streams:
        stream.hello()
    for _ in range(2):
        status, _ = server.call("GET", f"{PREFIX}/sse?user=x&topic=closed")
        assert status == 403
    for client in ("p1", "p2", "p3", "p1"):
        server.call("GET", f"{PREFIX}/polling?user={client}")
    server.emit("tick", data="x" * 50, count=20)
    server.emit("news", data=1, topics=["open"], count=5)
    received = 0
    for stream in streams:
        blocks = stream.take(20) + (stream.take(5, "news") if stream in plain else [])
        received += sum(map(size, blocks))
    for stream in plain[:4]:
        stream.close()

    news = sum(map(size, plain[-1].take(5, "news")))

    def settled() -> bool:
        return all(
            sum(picture["connections"]["closed"].values()) == 4
            and picture["events"]["delivered"] == 12 * 20 + 7 * 5
            for _, picture in pictures(server)
        )

    until(settled, lambda: json.dumps(server.monitor()))
    return Script(received, news, resumed)


def test_the_figures_are_what_a_scripted_run_did(server: Server, script: Script) -> None:
    """Connects, resumes, gaps, events, bytes, polls, refusals, endings: exact, in the whole
    deployment, whichever worker is asked."""
    for _, picture in pictures(server):
        connections, events = picture["connections"], picture["events"]
        assert connections["open"] == 8
        assert connections["by_transport"] == {"sse": 8, "polling": 0}
        assert connections["opened_by_transport"] == {"sse": 12}
        assert connections["closed"] == {"client": 4}
        assert connections["resumes"] == {"full": 3, "gap": 2}
        assert connections["polls"] == 4
        assert connections["topics"] == {"open": 3}
        assert events["emitted"] == 25
        assert events["by_type"] == {"tick": 20, "news": 5}
        assert events["delivered_bytes"] == script.received
        (topic,) = events["topics"].items()
        assert topic[0] == "open"
        assert topic[1]["per_second"] == round(5 / 60, 3)
        assert topic[1]["bytes_per_second"] == round(script.news / 60, 1)
        assert events["gaps"] == {"invalid": 2}
        assert picture["errors"]["responses"]["403"] == 2
        assert {row["pid"] for row in picture["instances"]} == {w.pid for w in workers(server)}
        assert sum(row["connections"] for row in picture["instances"]) == 8
        assert picture["state"] == "ok"

    def polled() -> bool:
        # a client counts for 15 s after its poll, so it polls again until both workers say so
        for client in ("p1", "p2", "p3"):
            server.call("GET", f"{PREFIX}/polling?user={client}")
        return all(
            picture["connections"]["clients"] == {"sse": 8, "polling": 3}
            and picture["connections"]["fallback_share"] == pytest.approx(3 / 11)
            for _, picture in pictures(server)
        )

    until(polled, lambda: json.dumps(server.monitor()["connections"]))

    def complete() -> Any:
        table = history(server)
        told = {name: sum(table[name]) for name in ("opened", "closed", "emitted", "delivered")}
        wanted = {"opened": 12, "closed": 4, "emitted": 25, "delivered": 275}
        return table if told == wanted and table["sse"][-1] == 8 else None

    table = until(complete, lambda: json.dumps(history(server)))
    assert sum(table["stored"]) == 25
    assert sum(table["bytes"]) == script.received
    assert max(table["polling"]) == 3
    assert table["at"] == sorted(set(table["at"]))
    latency = [value for value in table["p99"] if value is not None]
    assert latency
    assert all(0 < value < DEADLINE * 1000 for value in latency)


def test_each_figure_of_a_process_is_that_of_the_system(server: Server, script: Script) -> None:
    """Memory, CPU, uptime, pid: against what the system says of the process."""
    for pid, picture in pictures(server):
        process = psutil.Process(pid)
        (row,) = [row for row in picture["instances"] if row["pid"] == pid]
        assert row["memory_bytes"] == pytest.approx(process.memory_info().rss, rel=0.1)
        assert row["uptime_seconds"] <= time.time() - process.create_time() + 1
        cpu = process.cpu_times()
        assert picture["performance"]["cpu_seconds"] <= 2 * (cpu.user + cpu.system) + 5
        assert 0 < row["redis_ms"] < DEADLINE * 1000


def test_connections_are_found_sorted_and_ended_wherever_they_are(
    server: Server, script: Script
) -> None:
    """Across workers: each asks the other, and the other ends what it holds."""

    def rows(query: str) -> Any:
        def asked() -> Any:
            status, found = server.call("GET", f"{PREFIX}/monitor/connections?{query}")
            assert status == 200, found
            return found if found["missing"] == [] else None

        return until(asked, "not all workers answer in time")

    found = rows("sort=user&order=asc")
    assert " ".join(row["user"] for row in found["rows"]) == "b0 b1 r0 r1 r2 u4 u5 u6"
    assert (found["total"], found["page"], found["pages"]) == (8, 1, 1)
    assert len({row["instance"] for row in found["rows"]}) in (1, 2)
    assert [row["user"] for row in rows("q=OPEN&sort=user")["rows"]] == ["u6", "u5", "u4"]
    assert rows("q=nobody")["rows"] == []
    assert rows("transport=polling")["total"] == 0
    for row in rows("q=r")["rows"]:
        status, _ = server.call(
            "POST", f"{PREFIX}/monitor/disconnect?user=boss", {"connection": row["id"]}
        )
        assert status == 200
    for stream in script.theirs:
        (bye,) = stream.take(1, "hybrid.bye")
        assert json.loads(bye.data)["reason"] == "kicked"
    until(lambda: rows("q=r")["total"] == 0, "they are still there")
    status, _ = server.call("POST", f"{PREFIX}/monitor/disconnect?user=boss", {"connection": "x"})
    assert status == 404
    text = server.log.read_text()
    assert "'boss' from 127.0.0.1: disconnect the connection" in text


def test_prometheus_and_the_shell_say_the_same(
    server: Server, redis: RedisServer, script: Script
) -> None:
    """The text format with the deployment's figures, and a table in a terminal."""
    key = {"Authorization": "Bearer the key of the tests"}
    status, text = server.call("GET", f"{PREFIX}/metrics?user=guest", headers=key)
    assert status == 200
    figures = dict(re.findall(r"^(hybrid_[^ ]+) (\S+)$", text, re.MULTILINE))
    assert figures["hybrid_events_emitted_total"] == "25.0"
    assert figures['hybrid_connections_opened_total{transport="sse"}'] == "12.0"
    assert figures['hybrid_gaps_total{reason="invalid"}'] == "2.0"
    assert figures["hybrid_delivery_seconds_count"] == "275.0"
    assert figures["hybrid_instances"] == "2.0"
    shown = (ROOT / "docs" / "grafana-dashboard.json").read_text()
    exposed = set(re.findall(r"^(?:# TYPE )?(hybrid_\w+)", text, re.MULTILINE))
    wanted = set(re.findall(r"hybrid_\w+", shown))
    assert wanted - exposed == set()
    bad = {"Authorization": "Bearer another key"}
    assert server.call("GET", f"{PREFIX}/metrics?user=boss", headers=bad)[0] == 401
    assert server.call("GET", f"{PREFIX}/metrics?user=guest")[0] == 403
    environ = os.environ | {
        "HYBRID_URL": redis.url,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }

    def stats(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flask", "--app", "server_app", "hybrid", "stats", *arguments],
            env=environ | variables,
            cwd=ROOT / "tests",
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )

    table = stats()
    assert table.returncode == 0, table.stderr
    assert "25 emitted so far" in table.stdout
    for worker in workers(server):
        assert f":{worker.pid} " in table.stdout
    url = f"http://127.0.0.1:{server.port}{PREFIX}/monitor"
    asked = stats("--json", "--url", url, HYBRID_URL="memory://")
    assert json.loads(asked.stdout)["events"]["emitted"] == 25
    refused = stats(HYBRID_URL="memory://")
    assert refused.returncode == 1
    assert "--url" in refused.stderr


def test_a_blocked_loop_is_seen_and_raised_once(server: Server, hook: Hook) -> None:
    """Three seconds without a switch show as at least 2.75 s, in the worker that had them."""
    assert server.call("POST", f"/block?seconds={BLOCKED_MS / 1000}")[0] == 200
    until(
        lambda: max(history(server)["lag"], default=0) >= SEEN_MS,
        lambda: str(history(server)["lag"]),
    )
    rows = server.monitor()["instances"]
    until(lambda: "resolved" in hook.changes("loop_lag"), lambda: str(hook.posts))
    assert hook.changes("loop_lag") == ["raised", "resolved"]
    (raised, _) = [post for post in hook.posts if post["rule"] == "loop_lag"]
    assert raised["value"] >= SEEN_MS
    assert "the event loop was busy for" in raised["why"]
    assert raised["text"].startswith("warning: loop_lag raised: ")
    assert sum(row["loop_lag_ms"] >= SEEN_MS for row in rows) <= 1


def test_a_redis_stall_is_one_alert_and_leaves_no_hole(
    server: Server, redis: RedisServer, hook: Hook
) -> None:
    """Raised by the keeper alone while Redis is away, and seen in the page of each worker;
    resolved when it is back; the seconds of the stall are in the history afterwards."""
    began = time.time()
    redis.stop()
    try:
        until(lambda: "raised" in hook.changes("redis_away"), lambda: str(hook.posts))
        # Each finds out by itself, after HYBRID_PROBE_SECONDS of silence at the latest.
        for worker in workers(server):
            until_worker_says(
                server,
                worker.pid,
                lambda picture: (
                    picture["instance"]["bus"] == "degraded" and picture["state"] == "critical"
                ),
            )
    finally:
        redis.go_on()
    ended = time.time()
    until(lambda: "resolved" in hook.changes("redis_away"), lambda: str(hook.posts))
    assert hook.changes("redis_away") == ["raised", "resolved"]

    until(
        lambda: not holes(server, int(began) + 1, int(ended) - 1),
        lambda: f"{began} to {ended}: {history(server)['at']}",
    )
    until(lambda: server.monitor()["state"] == "ok", lambda: json.dumps(server.monitor()["alerts"]))


def test_a_killed_worker_shows_as_gone_and_the_history_goes_on(
    server: Server, redis: RedisServer, hook: Hook
) -> None:
    """Kill the keeper itself: another takes over, raises the alert once, and neither loses nor
    repeats a second."""
    with redis.client() as client:
        keeper = client.get("{hybrid}:keeper")
    rows = server.monitor()["instances"]
    (pid,) = [row["pid"] for row in rows if row["id"] == keeper]
    os.kill(pid, signal.SIGKILL)

    def state(of: int) -> Any:
        return {row["pid"]: row["state"] for row in server.monitor()["instances"]}.get(of)

    until(lambda: state(pid) == "gone", lambda: str(server.monitor()["instances"]), 60)
    until(lambda: "raised" in hook.changes("instance_gone"), lambda: str(hook.posts), 60)
    with redis.client() as client:
        heir = client.get("{hybrid}:keeper")
        assert heir not in (None, keeper)
        assert 0 < client.ttl(f"{{hybrid}}:instance:{keeper}") <= 600
    died = time.time()
    until(lambda: history(server)["at"][-1] > died, "the history does not go on")
    at = history(server)["at"]
    assert Counter(at).most_common(1)[0][1] == 1
    assert at == sorted(at)
    since = [second for second in at if second > died - 20]
    assert not holes(server, since[0], since[-1])
    assert hook.changes("instance_gone") == ["raised"]
    posts = [post for post in hook.posts if post["rule"] == "instance_gone"]
    assert f":{pid}" in posts[0]["why"]
    server.until(lambda: len(workers(server)) == 2, "gunicorn did not replace it")


def test_what_the_monitor_is_sent_is_in_no_figure(server: Server) -> None:
    """Its own stream and polls are counted nowhere, and its states are not in the log."""
    before = server.monitor()
    with server.stream(path="/monitor/sse") as watching:
        watching.take(3, "monitor")
        _, answer = server.call("GET", f"{PREFIX}/monitor/polling")
        assert [event["type"] for event in answer["events"]] == ["monitor"]
        after = server.monitor()
    for part, names in (
        ("connections", ("open", "opened", "polls", "clients")),
        ("events", ("emitted", "delivered", "delivered_bytes", "cursor")),
    ):
        assert [after[part][name] for name in names] == [before[part][name] for name in names]


def test_workers_that_are_replaced_are_not_missed(server: Server, hook: Hook) -> None:
    """A reload ends them on purpose: they leave, and no alert says that they died."""
    old = {worker.pid for worker in workers(server)}
    raised = len(hook.changes("instance_gone"))
    server.process.send_signal(signal.SIGHUP)

    def replaced() -> bool:
        rows = server.monitor()["instances"]
        live = {row["pid"] for row in rows if row["state"] != "gone"}
        return len(live) == 2 and not old & {row["pid"] for row in rows}

    until(replaced, lambda: str(server.monitor()["instances"]))
    assert len(hook.changes("instance_gone")) == raised
