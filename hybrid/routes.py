"""HTTP in, HTTP out: parse, ask, answer. The contract is docs/protocol.md.

Errors are problem details (RFC 9457). Nothing a client sends may end in a 500.
"""

import base64
import hashlib
import hmac
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, current_app, make_response, request
from flask.sansio.blueprints import BlueprintSetupState
from werkzeug.exceptions import HTTPException, MethodNotAllowed

import hybrid
from hybrid import cli
from hybrid.audience import MAX_NAME, Audience, Identity, is_name
from hybrid.bus import Receipt, begin
from hybrid.connection import Connection
from hybrid.errors import EventTooLarge, InvalidEvent, OutboxFull, TooManyConnections
from hybrid.events import Event, random_id
from hybrid.instance import Instance, unix_ms
from hybrid.log import Reading
from hybrid.monitor.snapshot import snapshot
from hybrid.stream import Stream
from hybrid.wire import control_frame, retry_frame, to_json

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from hybrid.extension import AppState

logger = logging.getLogger("hybrid")

MAX_TOPICS = 100
MAX_WAIT = 25.0
"""Seconds a long poll may last: some platforms want the first byte within 30."""
MAX_LIMIT = 1000
MAX_PUBLISHED = 1000
"""Events in one POST /publish."""
MAX_BODY = 16 * 1024 * 1024
POLL_BYTES = 1024 * 1024
POLL_WAIT_MS = 5000
"""The delay between two polls that the server suggests."""
FULL_RETRY_AFTER = 5
"""Seconds until a refused client should try again."""
YEAR = 31_536_000
STATIC = Path(__file__).with_name("static")


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
        _state().instance().problems[self.code] += 1
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


class StreamResponse(Bare):
    """The answer that carries a stream."""

    # get_data() on an endless body must fail at once, not read for ever
    implicit_sequence_conversion = False

    def __init__(self, body: Iterable[bytes]) -> None:
        super().__init__(body, content_type="text/event-stream; charset=utf-8")
        self.headers["Cache-Control"] = "no-cache, no-store, no-transform"
        self.headers["X-Accel-Buffering"] = "no"

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        # Only now is it known whether an after_request handler wrapped the body or encodes it;
        # bytes that went round a compressor would be garbage.
        body = self.response
        plain = isinstance(body, Stream) and "Content-Encoding" not in self.headers
        if plain and _state().settings.direct_writes:
            body.connection.attach(environ)  # type: ignore[union-attr]
        return super().__call__(environ, start_response)


def make_blueprint() -> Blueprint:
    """The blueprint `hybrid` with all endpoints of the contract."""
    blueprint = Blueprint("hybrid", __name__, template_folder="templates")
    blueprint.add_url_rule("/sse", view_func=sse)
    blueprint.add_url_rule("/polling", view_func=polling)
    blueprint.add_url_rule("/test", view_func=test, methods=["POST"])
    blueprint.add_url_rule("/publish", view_func=publish, methods=["POST"])
    blueprint.add_url_rule("/monitor", view_func=monitor)
    blueprint.add_url_rule("/client/<filename>", view_func=client_file)
    blueprint.add_url_rule("/health/live", view_func=live)
    blueprint.add_url_rule("/health/ready", view_func=ready)
    blueprint.record(_answer_for_the_router)
    cli.register(blueprint)
    blueprint.register_error_handler(Problem, Problem.answer)
    blueprint.register_error_handler(HTTPException, _http_problem)
    return blueprint


# -- endpoints


def sse() -> Response:
    """GET /sse: the stream."""
    try:
        _require_streaming()
        return _open_stream()
    except Problem as problem:
        if problem.code in (429, 503) and _only_takes_events():
            return _refuse_by_event(problem)
        raise


def _open_stream() -> Response:
    state = _state()
    identity = _identity(state)
    topics = _topics(state, identity)
    if request.method == "HEAD":
        return StreamResponse(())
    instance = state.instance()
    _notice_processes(instance)
    since = request.headers.get("Last-Event-ID") or request.args.get("since")
    start, pending = begin(instance.bus, since, max_replay=state.settings.max_replay_events)
    connection = Connection(
        random_id(),
        identity,
        topics,
        position=start.cursor.offset,
        transport="sse",
        opened_at=instance.hub.clock(),
        opened_ms=unix_ms(),
        pending=pending,
    )
    try:
        instance.hub.open(connection)
    except TooManyConnections as error:
        raise Problem(503, "Full", str(error), retry_after=FULL_RETRY_AFTER) from error
    return StreamResponse(Stream(instance.hub, connection, start, instance.bus.state))


def polling() -> Response:
    """GET /polling: what has come since the cursor, at once or within `wait` seconds."""
    state = _state()
    identity = _identity(state)
    topics = _topics(state, identity)
    _notice_processes(state.instance())
    wait = _number("wait", 0.0, 0.0, MAX_WAIT)
    limit = int(_number("limit", MAX_LIMIT, 1, MAX_LIMIT, whole=True))
    instance = state.instance()
    instance.polls += 1
    start, pending = begin(
        instance.bus, request.args.get("since"), max_replay=state.settings.max_replay_events
    )
    if start.gap:
        return _poll_answer(instance, Reading((), start.cursor), gap=start.gap)
    connection = Connection(
        random_id(),
        identity,
        topics,
        position=start.cursor.offset,
        transport="polling",
        opened_at=instance.hub.clock(),
    )
    if "since" not in request.args or request.method == "HEAD" or not _can_hold():
        wait = 0.0
    if pending is not None:
        # Back with the same cursor, until somebody can say what has happened since.
        return _poll_answer(instance, Reading((), start.cursor), asker=connection, cursor=pending)
    reading = _await_events(instance, connection, limit, wait)
    gap = connection.lost or ("overflow" if reading.overflow else None)
    return _poll_answer(instance, reading, gap=gap, asker=connection)


def _await_events(instance: Instance, connection: Connection, limit: int, wait: float) -> Reading:
    """Read for the connection until there is something or `wait` seconds are over."""
    hub = instance.hub
    deadline = hub.clock() + wait
    try:
        while True:
            log = instance.log
            if connection.lost is not None:
                return Reading((), log.head)
            reading = log.read(
                connection.position,
                log.last,
                connection.sees,
                max_events=limit,
                max_bytes=POLL_BYTES,
            )
            connection.position = reading.cursor.offset
            left = deadline - hub.clock()
            done = reading.entries or reading.overflow or left <= 0 or connection.farewell
            if done or hub.provisionals(connection):
                return reading
            if connection.id not in hub.connections:
                try:
                    hub.open(connection)
                except TooManyConnections:
                    return reading  # a full instance still answers, it only does not wait
            if hub.join(connection):
                connection.park(left)
                hub.leave(connection)
    finally:
        hub.close(connection, "polled")


def _poll_answer(
    instance: Instance,
    reading: Reading,
    *,
    gap: str | None = None,
    asker: Connection | None = None,
    cursor: str | None = None,
) -> Response:
    if gap:
        instance.hub.gaps[gap] += 1
    # What is provisional comes with every poll: which of them the client has had is its to know.
    entries = [*reading.entries, *(instance.hub.provisionals(asker) if asker else ())]
    instance.hub.deliveries += len(entries)
    rest = {
        "cursor": cursor or str(reading.cursor),
        "more": reading.cursor.offset < instance.log.last,
        "gap": {"reason": gap} if gap else None,
        "wait": POLL_WAIT_MS,
        "bus": instance.bus.state,
    }
    # The events are JSON already, encoded once for all who poll them.
    events = ",".join([entry.poll_item for entry in entries])
    return _json(f'{{"events":[{events}],{to_json(rest)[1:]}')


def test() -> Response:
    """POST /test: send a test event."""
    state = _state()
    identity = _identity(state)
    _require_same_origin()
    fields = _json_object({"type", "data", "users", "roles", "topics"}, state)
    try:
        audience = Audience.of(fields.get("users"), fields.get("roles"), fields.get("topics"))
        if not _may_test(state, identity, audience):
            raise Problem(403, "Forbidden", "you may send test events to yourself only")
        event = state.event(fields.get("type", "test"), fields.get("data"), audience)
        (receipt,) = state.instance().publish([event])
    except EventTooLarge as error:
        raise Problem(413, "Event too large", str(error)) from error
    except InvalidEvent as error:
        raise Problem(400, "Invalid event", str(error)) from error
    except OutboxFull as error:
        raise Problem(503, "Not stored", str(error), retry_after=FULL_RETRY_AFTER) from error
    return _receipts([receipt], alone=True)


def publish() -> Response:
    """POST /publish: events from other programs."""
    state = _state()
    _require_key(state)
    body = _json_body(state, events=MAX_PUBLISHED)
    wishes = body if isinstance(body, list) else [body]
    if not 0 < len(wishes) <= MAX_PUBLISHED:
        raise Problem(400, "Bad request", f"send 1 to {MAX_PUBLISHED} events")
    key = request.headers.get("Idempotency-Key")
    try:
        # All are made before the first is stored: of a list either all arrive or none.
        events = [
            state.wished(fields, new_id=random_id if key is None else partial(_derived, key, place))
            for place, fields in enumerate(wishes)
        ]
        receipts = state.instance().publish(events)
    except EventTooLarge as error:
        raise Problem(413, "Event too large", str(error)) from error
    except InvalidEvent as error:
        raise Problem(400, "Invalid event", str(error)) from error
    except OutboxFull as error:
        raise Problem(503, "Not stored", str(error), retry_after=FULL_RETRY_AFTER) from error
    if key is not None and any(map(_is_another, events, receipts)):
        raise Problem(422, "Key used before", "this Idempotency-Key came with other events earlier")
    return _receipts(receipts, alone=not isinstance(body, list))


def _derived(key: str, place: int) -> str:
    """The id of an event that was sent with a key: the same whenever it is sent again."""
    digest = hashlib.sha256(f"{place}:{key}".encode()).digest()
    return base64.urlsafe_b64encode(digest)[:16].decode()


def _is_another(event: Event, receipt: Receipt) -> bool:
    """Whether the log holds something else under the event's id."""
    kept = _state().instance().log.event_at(receipt.cursor) if receipt.cursor else None
    return kept is not None and (
        (kept.type, kept.body, kept.audience) != (event.type, event.body, event.audience)
    )


def _receipts(receipts: Sequence[Receipt], *, alone: bool) -> Response:
    """What became of the events: 201 if all are in the log, 202 if some wait for it."""
    connections = _state().instance().hub.held()
    answers = [
        {
            "id": receipt.id,
            "cursor": str(receipt.cursor) if receipt.cursor else None,
            "stored": receipt.stored,
            "connections": connections,
        }
        for receipt in receipts
    ]
    stored = all(receipt.stored == "log" for receipt in receipts)
    return _json(to_json(answers[0] if alone else answers), 201 if stored else 202)


def monitor() -> Response:
    """GET /monitor: the figures."""
    state = _state()
    identity = _identity(state)
    if not _permitted(state.hybrid._can_monitor, identity, default=state.debug()):
        raise Problem(403, "Forbidden", "the monitor is for those whom can_monitor admits")
    return _json(to_json(snapshot(state.instance())))


def client_file(filename: str) -> Response:
    """GET /client/<file>: the JavaScript. Asked for with its version it never changes."""
    files = {path.name: path for path in STATIC.iterdir()}
    if filename not in files:
        raise Problem(404, "Not found", "there is no such file")
    # Some systems have no type for .js, or one that browsers refuse for modules.
    mime = "text/javascript" if filename.endswith(".js") else "text/plain"
    response = Bare(files[filename].read_bytes(), content_type=f"{mime}; charset=utf-8")
    versioned = request.args.get("v") == hybrid.__version__
    response.cache_control.max_age = YEAR if versioned else 3600
    response.cache_control.public = True
    response.cache_control.immutable = versioned
    response.add_etag()
    response.make_conditional(request)
    return response


def live() -> Response:
    """GET /health/live: the process answers."""
    return _json('{"status":"ok"}')


def ready() -> Response:
    """GET /health/ready: it can take new clients."""
    instance = _state().instance()
    hub = instance.hub
    _notice_processes(instance)
    if instance.bus.deaf:
        raise Problem(503, "Deaf", instance.bus.trouble, retry_after=FULL_RETRY_AFTER)
    if hub.held() >= hub.max_connections:
        raise Problem(503, "Full", "no connection is free", retry_after=FULL_RETRY_AFTER)
    return _json(to_json({"status": "ok", "alerts": instance.alerts()}))


# -- what a request says


def _state() -> "AppState":
    state: AppState = current_app.extensions["hybrid"]
    return state


def _identity(state: "AppState") -> Identity:
    identity = _ask(state.hybrid._identify)
    if not isinstance(identity, Identity):  # None, or a hook that forgot what it returns
        raise Problem(401, "Unauthorized", "this needs an identity; log in first")
    if identity.user is None and not state.settings.anonymous:
        raise Problem(401, "Unauthorized", "anonymous visitors may not connect; log in first")
    return identity


def _topics(state: "AppState", identity: Identity) -> frozenset[str]:
    topics = frozenset(request.args.getlist("topic"))
    if len(topics) > MAX_TOPICS:
        raise Problem(400, "Bad request", f"at most {MAX_TOPICS} topics a connection")
    for topic in topics:
        if not is_name(topic):
            raise Problem(
                400,
                "Bad request",
                f"a topic has 1 to {MAX_NAME} characters and no control characters",
            )
        if not _ask(state.hybrid._authorize, identity, topic):
            raise Problem(403, "Forbidden", f"the topic {topic!r} is not open to you")
    return topics


def _ask(hook: Callable[..., Any], *arguments: Any) -> Any:
    """Call a hook of the application; one that raises admits nobody."""
    try:
        return hook(*arguments)
    except HTTPException:
        raise  # abort(403) in a hook is an answer
    except Exception:
        logger.exception("%s raised; the request is refused", getattr(hook, "__name__", hook))
        raise Problem(
            503, "Unavailable", "who you are could not be established", retry_after=FULL_RETRY_AFTER
        ) from None


def _permitted(hook: Callable[..., Any] | None, identity: Identity, *, default: bool) -> bool:
    return default if hook is None else bool(_ask(hook, identity))


def _may_test(state: "AppState", identity: Identity, audience: Audience) -> bool:
    only_self = identity.user is not None and audience == Audience(users=frozenset({identity.user}))
    return only_self or _permitted(state.hybrid._can_test, identity, default=state.debug())


def _number(name: str, default: float, low: float, high: float, *, whole: bool = False) -> float:
    text = request.args.get(name)
    if text is None:
        return default
    digits = r"[0-9]{1,9}" if whole else r"[0-9]{1,9}(\.[0-9]{1,9})?"
    value = float(text) if re.fullmatch(digits, text) else -1.0
    if not low <= value <= high:
        kind = "whole number" if whole else "number"
        raise Problem(400, "Bad request", f"{name} must be a {kind} from {low:g} to {high:g}")
    return value


def _require_key(state: "AppState") -> None:
    """Let in who knows the key; without a key there is nothing here."""
    key = state.settings.publish_key
    if key is None:
        raise Problem(404, "Not found", "publishing is off: HYBRID_PUBLISH_KEY is not set")
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), key.encode()):
        problem = Problem(401, "Unauthorized", "send the key: Authorization: Bearer …")
        problem.headers["WWW-Authenticate"] = "Bearer"
        raise problem


def _json_object(known: set[str], state: "AppState") -> dict[str, Any]:
    fields = _json_body(state)
    if not isinstance(fields, dict):
        raise Problem(400, "Bad request", "the body must be a JSON object")
    if unknown := sorted(fields.keys() - known):
        raise Problem(400, "Bad request", f"unknown field {unknown[0]!r:.60}")
    return fields


def _json_body(state: "AppState", events: int = 1) -> Any:
    """The body's JSON; it may be as large as that many events."""
    if request.mimetype != "application/json":
        raise Problem(415, "Unsupported media type", "send application/json")
    # Twice the event: its data may be spelled with escapes that encoding again removes.
    request.max_content_length = min(
        (2 * state.settings.max_event_bytes + 16 * 1024) * events, MAX_BODY
    )
    body = request.get_data(cache=False)
    if len(body) >= request.max_content_length:  # Werkzeug cuts a chunked body there, silently
        raise Problem(413, "Content too large", f"at most {request.max_content_length} bytes")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "Bad request", f"the body is not JSON: {error}") from error


def _require_same_origin() -> None:
    """Refuse what another site's page sends with this user's cookies.

    Browsers say where a request comes from in Sec-Fetch-Site, older ones in Origin; a client
    that says neither is no browser and has no cookies of a victim.
    """
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if site is not None:
        allowed = site in ("same-origin", "none")
    else:
        allowed = origin is None or origin == request.host_url.rstrip("/")
    if not allowed:
        raise Problem(403, "Forbidden", "only pages of this site may do this")


# -- what the server can do


def _can_hold() -> bool:
    """Whether a request may be held open without blocking the whole worker."""
    environ = request.environ
    if environ.get("HTTP_VERSION") == "2":
        return False  # gunicorn serves the streams of an HTTP/2 connection one after the other
    if environ.get("wsgi.multithread") or current_app.testing:
        return True
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("socket"))


def _require_streaming() -> None:
    if _can_hold() or request.method == "HEAD":
        return
    _warn_once_that_streams_are_off()
    raise Problem(
        503,
        "No streaming here",
        "this server cannot hold a stream without blocking everybody else; poll instead",
        retry_after=600,
    )


def _notice_processes(instance: Instance) -> None:
    """Say it loudly when several processes serve without a bus between them."""
    if request.environ.get("wsgi.multiprocess") and not instance.alone:
        return
    if request.environ.get("wsgi.multiprocess") and instance.settings.url == "memory://":
        instance.alone = False
        logger.error(
            "this server has several processes and HYBRID_URL is memory://: each has a log of its"
            " own, and an event reaches only the clients of the process that emitted it. Fix: set"
            " HYBRID_URL=redis://…, or run one worker"
        )


def _warn_once_that_streams_are_off() -> None:
    instance = _state().instance()
    if not instance.problems[503]:
        logger.warning(
            "a stream was refused: this server handles one request at a time, or HTTP/2 inside"
            " gunicorn. Clients poll. Fix: gunicorn -k gevent, with HTTP/2 at the proxy"
        )


def _only_takes_events() -> bool:
    """Whether the caller is a native EventSource and is to be spared an error status.

    It gives up for good on anything but 200. Its Accept header is text/event-stream alone,
    while a client that handles statuses names application/problem+json as well.
    """
    return (
        _state().settings.native_errors == "event"
        and "application/problem+json" not in request.headers.get("Accept", "")
    )


def _refuse_by_event(problem: Problem) -> Response:
    assert problem.code is not None
    _state().instance().problems[problem.code] += 1
    after = int(problem.headers["Retry-After"]) * 1000
    bye = control_frame("bye", {"reason": "full", "after": after})
    return StreamResponse((retry_frame(after) + bye,))


def _json(body: str, status: int = 200) -> Response:
    response = Bare(body, status, content_type="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response


def _answer_for_the_router(setup: BlueprintSetupState) -> None:
    """Let 404 and 405 below the prefix be problem details too.

    A blueprint's error handlers are asked about requests that its rules match, and no others.
    """
    below = f"{setup.url_prefix or ''}/"

    def refuse() -> Response | None:
        error = request.routing_exception
        if error is None or error.code not in (404, 405) or not request.path.startswith(below):
            return None
        problem = Problem(error.code, error.name, error.description or error.name)
        if isinstance(error, MethodNotAllowed):
            problem.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
        return problem.answer()

    setup.app.before_request(refuse)


def _http_problem(error: HTTPException) -> Response:
    if isinstance(error, Problem):
        return error.answer()
    if error.code is None or error.code < 400:
        return make_response(error.get_response())
    return Problem(error.code, error.name, error.description or error.name).answer()
