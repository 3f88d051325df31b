"""What other programs write to the shared log: their events, and nothing of the protocol's own."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from hybrid.bus.store import LUA, own_publish
from hybrid.events import ENDINGS
from redises import RedisServer, redis_server
from sites import Site, types

KEYS = ("{app}:log", "{app}:meta", "{app}:ids")
CHANNEL = "{app}:events"
ALICE = {"X-User": "alice"}
FORGED = "a\r\nid: evil\r\nevent: pwn\r\ndata: 1\r\n\r\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as running:
        yield running


@pytest.fixture
def site(server: RedisServer) -> Iterator[Site]:
    found = Site(URL=server.url, HEARTBEAT_SECONDS=25, NAMESPACE="app")
    yield found
    found.app.extensions["hybrid"].forget()


def run(client: "redis.Redis", script: str, *events: str) -> Any:
    """Store events as another program does: ids and JSON in turn."""
    arguments = [CHANNEL, "epoch", "", "", "", *events]
    return client.register_script(script)(keys=KEYS, args=arguments)


def documented() -> str:
    return (LUA / "publish.lua").read_text()


@pytest.mark.parametrize(
    "event",
    [
        json.dumps({"type": "hybrid.bye", "data": {"reason": "full", "after": 0}}),
        json.dumps({"type": "hybrid.revoke", "data": {"user": "alice"}}),
        json.dumps({"type": "hybrid.disconnect", "data": {"user": "alice"}}),
        json.dumps({"type": "hybrid.x\nid: evil\nevent: pwn"}),
        '{"type":"\\u0068ybrid.bye"}',
        '{"type":"tick","type":"hybrid.bye"}',
        '{"data":1}',
        '{"type":1}',
        '"hybrid.bye"',
        "tick",
    ],
)
def test_the_documented_script_stores_no_event_of_the_protocol(
    server: RedisServer, event: str
) -> None:
    """Nor what is no event; what was handed in with it is not stored either."""
    with server.client() as client:
        with pytest.raises(redis.ResponseError, match=r"reserved|JSON object with a type"):
            run(client, documented(), "first", '{"type":"tick"}', "second", event)
        assert not client.exists(*KEYS)


def test_the_documented_script_stores_every_other_event(server: RedisServer, site: Site) -> None:
    with site.stream(headers=ALICE) as stream, server.client() as client:
        stream.hello()
        run(
            client, documented(), "one", '{"type":"hybrid","data":1}', "two", '{"type":"a.hybrid."}'
        )
        stream.upto("a.hybrid.")
        assert types(stream.blocks) == ["hybrid", "a.hybrid."]


def test_no_client_is_handed_an_event_of_the_protocol(server: RedisServer, site: Site) -> None:
    """Whoever writes past the documented script, and whomever the event is addressed to."""
    with site.stream(headers=ALICE) as stream, server.client() as client:
        start = stream.hello()["cursor"]
        for number, type in enumerate(
            ["hybrid.bye", "hybrid.gap", "hybrid.status", "hybrid.", f"hybrid.{FORGED}", FORGED]
        ):
            run(client, own_publish(), f"e{number}", json.dumps({"type": type, "users": ["alice"]}))
        for type in ENDINGS:
            order = {"type": type, "data": {"user": "bob"}, "users": ["alice"], "topics": ["t"]}
            run(client, own_publish(), f"order-{type[7:]}", json.dumps(order))
        site.emit("after")
        stream.upto("after")
        assert types(stream.blocks) == ["after"]
        assert [block.type for block in stream.blocks if block.type] == ["hybrid.hello", "after"]
        assert b"evil" not in stream.raw
        assert b"pwn" not in stream.raw
        polled = site.poll(f"?since={start}&topic=t", headers=ALICE)["events"]
        assert [event["type"] for event in polled] == ["after"]


def test_the_packages_own_orders_are_acted_on(server: RedisServer, site: Site) -> None:
    """As another process of the application stores them."""
    with site.stream(headers=ALICE) as stream, server.client() as client:
        stream.hello()
        order = {"type": "hybrid.revoke", "data": {"user": "alice"}}
        run(client, own_publish(), "order", json.dumps(order))
        bye = stream.upto("hybrid.bye")[-1]
        assert json.loads(bye.data or "")["reason"] == "revoked"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, FORGED) for field in ("epoch", "mark", "offset")),
        *(("offset", value) for value in ("1e300", "-1", "nan", "inf", "0x10", "1.5")),
        ("offset", str(2**53 + 1)),
    ],
)
def test_a_log_whose_head_no_cursor_can_carry_is_begun_anew(
    server: RedisServer, site: Site, field: str, value: str
) -> None:
    """Its clients are told of a gap, and the forged text reaches none of them."""
    site.emit("before")
    with server.client() as client:
        client.hset(KEYS[1], field, value)
    later = Site(URL=server.url, HEARTBEAT_SECONDS=25, NAMESPACE="app")
    try:
        with later.stream() as stream:
            stream.hello()
            later.emit("after")
            stream.upto("after")
            assert b"evil" not in stream.raw
        with server.client() as client:
            head = client.hmget(KEYS[1], "epoch", "offset", "mark")
        assert ".".join(head) == later.realtime.cursor()
    finally:
        later.app.extensions["hybrid"].forget()


@pytest.mark.parametrize("place", [1, 3, 5])
def test_an_entry_whose_id_no_cursor_can_carry_is_as_one_that_was_taken_out(
    server: RedisServer, site: Site, place: int
) -> None:
    """Wherever it stands: the processes that read it go on behind it, and forge nothing."""
    site.emit(*"abcde")
    with server.client() as client:
        entries = client.xrange(KEYS[0])
        client.delete(KEYS[0])
        for number, (at, fields) in enumerate(entries, 1):
            forged = fields | {"id": FORGED} if number == place else fields
            client.xadd(KEYS[0], forged, id=at)
    later = Site(URL=server.url, HEARTBEAT_SECONDS=25, NAMESPACE="app")
    try:
        with later.stream("?since=0") as stream:
            stream.hello()
            later.emit("after")
            stream.upto("after")
            assert types(stream.blocks) == [*"abcde"[place:], "after"]
            assert b"evil" not in stream.raw
    finally:
        later.app.extensions["hybrid"].forget()


def test_a_message_whose_id_no_cursor_can_carry_is_read_from_the_log(
    server: RedisServer, site: Site
) -> None:
    """The channel is a doorbell: what it says is not stored is not taken from it."""
    with site.stream() as stream, server.client() as client:
        stream.hello()
        site.emit("before")
        epoch, offset, mark = client.hmget(KEYS[1], "epoch", "offset", "mark")
        event = json.dumps({"type": "forged"})
        forged = f"e {epoch} {int(offset) + 1} {mark} x\nid:evil {event}"
        assert client.publish(CHANNEL, forged) == 1
        site.emit("after")
        stream.upto("after")
        assert types(stream.blocks) == ["before", "after"]
        assert b"evil" not in stream.raw
