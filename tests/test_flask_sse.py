"""flask-sse's interface: its applications run with one import changed, and resume."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from playwright.sync_api import Browser, expect

from hybrid import Hybrid
from hybrid.compat.flask_sse import ServerSentEventsBlueprint, sse
from hybrid.eventsource import Parser
from redises import Proxy, redis_server
from servers import PREFIX, gunicorn, tracebacks


@pytest.fixture
def app() -> Iterator[Flask]:
    app = Flask("chat")
    app.testing = True
    app.register_blueprint(sse, url_prefix="/stream")
    yield app
    app.extensions["hybrid"].forget()


def first_messages(
    app: Flask, url: str, count: int, **headers: str
) -> list[tuple[str, str | None]]:
    """Type and data of what a stream begins with, hello left out."""
    parser, found = Parser(), []
    answer = app.test_client().get(url, headers=headers)
    assert answer.status_code == 200
    for piece in answer.response:
        assert isinstance(piece, bytes)
        found += [message for message in parser.feed(piece) if message.text is not None]
        if len(found) > count:
            break
    answer.close()
    assert found[0].type == "hybrid.hello"
    return [(message.type, message.text) for message in found[1:]]


def test_what_is_published_arrives_as_from_flask_sse(app: Flask) -> None:
    """Strings as they are, line by line, anything else as JSON; only in its channel."""
    with app.app_context():
        start = app.extensions["hybrid"].hybrid.cursor()
        sse.publish({"message": "Hello!"}, type="greeting")
        sse.publish("one\ntwo", channel="sse")
        sse.publish("elsewhere", channel="users.social")
        sse.publish([1, None], "list", id=17, retry=500)
    assert first_messages(app, "/stream", 3, **{"Last-Event-ID": start}) == [
        ("greeting", '{"message":"Hello!"}'),
        ("message", "one\ntwo"),
        ("list", "[1,null]"),
    ]
    assert first_messages(app, "/stream?channel=users.social", 1, **{"Last-Event-ID": start}) == [
        ("message", "elsewhere")
    ]


def test_id_and_retry_are_said_to_be_left_out(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """Once: whoever relied on them reads it in the log."""
    own = ServerSentEventsBlueprint("own", __name__)
    with app.app_context():
        for _ in range(2):
            own.publish("x", id=1)
    assert caplog.text.count("id and retry are not sent") == 1


def test_its_redis_settings_are_read() -> None:
    """SSE_REDIS_URL, then REDIS_URL, of the app's configuration; HYBRID_URL goes first."""
    for config, url in (
        ({"REDIS_URL": "redis://a"}, "redis://a"),
        ({"REDIS_URL": "redis://a", "SSE_REDIS_URL": "redis://b"}, "redis://b"),
        ({"REDIS_URL": "redis://a", "HYBRID_URL": "memory://"}, "memory://"),
        ({}, "memory://"),
    ):
        app = Flask("configured")
        app.config.update(config)
        app.register_blueprint(sse, url_prefix="/stream")
        assert app.extensions["hybrid"].settings.url == url


def test_an_app_with_its_own_hybrid_shares_it() -> None:
    """Its topics stay closed: a channel of the same name is something else."""
    app = Flask("both")
    app.testing = True
    realtime = Hybrid(app)
    app.register_blueprint(sse, url_prefix="/stream")
    with app.app_context():
        start = realtime.cursor()
        realtime.emit("secret", topics=["salaries"])
        sse.publish("open", channel="salaries")
    found = first_messages(app, "/stream?channel=salaries", 1, **{"Last-Event-ID": start})
    assert found == [("message", "open")]
    assert app.test_client().get(f"{PREFIX}/sse?topic=salaries").status_code == 403
    app.extensions["hybrid"].forget()


def test_a_refused_stream_is_an_event(app: Flask) -> None:
    """A native EventSource would give up for good on a 503."""
    app.extensions["hybrid"].instance().hub.max_connections = 0
    answer = app.test_client().get("/stream")
    assert (answer.status_code, b"hybrid.bye" in answer.data) == (200, True)
    assert app.test_client().get(f"{PREFIX}/sse").status_code == 503


def test_a_channel_that_cannot_be_is_refused(app: Flask) -> None:
    """Not a 500, whatever the query says."""
    for name in ("a" * 300, "a%00b", "a%0Ab"):
        assert app.test_client().get(f"/stream?channel={name}").status_code == 400


@pytest.mark.server
@pytest.mark.browser
def test_a_page_of_flask_sse_works_and_resumes(tmp_path: Path, chromium: Browser) -> None:
    """Chromium, its own EventSource, two workers, one Redis; the connection is cut meanwhile."""
    with (
        redis_server(tmp_path / "redis") as redis,
        gunicorn(
            *(tmp_path / "log", "-w", "2"), app="flask_sse_app:app", redis_url=redis.url
        ) as server,
    ):
        proxy = Proxy(server.port)
        try:
            page = chromium.new_page()
            page.goto(f"http://127.0.0.1:{proxy.port}/")
            said = page.locator("li")
            expect(said).to_have_text(["open"])

            def publish(**wish: object) -> None:
                wish = {"channel": "users.social", **wish}
                assert server.call("POST", "/hello", wish)[0] == 204

            publish(data={"message": "Hello!"}, type="greeting")
            publish(data="elsewhere", channel="sse")
            publish(data="plain")
            expect(said).to_have_text(["open", "greeting Hello!", "message plain"])
            proxy.refuse = True
            proxy.cut()
            for number in range(3):
                publish(data=f"missed {number}")
            proxy.refuse = False
            expect(said).to_have_text(
                ["open", "greeting Hello!", "message plain", "open"]
                + [f"message missed {number}" for number in range(3)],
                timeout=20_000,
            )
            assert server.call("GET", "/stream?channel=analytics")[0] == 403
            page.close()
        finally:
            proxy.close()
    assert tracebacks(tmp_path / "log") == []
