"""hybrid.testing, used as an application's own tests would use it."""

from collections.abc import Iterator

import pytest
from flask import Flask, request, session
from flask.testing import FlaskClient

from hybrid import Hybrid, Identity
from hybrid.testing import SSEClient, TooLate, capture_events, faults, stopped_clock

PREFIX = "/api/realtime"


def create_app() -> Flask:
    """An application with a login, a topic and something that happens."""
    app = Flask("shop")
    app.config.update(SECRET_KEY="for the tests alone", HYBRID_HISTORY_SECONDS=60)
    realtime = Hybrid()

    @realtime.authorize
    def authorize(identity: Identity, topic: str) -> bool:
        return topic == f"orders:{identity.user}"

    realtime.init_app(app)

    @app.post("/login")
    def login() -> tuple[str, int]:
        session["user"] = request.args["user"]
        return "", 204

    @app.post("/orders/<int:number>/ship")
    def ship(number: int) -> tuple[str, int]:
        realtime.emit("order.shipped", {"number": number}, users=[request.args["to"]])
        return "", 204

    return app


@pytest.fixture
def app() -> Iterator[Flask]:
    app = create_app()
    yield app
    app.extensions["hybrid"].forget()


@pytest.fixture
def alice(app: Flask) -> FlaskClient:
    client = app.test_client()
    client.post("/login?user=alice")
    return client


def test_events_are_captured(app: Flask, alice: FlaskClient) -> None:
    """What was emitted, to whom, only inside of the block and only of this app."""
    other = create_app()
    with capture_events(app) as events:
        alice.post("/orders/17/ship?to=alice")
        other.test_client().post("/orders/18/ship?to=alice")
    alice.post("/orders/19/ship?to=alice")
    (event,) = events
    assert (event.type, event.data) == ("order.shipped", {"number": 17})
    assert event.audience.users == {"alice"}


def test_a_stream_is_read(app: Flask, alice: FlaskClient) -> None:
    """Live events in order; others' not, which is shown without a pause."""
    with SSEClient(alice) as stream:
        assert stream.status == 200
        assert stream.next("hybrid.hello").data["protocol"] == 1
        alice.post("/orders/1/ship?to=alice")
        alice.post("/orders/2/ship?to=bob")
        alice.post("/orders/3/ship?to=alice")
        assert [message.data["number"] for message in stream.take(2)] == [1, 3]
        assert stream.so_far() == []
        alice.post("/orders/4/ship?to=alice")
        assert [message.data["number"] for message in stream.so_far()] == [4]
        cursor = stream.cursor
    alice.post("/orders/5/ship?to=alice")
    with SSEClient(alice, since=cursor) as stream:
        assert stream.next("order.shipped").data == {"number": 5}


def test_a_refused_stream_says_why(alice: FlaskClient) -> None:
    """No stream, no hanging: the status and the problem are there to be asserted."""
    with SSEClient(alice, topics=["orders:bob"]) as stream:
        assert stream.status == 403
        assert "orders:bob" in stream.problem["detail"]
        with pytest.raises(TooLate, match="the answer was 403"):
            stream.next()
    with SSEClient(alice, topics=["orders:alice"]) as stream:
        stream.next("hybrid.hello")


def test_what_does_not_come_fails_the_test_in_time(alice: FlaskClient) -> None:
    """With what came instead in the message."""
    with (
        SSEClient(alice, deadline=0.3) as stream,
        pytest.raises(TooLate, match=r"waited for an event order\.shipped.*hybrid\.hello"),
    ):
        stream.next("order.shipped")


def test_the_streams_end_is_awaited(app: Flask, alice: FlaskClient) -> None:
    """A user who is disconnected hears it."""
    with SSEClient(alice) as stream:
        stream.next("hybrid.hello")
        with app.app_context():
            app.extensions["hybrid"].hybrid.disconnect(user="alice")
        assert stream.next("hybrid.bye").data["reason"] == "kicked"
        stream.wait_until_ended()


def test_time_passes_when_the_test_says_so(app: Flask, alice: FlaskClient) -> None:
    """Heartbeats come, and history grows old, without a wait."""
    with stopped_clock(app) as clock:
        with SSEClient(alice) as stream:
            hello = stream.next("hybrid.hello")
            alice.post("/orders/1/ship?to=alice")
            stream.next("order.shipped")
            clock.advance(hello.data["heartbeat"] / 1000)
            beat = stream.next("message")
            assert (beat.text, beat.id) == (None, stream.cursor)
            old = hello.id
        clock.advance(61)
        with SSEClient(alice, since=old) as stream:
            assert stream.next("hybrid.gap").data["reason"] == "expired"


def test_a_connection_can_be_dropped(alice: FlaskClient, app: Flask) -> None:
    """Cut without a goodbye; the client that resumes misses nothing."""
    with faults(app) as fault:
        with SSEClient(alice) as stream:
            stream.next("hybrid.hello")
            fault.drop()
            stream.wait_until_ended()
            assert not [message for message in stream.seen if message.type == "hybrid.bye"]
        alice.post("/orders/1/ship?to=alice")
        with SSEClient(alice, since=stream.cursor) as stream:
            stream.next("order.shipped")


def test_a_proxy_that_buffers_can_be_had(app: Flask, alice: FlaskClient) -> None:
    """Nothing arrives before the stream ends, not even its head; polling is not held."""
    with faults(app) as fault:
        fault.buffering = True
        with SSEClient(alice, deadline=0.3) as stream:
            with pytest.raises(TooLate, match="no answer"):
                _ = stream.status
            alice.post("/orders/1/ship?to=alice")
            answer = alice.get(f"{PREFIX}/polling?since=0").get_json()
            assert [event["data"] for event in answer["events"]] == [{"number": 1}]
            assert stream.seen == []
    assert app.extensions["hybrid"].instance().hub.held() == 0


def test_the_bus_can_be_taken_away(app: Flask, alice: FlaskClient) -> None:
    """Degraded, provisional events, and after it each event exactly once."""
    with faults(app) as fault, SSEClient(alice) as stream:
        hello = stream.next("hybrid.hello")
        fault.bus_down()
        assert stream.next("hybrid.status").data["bus"] == "degraded"
        alice.post("/orders/1/ship?to=alice")
        provisional = stream.next("order.shipped")
        assert provisional.id is None
        assert alice.get(f"{PREFIX}/polling").get_json()["bus"] == "degraded"
        assert stream.so_far() == []
        fault.bus_up()
        assert stream.next("hybrid.status").data["bus"] == "ok"
        alice.post("/orders/2/ship?to=alice")
        assert [message.data["number"] for message in stream.so_far()] == [2]
        answer = alice.get(f"{PREFIX}/polling?since={hello.id}").get_json()
        numbers = [e["data"]["number"] for e in answer["events"] if e["type"] == "order.shipped"]
        assert numbers == [1, 2]


def test_all_is_as_before_afterwards(app: Flask, alice: FlaskClient) -> None:
    """The switches and the clock leave nothing behind."""
    state = app.extensions["hybrid"]
    before = (state.clock, state.wall)
    with stopped_clock(app), faults(app) as fault:
        fault.delay = 0.01
        fault.bus_down()
        alice.post("/orders/1/ship?to=alice")
    assert (state.clock, state.wall) == before
    assert app.wsgi_app.__func__ is Flask.wsgi_app  # type: ignore[attr-defined] # a bound method
    answer = alice.get(f"{PREFIX}/polling?since=0").get_json()
    assert (answer["events"], answer["bus"]) == ([], "ok")
