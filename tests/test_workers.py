"""The whole application in several processes with a real Redis between them, and without it."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest

from engines import Engine, soon
from redises import Proxy, RedisServer, redis_server
from servers import DEADLINE, PREFIX, ROOT, RawStream, Server, free_port, gunicorn

pytestmark = pytest.mark.server

KEY = "the key of the tests"
KEEP = ("--appendonly", "yes", "--appendfsync", "always")
IDLE = float(os.environ.get("IDLE", "60"))
"""Seconds of silence, counted from the start of this file's tests."""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis", *KEEP) as server:
        yield server


@pytest.fixture
def serve(stack: ExitStack, tmp_path: Path) -> Any:
    """Start a server with these settings; one worker unless said otherwise."""

    def serve(url: str, *arguments: str, **settings: Any) -> Server:
        log = tmp_path / f"gunicorn{len(list(tmp_path.iterdir()))}.log"
        settings = {"probe_seconds": 0.5, "heartbeat_seconds": 0.5} | settings
        return stack.enter_context(gunicorn(log, *arguments, url=url, publish_key=KEY, **settings))

    return serve


def publish(server: Server, body: Any, query: str = "") -> tuple[int, Any]:
    return server.call("POST", f"{PREFIX}/publish{query}", body, {"Authorization": f"Bearer {KEY}"})


def until_bus(server: Server, state: str) -> None:
    server.until(lambda: server.monitor()["instance"]["bus"] == state, f"it is never {state}")


def cursors(stream: RawStream) -> list[str]:
    return [block.id or "" for block in stream.blocks if block.type == "tick"]


def stored(redis: RedisServer) -> dict[str, int]:
    """Event id to how often the log holds it."""
    with redis.client() as client:
        entries = client.xrange("{hybrid}:log")
    found: dict[str, int] = {}
    for _, fields in entries:
        found[fields["id"]] = found.get(fields["id"], 0) + 1
    return found


# -- silence

# Begun before all other tests of this file and judged after them: a minute costs nothing then.


class Quiet(NamedTuple):
    redis: RedisServer
    server: Server
    began: float
    frugal: bool


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Quiet]]:
    folder = tmp_path_factory.mktemp("quiet")
    with ExitStack() as stack:
        pairs = []
        for name in ("true", "false"):
            redis = stack.enter_context(redis_server(folder / f"redis-{name}"))
            server = stack.enter_context(gunicorn(folder / name, url=redis.url, frugal=name))
            stream = server.stream("user=alice")
            stream.hello()
            pairs.append(Quiet(redis, server, time.monotonic(), name == "true"))
        yield pairs


@pytest.fixture(scope="module", autouse=True)
def _begin_the_silence(quiet: Any) -> None:
    """Whatever is tested first."""


# -- any worker answers any request


def test_r43_four_workers_and_one_order(redis: RedisServer, serve: Any, seed: int) -> None:
    """Emitted by all at once, seen by all in one order, over streams and over polls."""
    dice = random.Random(seed)
    server = serve(redis.url, "-w", "4", heartbeat_seconds=5)
    streams = [server.stream(f"user=u{number}") for number in range(8)]
    for stream in streams:
        stream.hello()
    threads = [
        threading.Thread(target=lambda: [server.emit("tick", data=n) for n in range(25)])
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    orders = {tuple(block.id for block in stream.take(150)) for stream in streams}
    assert not any(None in order for order in orders), "provisional: Redis was out of reach"
    assert len(orders) == 1
    (order,) = orders
    assert len(set(order)) == 150
    # A poll a step, each answered by whichever worker is free.
    seen: list[str] = []
    cursor = "0"
    while len(seen) < 150:
        query = urlencode({"since": cursor, "limit": dice.choice([1, 7, 30])})
        status, body = server.call("GET", f"{PREFIX}/polling?{query}")
        assert status == 200
        assert body["gap"] is None
        seen += [event["cursor"] for event in body["events"]]
        cursor = body["cursor"]
    assert tuple(seen) == order


def test_disconnect_reaches_every_worker(redis: RedisServer, serve: Any) -> None:
    """Asked of one, done by all."""
    server = serve(redis.url, "-w", "3")
    streams = [server.stream("user=eve") for _ in range(9)]
    bystander = server.stream("user=alice")
    for stream in [*streams, bystander]:
        stream.hello()
    server.call("POST", "/disconnect?user=eve")
    for stream in streams:
        (bye,) = stream.take(1, "hybrid.bye")
        assert json.loads(bye.data)["reason"] == "kicked"
    server.emit("tick", data=1)
    bystander.take(1)


def test_r70_memory_with_two_workers_is_said_loudly(serve: Any) -> None:
    """In the log with the fix, in the health check, in the monitor."""
    server = serve("memory://", "-w", "2")
    stream = server.stream()
    stream.hello()
    _, ready = server.call("GET", f"{PREFIX}/health/ready")
    assert any("HYBRID_URL" in alert for alert in ready["alerts"])
    server.until(
        lambda: any("HYBRID_URL" in alert for alert in server.monitor()["instance"]["alerts"]),
        "the monitor does not say it",
    )
    assert "Fix: set HYBRID_URL=redis://" in server.log.read_text()
    alone = serve("memory://", "-w", "1")
    assert alone.call("GET", f"{PREFIX}/health/ready")[1]["alerts"] == []


def test_a_deaf_worker_is_not_ready(redis: RedisServer, serve: Any, stack: ExitStack) -> None:
    """Commands work and nothing arrives: it hears no canary of its own, and says so."""
    proxy = Proxy(redis.port)
    stack.callback(proxy.close)
    server = serve(proxy.url)
    assert server.call("GET", f"{PREFIX}/health/ready")[0] == 200
    proxy.deafen = True

    def answer() -> Any:
        return server.call("GET", f"{PREFIX}/health/ready")

    server.until(lambda: answer()[0] == 503, "it passes for ready")
    server.until(lambda: server.monitor()["instance"]["deaf"], "the monitor does not say it")
    assert any("deaf" in alert for alert in server.monitor()["instance"]["alerts"])
    proxy.deafen = False
    proxy.cut()
    server.until(lambda: answer()[0] == 200, "it never recovers")


# -- what an emit answers is true


def test_r48_what_was_answered_log_is_in_the_log(redis: RedisServer, serve: Any, seed: int) -> None:
    """Redis dies again and again in the middle of it; no answer was given too early."""
    dice = random.Random(seed)
    server = serve(redis.url, outbox_events=1_000_000, history_events=1_000_000)
    answers: dict[str, str] = {}
    stop = threading.Event()

    def emit() -> None:
        while not stop.is_set():
            try:
                status, answer = publish(server, {"type": "tick", "data": len(answers)})
            except (OSError, HTTPException):
                continue
            assert status in (201, 202), answer
            answers[answer["id"]] = answer["stored"]

    threads = [threading.Thread(target=emit) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(4):
        before = len(answers)
        server.until(lambda before=before: len(answers) > before + 20, "nothing is emitted")
        redis.kill()
        server.until(lambda: "outbox" in answers.values(), "it never notices")
        threading.Event().wait(dice.random() / 2)  # how long Redis is away
        redis.start(*KEEP)
        until_bus(server, "ok")
    stop.set()
    for thread in threads:
        thread.join(DEADLINE)
    until_bus(server, "ok")
    held = stored(redis)
    assert {"log", "outbox"} == set(answers.values())
    assert held.keys() >= answers.keys(), "kept and said so, and lost"
    assert set(held.values()) == {1}


def test_r51_how_many_replicas_have_it_is_reported(
    redis: RedisServer, serve: Any, tmp_path: Path, stack: ExitStack
) -> None:
    """None is reported as none: no failure, and no guess."""
    server = serve(redis.url)
    status, answer = publish(server, {"type": "tick"}, "?ack=replica")
    assert (status, answer["stored"], answer["replicas"]) == (201, "log", 0)
    replica = stack.enter_context(redis_server(tmp_path / "replica"))
    with replica.client() as follower, redis.client() as master:
        follower.replicaof("127.0.0.1", redis.port)
        # Not its state says when it follows, but that it confirms what was written.
        master.set("written", 1)
        assert master.wait(1, int(DEADLINE * 1000)) == 1

    def confirmed() -> list[int]:
        answers = publish(server, [{"type": "tick"}, {"type": "tick"}], "?ack=replica")[1]
        return [each["replicas"] for each in answers]

    # Fewer is no failure: a replica that got no turn within 250 ms has not confirmed.
    server.until(lambda: confirmed() == [1, 1], "no replica ever confirms")
    assert "replicas" not in publish(server, {"type": "tick"})[1]
    assert publish(server, {"type": "tick"}, "?ack=all")[0] == 400


def test_r62_a_killed_worker_loses_its_outbox_and_nothing_else(
    redis: RedisServer, serve: Any
) -> None:
    """What was answered `log` stays, what another worker kept is stored."""
    doomed, survivor = serve(redis.url), serve(redis.url)
    before = [publish(server, {"type": "tick"})[1] for server in (doomed, survivor)]
    redis.kill()
    lost = [publish(doomed, {"type": "tick"})[1] for _ in range(3)]
    kept = [publish(survivor, {"type": "tick"})[1] for _ in range(3)]
    assert {answer["stored"] for answer in lost + kept} == {"outbox"}
    doomed.kill()
    redis.start(*KEEP)
    until_bus(survivor, "ok")
    held = stored(redis)
    assert held.keys() == {answer["id"] for answer in before + kept}
    assert set(held.values()) == {1}


# -- clients in an outage


def test_r60_r61_a_client_that_moves_in_an_outage_keeps_its_place(
    redis: RedisServer, serve: Any
) -> None:
    """What is provisional has no cursor, so that any worker can go on from the last real one."""
    here, there = serve(redis.url), serve(redis.url)
    stream = here.stream("user=alice")
    stream.hello()
    publish(here, {"type": "tick", "data": 1})
    (first,) = stream.take(1)
    there.until(lambda: there.monitor()["events"]["kept"] == 1, "the other does not hear of it")
    redis.stop()
    status, kept = publish(here, {"type": "tick", "data": 2})
    assert (status, kept["stored"], kept["cursor"]) == (202, "outbox", None)
    provisional = stream.take(2)[1]
    assert provisional.id is None
    assert dict(provisional.fields)["eid"] == kept["id"]
    assert stream.parser.last_event_id == first.id, "a browser would come back with this"
    moved = there.stream("user=alice", headers={"Last-Event-ID": first.id or ""})
    assert moved.hello()["resumed"] is True
    poll = here.call("GET", f"{PREFIX}/polling?user=alice&since={first.id}")[1]
    assert [(event["id"], event["cursor"]) for event in poll["events"]] == [(kept["id"], None)]
    assert poll["bus"] == "degraded"
    redis.go_on()
    (arrived,) = moved.take(1)
    assert arrived.data == "2"
    assert arrived.id is not None
    assert first.id is not None
    assert arrived.id.split(".")[:3] == [first.id.split(".")[0], "2", kept["id"]]
    # Who had it as provisional is not sent the stored copy; the next event shows it.
    until_bus(here, "ok")
    publish(there, {"type": "tick", "data": 3})
    assert [block.data for block in stream.take(3)] == ["1", "2", "3"]
    assert [block.data for block in moved.take(2)] == ["2", "3"]
    states = [json.loads(b.data)["bus"] for b in stream.blocks if b.type == "hybrid.status"]
    assert states == ["degraded", "ok"]


@pytest.mark.browser
def test_r104_a_native_eventsource_hears_each_by_its_name(
    engine: Engine, redis: RedisServer, serve: Any
) -> None:
    """Gap, status, what is provisional and goodbye, in each engine's own EventSource."""
    server = serve(redis.url)
    engine.fresh()
    tab = engine.tab()
    tab.open(f"http://127.0.0.1:{server.port}{PREFIX}/client/hybrid.js")  # a page of this origin
    tab.run(
        "window.heard = []; window.source = new EventSource("
        f"'{PREFIX}/sse?user=alice&since=nonsense');"
        " for (const type of ['hybrid.gap', 'hybrid.status', 'hybrid.bye', 'tick'])"
        "   source.addEventListener(type, ({ data, lastEventId }) =>"
        "     heard.push([type, JSON.parse(data), lastEventId]))"
    )

    def heard(count: int) -> list[Any]:
        assert soon(tab, f"heard.length === {count}"), tab.run("return heard")
        return list(tab.run("return heard"))

    try:
        assert heard(1)[0][:2] == ["hybrid.gap", heard(1)[0][1] | {"reason": "invalid"}]
        cursor = publish(server, {"type": "tick", "data": 1})[1]["cursor"]
        assert heard(2)[1] == ["tick", 1, cursor]
        redis.stop()
        publish(server, {"type": "tick", "data": 2})
        degraded, provisional = sorted(heard(4)[2:])
        assert (degraded[0], degraded[1]["bus"]) == ("hybrid.status", "degraded")
        assert provisional == ["tick", 2, cursor], "it comes back with what is in the log"
        redis.go_on()
        back = heard(5)[4]
        assert (back[0], back[1]["bus"]) == ("hybrid.status", "ok")
        server.call("POST", "/disconnect?user=alice")
        goodbye = heard(6)[5]
        assert (goodbye[0], goodbye[1]["reason"]) == ("hybrid.bye", "kicked")
    finally:
        tab.run("source.close()")
        tab.close()


def test_r63_a_client_that_comes_in_an_outage_is_answered_afterwards(
    redis: RedisServer, serve: Any, stack: ExitStack
) -> None:
    """Replay for a cursor that was good, gap for one that was not; one of them, and once."""
    proxy = Proxy(redis.port)
    stack.callback(proxy.close)
    near, far = serve(redis.url), serve(proxy.url)
    publish(near, {"type": "tick", "data": 0})
    far.until(lambda: far.monitor()["events"]["kept"] == 1, "it does not hear")
    proxy.refuse = True
    proxy.cut()
    until_bus(far, "degraded")
    ahead = publish(near, {"type": "tick", "data": 1})[1]["cursor"]  # far cannot know of it
    good = far.stream(f"since={ahead}")
    bad = far.stream("since=another.5.event")
    for stream in (good, bad):
        hello = stream.hello()
        assert hello["resumed"] is None
        assert hello["cursor"] is None
        assert hello["bus"] == "degraded"
    poll = far.call("GET", f"{PREFIX}/polling?since={ahead}")[1]
    assert (poll["cursor"], poll["events"], poll["gap"]) == (ahead, [], None)
    proxy.refuse = False
    until_bus(far, "ok")
    publish(near, {"type": "tick", "data": 2})
    assert [block.data for block in good.take(1)] == ["2"]
    assert [block.data for block in bad.take(1)] == ["2"]
    assert not [block for block in good.blocks if block.type == "hybrid.gap"]
    gaps = [block for block in bad.blocks if block.type == "hybrid.gap"]
    assert [json.loads(gap.data)["reason"] for gap in gaps] == ["epoch"]


# -- Upstash, and whatever else wants TLS and a password


def certificate(folder: Path) -> tuple[str, str]:
    """A self-signed certificate for localhost: paths of certificate and key."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )
    return str(folder / "cert.pem"), str(folder / "key.pem")


@pytest.mark.parametrize("token", ["the right token", "a wrong token"])
def test_an_address_and_a_token_of_upstash_are_enough(
    token: str, tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS, checked; the user `default`; a refused login is explained and then lived with."""
    cert, key = certificate(tmp_path)
    plain = stack.enter_context(redis_server(tmp_path / "redis"))
    tls_port = free_port()
    plain.kill()
    plain.start(
        *("--tls-port", str(tls_port), "--tls-cert-file", cert, "--tls-key-file", key),
        *("--tls-auth-clients", "no", "--tls-ca-cert-file", cert),
    )
    with plain.client() as client:
        client.config_set("requirepass", "the right token")
    monkeypatch.setenv("UPSTASH_REDIS_REST_URL", "https://localhost")
    monkeypatch.setenv("UPSTASH_REDIS_REST_TOKEN", token)
    monkeypatch.setenv("UPSTASH_REDIS_PORT", str(tls_port))
    monkeypatch.setenv("SSL_CERT_FILE", cert)
    server = stack.enter_context(gunicorn(tmp_path / "log", heartbeat_seconds=0.5))
    stream = server.stream()
    right = token == "the right token"
    assert stream.hello()["bus"] == ("ok" if right else "degraded")
    server.emit("tick", data=1)
    assert [block.data for block in stream.take(1)] == ["1"], "delivered all the same"
    log = server.log.read_text()
    assert token not in log
    assert ("Redis refuses the login" in log) != right
    assert token not in json.dumps(server.monitor())


# -- Celery


def test_a_celery_task_publishes(
    redis: RedisServer, serve: Any, tmp_path: Path, stack: ExitStack
) -> None:
    """From forked workers of a real Celery, with a Publisher made at import."""
    (tmp_path / "tasks.py").write_text(
        "from celery import Celery\n"
        "from hybrid import Publisher\n"
        f"app = Celery('tasks', broker={redis.url!r})\n"
        f"publisher = Publisher({redis.url!r})\n"
        "@app.task(acks_late=True)\n"
        "def ship(number):\n"
        "    publisher.emit('tick', number, id=f'order-{number}')\n"
    )
    server = serve(redis.url)
    stream = server.stream()
    stream.hello()
    environ = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    with (tmp_path / "celery.log").open("w") as log:
        worker = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", "tasks", "worker", "-c", "2"),
                *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            ],
            cwd=tmp_path,
            env=environ,
            stdout=log,
            stderr=log,
        )
    stack.callback(worker.wait, DEADLINE)
    stack.callback(worker.send_signal, signal.SIGTERM)
    send = "import tasks\nfor n in [*range(10), *range(10)]: tasks.ship.delay(n)"
    subprocess.run([sys.executable, "-c", send], cwd=tmp_path, env=environ, check=True)
    numbers = sorted(int(block.data) for block in stream.take(10))
    assert numbers == list(range(10))
    # Stopped before it knows that its tasks are done, Celery's parent no longer listens to its
    # children, and they wait half a minute for it to.
    server.until(lambda: not under_way(redis) or worker.poll() is not None, "tasks are left over")
    assert len(stored(redis)) == 10, "a task that ran twice sent twice"


def under_way(redis: RedisServer) -> int:
    """Celery's tasks that wait, or that nobody has acknowledged yet."""
    with redis.client() as client:
        return int(client.llen("celery")) + int(client.hlen("unacked"))


# -- the end of the silence


@pytest.mark.parametrize("which", [0, 1], ids=["frugal", "as usual"])
def test_r66_an_idle_minute_breaks_nothing(quiet: list[Quiet], which: int) -> None:
    """No timeout of Redis' client, no reconnection, few commands; then an event, at once."""
    redis, server, began, frugal = quiet[which]
    time.sleep(max(0.0, IDLE - (time.monotonic() - began)))  # the silence itself
    log = server.log.read_text()
    assert "out of reach" not in log
    assert "Traceback" not in log
    with redis.client() as client:
        ours = [each for each in client.client_list() if each["name"] == "flask-hybrid"]
        scripts = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        total = client.info("stats")["total_commands_processed"]
    (listener,) = [each for each in ours if int(each["sub"])]
    assert int(listener["age"]) >= IDLE - 15, "it had to subscribe again"
    minutes = (time.monotonic() - began) / 60
    print(f"in {minutes:.1f} minutes of silence: {scripts} scripts, {total} commands with theirs")
    # What a start takes; then probes, leases of the places, the monitor's records.
    assert scripts <= 15 + (8 if frugal else 80) * minutes
    stream = server.streams[0]
    server.emit("tick", data="awake")
    assert [block.data for block in stream.take(1)] == ['"awake"']
    assert not [block for block in stream.blocks if block.type in ("hybrid.status", "hybrid.gap")]
