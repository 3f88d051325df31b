"""Events from outside of the application: other processes, other programs, a shell."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from hybrid import ConfigError, Hybrid, HybridError, InvalidEvent, NotStored, Publisher
from hybrid.bus.store import Store
from hybrid.events import Event
from redises import Proxy, RedisServer, redis_server
from servers import DEADLINE, ROOT

KEY = "the key of the tests"
URL = "/api/realtime/publish"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def publisher(server: RedisServer) -> Iterator[Publisher]:
    publisher = Publisher(server.url)
    yield publisher
    publisher.close()


def stored(server: RedisServer) -> list[Event]:
    store = Store(server.url, "hybrid")
    found = [event for _, event in store.read(None).entries]
    store.close()
    return found


# -- Publisher


def test_a_publisher_stores_events(server: RedisServer, publisher: Publisher) -> None:
    """With the id that it returns, for whom it says."""
    id = publisher.emit("a", {"n": 1}, users=["alice"], roles=["boss"], topics=["t"])
    (event,) = stored(server)
    assert (event.id, event.type, event.data) == (id, "a", {"n": 1})
    assert event.audience.users == {"alice"}
    assert not event.audience.everyone
    ids = publisher.emit_many([{"type": "b", "data": n} for n in range(3)] + [{"type": "c"}])
    assert [each.id for each in stored(server)][1:] == ids
    assert publisher.emit_many([]) == []


def test_a_publisher_imports_neither_flask_nor_gevent(server: RedisServer) -> None:
    """It runs in task queues that have neither, and that must not be patched."""
    script = (
        "import sys; from hybrid import Publisher\n"
        "Publisher(sys.argv[1]).emit('from.afar')\n"
        "assert not {'flask', 'gevent', 'werkzeug'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", script, server.url], check=True, cwd=ROOT)
    assert [event.type for event in stored(server)] == ["from.afar"]


def test_a_publisher_finds_redis_as_the_application_does(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the same variables of the environment."""
    monkeypatch.delenv("HYBRID_URL", raising=False)
    monkeypatch.setenv("REDIS_URL", server.url)
    monkeypatch.setenv("HYBRID_NAMESPACE", "shop")
    publisher = Publisher()
    publisher.emit("a")
    publisher.close()
    with server.client() as client:
        assert client.xlen("{shop}:log") == 1


def test_on_memory_it_refuses_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loudly: nobody would ever see what it sends."""
    for name in ("HYBRID_URL", "HYBRID_REDIS_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="redis://"):
        Publisher()
    with pytest.raises(ConfigError, match="redis://"):
        Publisher("memory://")


def test_a_publisher_refuses_what_emit_refuses(server: RedisServer, publisher: Publisher) -> None:
    """In the caller's stack, and before anything is stored."""
    wrongs: list[Any] = [{"type": "hybrid.bye"}, {"type": "a", "users": "al"}, {}, [], 5]
    for wrong in wrongs:
        with pytest.raises(InvalidEvent):
            publisher.emit_many([{"type": "fine"}, wrong])
    with pytest.raises(InvalidEvent):
        publisher.emit("a", float("nan"))
    assert stored(server) == []


def test_r45_a_task_that_runs_again_does_not_send_twice(
    server: RedisServer, publisher: Publisher
) -> None:
    """An id of one's own makes an emit repeatable."""
    for _ in range(3):
        assert publisher.emit("order.shipped", 17, id="order-17") == "order-17"
    assert len(stored(server)) == 1


def test_r44_a_lost_answer_is_no_second_event(server: RedisServer) -> None:
    """The retry within the budget carries the same id."""
    proxy = Proxy(server.port)
    publisher = Publisher(proxy.url, budget=10)
    try:
        publisher.emit("first")
        proxy.swallow = True
        heal = threading.Timer(0.7, setattr, (proxy, "swallow", False))
        heal.start()
        publisher.emit("second")
        heal.join()
        assert [event.type for event in stored(server)] == ["first", "second"]
    finally:
        publisher.close()
        proxy.close()


def test_a_publisher_refuses_ids_and_lists_at_once(publisher: Publisher) -> None:
    """What Redis' script would refuse, or be busy with for long."""
    for bad in ("bad id", "", "x" * 65):
        with pytest.raises(InvalidEvent, match="id"):
            publisher.emit("a", id=bad)
    with pytest.raises(InvalidEvent, match="1001"):
        publisher.emit_many([{"type": "a"}] * 1001)


def test_when_redis_is_away_it_says_so(server: RedisServer) -> None:
    """Within the budget, with the ids to try again with."""
    publisher = Publisher(server.url, budget=0.3)
    server.stop()
    with pytest.raises(NotStored) as caught:
        publisher.emit("a", id="mine")
    assert caught.value.ids == ["mine"]
    assert isinstance(caught.value, HybridError)
    server.go_on()
    publisher.emit("a", id="mine")
    assert len(stored(server)) == 1
    publisher.close()


def test_a_budget_is_used_and_kept(server: RedisServer) -> None:
    """It tries again as long as that lasts, and no longer, whatever holds it up."""
    proxy = Proxy(server.port)
    publisher = Publisher(proxy.url, budget=10)
    hasty = Publisher(proxy.url, budget=0.5)
    try:
        proxy.refuse = True
        heal = threading.Timer(0.5, setattr, (proxy, "refuse", False))
        heal.start()
        publisher.emit("patient")
        heal.join()
        proxy.delay = 0.35  # each answer is in time, a new connection is not
        began = time.monotonic()
        # On a busy machine one answer may be late after all.
        with pytest.raises(NotStored, match=r"0\.5 s|Timeout reading"):
            hasty.emit("hasty")
        print(f"given up after {time.monotonic() - began:.2f} s")
        assert time.monotonic() - began < 2.5, (
            "a connection is made in three seconds; the machine may be busy"
        )
        assert "patient" in [event.type for event in stored(server)]
    finally:
        hasty.close()
        publisher.close()
        proxy.close()


def test_threads_share_a_publisher(server: RedisServer, publisher: Publisher) -> None:
    """Each one's events in its order."""
    threads = [
        threading.Thread(
            target=lambda name=name: [publisher.emit(f"t{name}", n) for n in range(50)]
        )
        for name in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = stored(server)
    assert len(events) == 200
    for name in range(4):
        assert [event.data for event in events if event.type == f"t{name}"] == list(range(50))


def _emit_from_child(publisher: Publisher, name: str) -> None:
    for number in range(20):
        publisher.emit(name, number)


def test_a_fork_inherits_a_publisher(server: RedisServer, publisher: Publisher) -> None:
    """Parent and children each on connections of their own."""
    publisher.emit("parent", 0)
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=_emit_from_child, args=(publisher, f"child{n}")) for n in range(3)
    ]
    for child in children:
        child.start()
    for number in range(1, 20):
        publisher.emit("parent", number)
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    events = stored(server)
    for name in ("parent", "child0", "child1", "child2"):
        assert [event.data for event in events if event.type == name] == list(range(20))


def test_a_publisher_leaves_the_applications_bounds_alone(server: RedisServer) -> None:
    """It does not know them; they are kept with the log."""
    application = Store(server.url, "hybrid", max_events=5, max_seconds=60)
    application.found("epoch")
    publisher = Publisher(server.url)
    for _ in range(20):
        publisher.emit("a")
    assert len(stored(server)) == 5
    publisher.close()
    application.close()


# -- POST /publish


def make_app(**settings: Any) -> Flask:
    app = Flask("publishing")
    app.testing = True
    app.config.update({f"HYBRID_{name}": value for name, value in settings.items()})
    Hybrid(app)
    return app


@pytest.fixture
def client() -> Iterator[FlaskClient]:
    app = make_app(PUBLISH_KEY=KEY, URL="memory://", MAX_EVENT_BYTES=100)
    yield app.test_client()
    app.extensions["hybrid"].instance().stop()


def post(client: FlaskClient, body: Any, key: str | None = KEY, **headers: str) -> Any:
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    return client.post(URL, json=body, headers=headers)


def kept(client: FlaskClient) -> list[Any]:
    log = client.application.extensions["hybrid"].instance().log
    return [entry.event.data for entry in log.between(0, log.last)]


def test_publishing_is_off_without_a_key() -> None:
    """Nobody is let in by a default."""
    client = make_app(URL="memory://").test_client()
    assert post(client, {"type": "a"}).status_code == 404


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer \xe4"]
)
def test_a_wrong_key_is_refused(client: FlaskClient, header: str | None) -> None:
    """With the scheme that is wanted."""
    headers = {} if header is None else {"Authorization": header}
    response = client.post(URL, json={"type": "a"}, headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert kept(client) == []


def test_one_event_and_a_list(client: FlaskClient) -> None:
    """An answer for one, a list of answers for a list."""
    one = post(client, {"type": "a", "data": 1, "users": ["alice"]})
    assert one.status_code == 201
    assert one.get_json()["stored"] == "log"
    many = post(client, [{"type": "a", "data": n} for n in (2, 3)])
    assert many.status_code == 201
    assert [answer["stored"] for answer in many.get_json()] == ["log", "log"]
    assert kept(client) == [1, 2, 3]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ([], 400),
        ("text", 400),
        (5, 400),
        ([[]], 400),
        ({}, 400),
        ({"type": "a", "by": "me"}, 400),
        ({"type": "a", "data": 1, "text": "x"}, 400),
        ({"type": "hybrid.bye"}, 400),
        ({"type": "a", "users": "alice"}, 400),
        ([{"type": "a"}, {"type": ""}], 400),
        ([{"type": "a"}] * 1001, 400),
        ([{"type": "a"}, {"type": "a", "data": "x" * 200}], 413),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_bad_event_stores_nothing(client: FlaskClient, body: Any, status: int) -> None:
    """Nor does a good one beside it: all or none."""
    response = post(client, body)
    assert response.status_code == status
    assert response.content_type == "application/problem+json"
    assert kept(client) == []


def test_r46_an_idempotency_key_makes_it_one_event(client: FlaskClient) -> None:
    """The same key with other events is a mistake and said so."""
    body = [{"type": "a", "data": 1}, {"type": "a", "data": 2}]
    first = post(client, body, **{"Idempotency-Key": "k1"}).get_json()
    again = post(client, body, **{"Idempotency-Key": "k1"})
    assert again.status_code == 201
    assert [answer["id"] for answer in again.get_json()] == [answer["id"] for answer in first]
    changed = [body[0], {"type": "a", "data": 9}]
    other = post(client, changed, **{"Idempotency-Key": "k1"})
    assert other.status_code == 422
    for others in (body[:1], [*body, body[0]], [{"type": "b"}, *body], body[1:]):
        assert post(client, others, **{"Idempotency-Key": "k1"}).status_code == 422
    post(client, body, **{"Idempotency-Key": "k2"})
    assert kept(client) == [1, 2, 1, 2]


def test_r46_a_key_is_known_to_every_worker_and_in_an_outage(server: RedisServer) -> None:
    """Sent again to another one, or while Redis is away: one event, and no other in its place."""
    apps = [make_app(PUBLISH_KEY=KEY, URL=server.url) for _ in range(2)]
    one, other = (app.test_client() for app in apps)
    try:
        first = post(one, {"type": "a", "data": 1}, **{"Idempotency-Key": "k1"})
        again = post(other, {"type": "a", "data": 1}, **{"Idempotency-Key": "k1"})
        assert (first.status_code, again.status_code) == (201, 201)
        assert first.get_json()["cursor"] == again.get_json()["cursor"]
        assert post(other, {"type": "a", "data": 2}, **{"Idempotency-Key": "k1"}).status_code == 422
        server.kill()
        for client in (one, one, other):
            waiting = post(client, {"type": "b"}, **{"Idempotency-Key": "k2"})
            assert (waiting.status_code, waiting.get_json()["stored"]) == (202, "outbox")
        assert post(one, {"type": "c"}, **{"Idempotency-Key": "k2"}).status_code == 422
        server.start()
        for app in apps:
            bus = app.extensions["hybrid"].instance().bus
            assert bus.flush(20) == 0
        assert [event.type for event in stored(server)] == ["b"]
    finally:
        for app in apps:
            app.extensions["hybrid"].instance().stop()


def test_r49_what_is_not_stored_is_no_success(server: RedisServer) -> None:
    """202 while it waits, 503 when it cannot even do that."""
    app = make_app(PUBLISH_KEY=KEY, URL=server.url, OUTBOX_EVENTS=2)
    client = app.test_client()
    assert post(client, {"type": "a"}).status_code == 201
    server.kill()
    waiting = post(client, [{"type": "a"}, {"type": "a"}])
    assert waiting.status_code == 202
    assert [answer["stored"] for answer in waiting.get_json()] == ["outbox", "outbox"]
    assert [answer["cursor"] for answer in waiting.get_json()] == [None, None]
    full = post(client, {"type": "a"})
    assert full.status_code == 503
    assert int(full.headers["Retry-After"]) > 0
    app.extensions["hybrid"].instance().stop()


# -- the shell


def flask(
    *arguments: str, url: str, environ: dict[str, str] | None = None, **options: Any
) -> "subprocess.CompletedProcess[str]":
    environ = (
        os.environ
        | (environ or {})
        | {"HYBRID_URL": url, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    )
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", "server_app", "hybrid", *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


def test_flask_hybrid_emit_and_tail(server: RedisServer) -> None:
    """What one shell sends, another shows."""
    sent = flask("emit", "a.b", '{"n": 1}', "--user", "alice", "--topic", "t", url=server.url)
    assert sent.returncode == 0, sent.stderr
    text = flask("emit", "html", "--text", "<b>", url=server.url)
    assert text.returncode == 0, text.stderr
    shown = flask("tail", "--since", "0", "--count", "2", url=server.url)
    assert shown.returncode == 0, shown.stderr
    first, second = map(json.loads, shown.stdout.splitlines())
    assert first["id"] == sent.stdout.strip()
    assert (first["type"], first["data"], first["users"]) == ("a.b", {"n": 1}, ["alice"])
    assert (second["type"], second["text"]) == ("html", "<b>")
    rest = flask("tail", "--since", first["cursor"], "--count", "1", url=server.url)
    assert json.loads(rest.stdout) == second


def test_flask_hybrid_emit_keeps_the_bound_of_an_event(server: RedisServer) -> None:
    """That of the application, which would take no larger one itself."""
    bound = {"HYBRID_MAX_EVENT_BYTES": "1024"}
    refused = flask("emit", "a", "--text", "x" * 1025, url=server.url, environ=bound)
    assert refused.returncode != 0
    assert "1024" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert stored(server) == []
    sent = flask("emit", "a", "--text", "x" * 1000, url=server.url, environ=bound)
    assert sent.returncode == 0, sent.stderr


# What a script does with an application of its own, and that it ends right after that.
SCRIPT = """
import sys, flask
from hybrid import Hybrid
app = flask.Flask("script")
app.config["HYBRID_URL"] = sys.argv[1]
hybrid = Hybrid(app)
with app.app_context():
    hybrid.cursor()
    print("connected", flush=True)
    for word in sys.stdin:
        hybrid.emit(word.strip())
        print(app.extensions["hybrid"].instance().bus.waiting, flush=True)
"""


def test_r62_what_a_script_emits_is_stored_when_it_has_ended(server: RedisServer) -> None:
    """At once where it was told so, and out of its outbox as far as a moment suffices."""
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, server.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert script.stdin is not None
    assert script.stdout is not None
    with script:
        assert script.stdout.readline() == "connected\n"
        print("first", file=script.stdin, flush=True)
        assert script.stdout.readline() == "0\n"
        assert [event.type for event in stored(server)] == ["first"]
        server.stop()
        print("second", file=script.stdin, flush=True)
        assert script.stdout.readline() == "1\n"
        script.stdin.close()
        server.go_on()
        assert script.wait(DEADLINE) == 0
    assert [event.type for event in stored(server)] == ["first", "second"]


def _emit_from_fork(app: Flask, name: str) -> None:
    hybrid = app.extensions["hybrid"].hybrid
    with app.app_context():
        for _ in range(5):
            hybrid.emit(name)


def test_a_fork_of_an_application_emits_by_itself(server: RedisServer) -> None:
    """As with preload_app and in task queues: threads are not inherited, and nobody needs them."""
    app = make_app(URL=server.url)
    try:
        _emit_from_fork(app, "parent")
        context = multiprocessing.get_context("fork")
        children = [
            context.Process(target=_emit_from_fork, args=(app, f"child{n}")) for n in range(2)
        ]
        for child in children:
            child.start()
        _emit_from_fork(app, "parent")
        for child in children:
            child.join(30)
            assert child.exitcode == 0
    finally:
        app.extensions["hybrid"].instance().stop()
    counts = Counter(event.type for event in stored(server))
    assert counts == {"parent": 10, "child0": 5, "child1": 5}


def test_flask_hybrid_explains_itself(server: RedisServer) -> None:
    """Mistakes are sentences, not tracebacks."""
    for arguments, url, told in [
        (["tail"], "redis://127.0.0.1:1", "Redis is out of reach"),
        (["emit", "a"], "memory://", "redis://"),
        (["tail"], "memory://", "redis://"),
        (["emit", "a", "text"], server.url, "not JSON"),
        (["emit", "hybrid.bye"], server.url, "reserved"),
        (["tail", "--since", "x"], server.url, "no cursor"),
    ]:
        done = flask(*arguments, url=url)
        assert done.returncode != 0
        assert told in done.stderr
        assert "Traceback" not in done.stderr


def test_an_encoder_of_ones_own_cannot_break_a_frame(server: RedisServer) -> None:
    """One that indents sends the same on one line; what is no JSON is refused here."""
    with_breaks = Publisher(server.url, encode=lambda data: json.dumps(data, indent=1))
    with_breaks.emit("indented", {"a": [1, "ë"]})
    with pytest.raises(InvalidEvent, match="data is not JSON"):
        with_breaks.emit("nan", float("nan"))
    with_breaks.close()
    (event,) = stored(server)
    assert event.data == {"a": [1, "ë"]}
    assert "\n" not in event.body
