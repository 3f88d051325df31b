"""Types below `hybrid.` that come through Redis: who may write them, and what becomes of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from hybrid.audience import Audience
from hybrid.bus.store import PUBLISH, PUBLISH_OWN, Foreign, Store, decode, following
from hybrid.events import CONTROLS, Event
from hybrid.shutout import ENDINGS, ShutOut
from redises import RedisServer, redis_server
from test_redis import NAMESPACE, Worker

FORGED = [
    "hybrid.bye",
    "hybrid.hello",
    "hybrid.joined",
    "hybrid.",
    "hybrid.x\nid: evil\nevent: pwn",
    "hybrid.revoke\n",
]
"""What no log may hand out."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def worker(server: RedisServer) -> Iterator[Worker]:
    worker = Worker(server.url).start()
    yield worker
    worker.stop()


def test_the_script_for_other_programs_refuses_the_protocols_own_types(
    server: RedisServer, worker: Worker
) -> None:
    """However they are spelled, alone or behind others, of which none is stored then."""
    with server.client() as client:
        script = client.register_script(PUBLISH)

        def publish(*events: str) -> Any:
            named = [text for number, event in enumerate(events) for text in (f"i{number}", event)]
            arguments = [worker.store.channel, "e", "", "", "", *named]
            return script(keys=worker.store.keys, args=arguments)

        for type in (*FORGED, *CONTROLS):
            with pytest.raises(redis.ResponseError, match="reserved for the protocol"):
                publish('{"type":"fine"}', json.dumps({"type": type, "data": {"user": "alice"}}))
        for event in (
            '{"type":"\\u0068ybrid.revoke","data":{"user":"alice"}}',
            '{"type":"fine","type":"hybrid.revoke","data":{"user":"alice"}}',
        ):
            with pytest.raises(redis.ResponseError, match="reserved for the protocol"):
                publish(event)
        for event in ("", "{", "[]", '"hybrid.revoke"', '{"type":5}', "{}"):
            with pytest.raises(redis.ResponseError, match="JSON object with a type"):
                publish(event)
        assert client.xlen(worker.store.keys[0]) == 0
        publish('{"type":"hybrids.are.fine"}', '{"type":"Hybrid.revoke"}')
        worker.until(lambda: worker.bus.log.last == 2, "it never arrives")
    assert worker.ears.of("control") == []


def test_the_packages_own_script_is_the_same_without_that_check() -> None:
    """One line differs."""
    ours, theirs = PUBLISH_OWN.splitlines(), PUBLISH.splitlines()
    assert [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b] == [
        ("local OWN = true", "local OWN = false")
    ]


@pytest.mark.parametrize("type", FORGED)
def test_what_gets_past_the_script_is_shown_to_nobody(type: str) -> None:
    """Written to the stream itself: it takes a place, and neither its type nor its audience."""
    event = decode("a", json.dumps({"type": type, "topics": ["news"]}), 17)
    assert event == Event("a", "hybrid.invalid", "null", 17, Audience())


@pytest.mark.parametrize("type", CONTROLS)
def test_orders_are_obeyed_and_shown_to_nobody(type: str) -> None:
    """Whatever audience they bring."""
    for audience in ({}, {"users": ["alice"]}, {"topics": ["news"]}):
        event = decode("a", json.dumps({"type": type, "data": {"user": "eve"}, **audience}), 17)
        assert (event.type, event.data, event.audience) == (type, {"user": "eve"}, Audience())


def test_the_table_names_what_is_acted_on() -> None:
    assert {type for type, what in CONTROLS.items() if what == "acted on"} == set(ENDINGS)


@pytest.mark.parametrize("data", ["null", "[]", "{}", '{"user":null}', '{"user":5}'])
def test_an_order_without_a_user_ends_nobody(data: str) -> None:
    """Not even a user who is called None."""
    event = decode("a", f'{{"type":"hybrid.revoke","data":{data}}}', 17)
    assert ShutOut(lambda: 1.0, lambda: 17).ordered(event) is None


@pytest.mark.parametrize(
    ("epoch", "prev", "id"),
    [
        ("e\nevent: pwn", "origin", "a"),
        ("e", "o.\nid: x", "a"),
        ("e", "origin", "a\nb"),
        ("", "origin", "a"),
        ("e" * 65, "origin", "a"),
        ("e", "origin", "a.b"),
    ],
)
def test_a_position_of_another_form_is_none(epoch: str, prev: str, id: str) -> None:
    """It would be written into streams, as their `id:` line."""
    with pytest.raises(Foreign):
        following(epoch, 1, prev, id)


def test_an_epoch_that_could_forge_lines_is_refused(server: RedisServer, worker: Worker) -> None:
    """Nothing is stored behind it and nobody takes it up; the log says what to do."""
    worker.emit(1)
    head = worker.bus.log.head
    meta = worker.store.keys[1]
    with server.client() as client:
        client.hset(meta, "epoch", "e\nevent: pwn")
        assert worker.emit(1) == ["outbox"]
        worker.until(lambda: "no cursor can have" in worker.bus.trouble, "it is not told")
        assert worker.bus.log.head == head
        store = Store(server.url, NAMESPACE)
        with pytest.raises(Foreign):
            store.read(None)
        store.close()
        client.hset(meta, "epoch", head.epoch)
    worker.until_ok()
    worker.until(lambda: len(worker.numbers_held()) == 2, "the outbox is not stored")
