"""What goes back: problem details, JSON, and the response that carries a stream."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flask import Response, current_app, make_response, request
from flask.sansio.blueprints import BlueprintSetupState
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import BaseConverter, Map, Rule

from hybrid.errors import (
    EventTooLarge,
    HybridError,
    InvalidEvent,
    OutboxFull,
    TooManyConnections,
)
from hybrid.stream import Stream
from hybrid.wire import to_json

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from hybrid.application import AppState

WHO = "Cookie, Authorization"
"""What an answer depends on besides its address, should anything keep it in spite of `no-store`."""
DRAINING_RETRY_AFTER = 2
"""By then the instance that is being stopped accepts nobody any more."""
FULL_RETRY_AFTER = 5
"""Seconds until a refused client should try again."""


def app_state() -> "AppState":
    state: AppState = current_app.extensions["hybrid"]
    return state


class Problem(HTTPException):
    """An error answer as problem details."""

    def __init__(
        self, status: int, title: str, detail: str, *, retry_after: int | None = None
    ) -> None:
        super().__init__(detail)
        self.code = status
        self.title = title
        self.headers: dict[str, str] = {}
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    def answer(self) -> Response:
        assert self.code is not None
        app_state().instance().problems[self.code] += 1
        body = {
            "type": "about:blank",
            "title": self.title,
            "status": self.code,
            "detail": self.description,
        }
        response = Bare(to_json(body), self.code, content_type="application/problem+json")
        response.headers["Cache-Control"] = "no-store"
        response.headers.update(self.headers)
        return response


class Bare(Response):
    """A response that sets no cookie, whoever asks for one.

    Flask re-issues a permanent session on every response, and a stream or poll that began
    before a logout would bring the session back.
    """

    def get_wsgi_headers(self, environ: "WSGIEnvironment") -> Any:
        headers = super().get_wsgi_headers(environ)
        headers.remove("Set-Cookie")
        headers["X-Content-Type-Options"] = "nosniff"
        return headers


def bare(response: Response) -> Response:
    """Any answer below our prefix as a `Bare`: also the redirect of a hook that aborts with one,
    which is shown to no error handler."""
    if not isinstance(response, Bare):
        Bare.force_type(response)  # in place
    return response


class Held(Bare):
    """An answer whose body is a `Stream`, which the hub may take over from the server."""

    def __init__(
        self, body: Iterable[bytes], content_type: str = "application/json", keep: str = "no-store"
    ) -> None:
        headers = Headers()
        headers.add("Content-Type", content_type)
        headers.add("Cache-Control", keep)
        headers.add("Vary", WHO)
        headers.add("X-Content-Type-Options", "nosniff")
        super().__init__(body, "200 OK", headers)
        self._followed = False

    def call_on_close(self, func: Callable[[], Any]) -> Callable[[], Any]:
        self._followed = True
        return super().call_on_close(func)

    def get_wsgi_headers(self, environ: "WSGIEnvironment") -> Any:
        if self.headers.get("Content-Encoding") == "identity":
            self.headers.remove("Content-Encoding")
        if not isinstance(self.response, Stream):
            return super().get_wsgi_headers(environ)
        # There is nothing for Werkzeug to complete, and streams come in storms.
        self.headers.remove("Set-Cookie")
        return self.headers

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        answer = super().__call__(environ, start_response)
        if isinstance(self.response, Stream):
            self.response.begin(start_response)
        return answer

    def get_app_iter(self, environ: "WSGIEnvironment") -> Iterable[bytes]:
        # Only now is it known whether an after_request handler wrapped the body or encodes it
        # (bytes that went round a compressor would be garbage), or waits for its end.
        body = self.response
        if not isinstance(body, Stream) or self.status_code != 200:
            return super().get_app_iter(environ)
        body.attach(environ)
        if (
            self._followed
            or "Content-Encoding" in self.headers
            or not app_state().settings.direct_writes
        ):
            return super().get_app_iter(environ)
        return body  # itself: see Stream.__eq__


class StreamResponse(Held):
    """The answer that carries a stream of events."""

    # get_data() on an endless body must fail at once, not read for ever
    implicit_sequence_conversion = False

    def __init__(self, body: Iterable[bytes]) -> None:
        super().__init__(
            body, "text/event-stream; charset=utf-8", "no-cache, no-store, no-transform"
        )
        self.headers.add("X-Accel-Buffering", "no")
        # Whatever compresses answers leaves one that is encoded; gone before it is sent, since
        # no answer should say this (RFC 9110, section 8.4.1).
        self.headers.add("Content-Encoding", "identity")


def json_answer(body: str | bytes, status: int = 200) -> Response:
    response = Bare(body, status, content_type="application/json")
    response.headers.add("Cache-Control", "no-store")
    response.headers.add("Vary", WHO)
    return response


def http_problem(error: HTTPException) -> Response:
    if isinstance(error, Problem):
        return error.answer()
    if error.code is None or error.code < 400:
        return make_response(error.get_response())
    return Problem(error.code, error.name, error.description or error.name).answer()


def answer_for_the_router(setup: BlueprintSetupState) -> None:
    """Let 404 and 405 below the prefix be problem details too.

    A blueprint's error handlers are asked about requests that its rules match, and no others.
    """
    is_below = _below(setup)

    def refuse() -> Response | None:
        error = request.routing_exception
        if error is None or error.code not in (404, 405) or not is_below(request.path):
            return None
        problem = Problem(error.code, error.name, error.description or error.name)
        if isinstance(error, MethodNotAllowed):
            problem.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
        return problem.answer()

    setup.app.before_request(refuse)


class _Rest(BaseConverter):
    """Whatever follows in a path, slashes too."""

    regex = ".*"
    part_isolating = False


def _below(setup: BlueprintSetupState) -> Callable[[str], bool]:
    """Whether a path is below the blueprint's prefix, which may have variables: `/<lang>/live`."""
    prefix = setup.url_prefix or ""
    if "<" not in prefix:
        return lambda path: path.startswith(f"{prefix}/")
    rule = Rule(f"{prefix}/<hybrid_rest:hybrid_rest>")
    converters = setup.app.url_map.converters | {"hybrid_rest": _Rest}
    adapter = Map([rule], converters=converters, merge_slashes=False).bind("")
    return lambda path: adapter.test(path, "GET")


def package_problem(error: HybridError) -> Response:
    """What the package refused, as its HTTP answer."""
    detail = str(error)
    match error:
        case EventTooLarge():
            return Problem(413, "Event too large", detail).answer()
        case InvalidEvent():
            return Problem(400, "Invalid event", detail).answer()
        case OutboxFull():
            return Problem(503, "Not stored", detail, retry_after=FULL_RETRY_AFTER).answer()
        case TooManyConnections():
            return Problem(503, "Full", detail, retry_after=FULL_RETRY_AFTER).answer()
    raise error
