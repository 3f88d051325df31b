"""Applications with the extension, asked through Flask's test client, and their streams."""

import json
from collections.abc import Callable
from typing import Any

from flask import Flask, request
from werkzeug.test import EnvironBuilder, TestResponse
from werkzeug.wrappers import Response as WSGIResponse

from hybrid import Hybrid, Identity
from hybrid.config import Settings
from hybrid.hub import Hub
from servers import PREFIX
from whatwg import Block, Parser

UNLIMITED: dict[str, Any] = dict.fromkeys(
    name.upper() for name in Settings.__slots__ if name.startswith("limit_")
)
"""Every test is one user at one address; limits.py has tests of its own."""
NATIVE = {"Accept": "text/event-stream"}
BUNDLED = {"Accept": "text/event-stream, application/problem+json"}


class Site:
    """An application with the extension. Who a request is, its headers say."""

    def __init__(self, *, identify: bool = True, **config: Any) -> None:
        self.app = Flask(__name__)
        self.app.testing = True
        self.app.secret_key = "for tests"
        config = UNLIMITED | config
        self.app.config.update({f"HYBRID_{key}": value for key, value in config.items()})
        self.realtime = Hybrid(self.app)
        self.client = self.app.test_client()
        if identify:
            self.realtime.identify(who)
            self.realtime.authorize(lambda _, topic: not topic.startswith("closed"))

    @property
    def hub(self) -> Hub:
        hub: Hub = self.app.extensions["hybrid"].instance().hub
        return hub

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.client.get(PREFIX + path, **options)

    def test(self, body: Any = None, **options: Any) -> TestResponse:
        return self.client.post(PREFIX + "/test", json=body or {}, **options)

    def poll(self, query: str = "", **options: Any) -> Any:
        response = self.get(f"/polling{query}", **options)
        assert response.status_code == 200
        return response.get_json()

    def stream(self, query: str = "", **options: Any) -> "Reading":
        return Reading(self.get(f"/sse{query}", **options))

    def emit(self, *names: str, **audience: Any) -> list[str]:
        return [self.realtime.emit(name, {"name": name}, **audience) for name in names]

    def raw(self, path: str, **options: Any) -> tuple[Any, list[str]]:
        """What a server gets before it has asked for the first byte: the body and the status."""
        status: list[str] = []
        environ = EnvironBuilder(PREFIX + path, **options).get_environ()

        def start_response(line: str, _headers: Any, _error: Any = None) -> Callable[[bytes], None]:
            status.append(line)
            return lambda _: None

        body = self.app(environ, start_response)
        return body, status


def who() -> Identity | None:
    if request.headers.get("X-User") == "nobody":
        return None
    return Identity(request.headers.get("X-User"), request.headers.getlist("X-Role"))


class Reading:
    """A stream as it is read: piece by piece, closed at the end."""

    def __init__(self, response: TestResponse) -> None:
        assert response.status_code == 200
        assert response.content_type == "text/event-stream; charset=utf-8"
        self.response = response
        self.pieces = iter(response.iter_encoded())
        self.parser = Parser()
        self.blocks: list[Block] = []
        self.raw = b""

    def __enter__(self) -> "Reading":
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()

    def until(self, done: Callable[[list[Block]], bool]) -> list[Block]:
        while not done(self.blocks):
            piece = next(self.pieces)
            self.raw += piece
            self.blocks += self.parser.feed(piece)
        return self.blocks

    def upto(self, type: str) -> list[Block]:
        """All blocks so far, once one of this type has come."""
        return self.until(lambda blocks: any(block.type == type for block in blocks))

    def hello(self) -> Any:
        return json.loads(self.upto("hybrid.hello")[0].data)


def types(blocks: list[Block]) -> list[str]:
    """The types of the application's own events."""
    return [block.type for block in blocks if not block.type.startswith("hybrid.")]


def as_problem(response: WSGIResponse, status: int) -> Any:
    """The problem details, all of which must be there."""
    assert response.status_code == status, response.get_data(as_text=True)
    assert response.content_type == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    body = response.get_json(force=True)
    assert body.keys() == {"type", "title", "status", "detail"}
    assert body["status"] == status
    assert isinstance(body["title"], str)
    assert body["title"]
    assert isinstance(body["detail"], str)
    assert body["detail"]
    if status in (429, 503):
        assert int(response.headers["Retry-After"]) > 0
    return body


MakeSite = Callable[..., Site]
