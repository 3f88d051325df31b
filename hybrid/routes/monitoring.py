"""The monitor: its figures, its page, its own stream, and what can be done there.

Two rights: `can_monitor` to look, `can_operate` besides to act. All of it is `no-store`.
"""

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, render_template, request, url_for
from werkzeug.exceptions import HTTPException

import hybrid
from hybrid.audience import Identity
from hybrid.connection import Connection
from hybrid.errors import TooManyConnections
from hybrid.events import Cursor, random_id
from hybrid.monitor.connections import MAX_PAGE, SORTS, Search
from hybrid.routes.access import identity_of, not_permitted, permitted, require_bearer
from hybrid.routes.answers import (
    FULL_RETRY_AFTER,
    Bare,
    Problem,
    StreamResponse,
    app_state,
    json_answer,
)
from hybrid.routes.bounds import address_of, answer_refusal
from hybrid.routes.origins import (
    require_own_origin,
    require_same_origin,
    require_same_origin_or_link,
)
from hybrid.routes.parse import json_object, number
from hybrid.routes.server import notice_processes, require_streaming
from hybrid.stream import Stream, greeting
from hybrid.wire import to_json

if TYPE_CHECKING:
    from hybrid.application import AppState

logger = logging.getLogger("hybrid.monitor")

RANGES = {"5m": 1, "1h": 10, "24h": 60}
"""Steps in seconds of what can be asked for."""
POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " object-src 'none'"
)
MAX_REPORT = 500
MAX_SNOOZE = 24 * 60
MAX_SEARCH = 100
MAX_ACCEPT = 1024
"""Characters of an Accept header that are read; browsers send some two hundred."""
TICK_MS = 1000


def add_rules(blueprint: Blueprint) -> None:
    """Give the blueprint the monitor's endpoints."""
    blueprint.add_url_rule("/monitor", view_func=monitor)
    blueprint.add_url_rule("/monitor/history", view_func=history)
    blueprint.add_url_rule("/monitor/connections", view_func=connections)
    blueprint.add_url_rule("/monitor/event", view_func=event)
    blueprint.add_url_rule("/monitor/disconnect", view_func=disconnect, methods=["POST"])
    blueprint.add_url_rule("/monitor/snooze", view_func=snooze, methods=["POST"])
    blueprint.add_url_rule("/monitor/sse", "monitor_sse", sse)
    blueprint.add_url_rule("/monitor/polling", "monitor_polling", polling)
    blueprint.add_url_rule("/report", view_func=report, methods=["POST"])
    blueprint.add_url_rule("/metrics", view_func=metrics)


# -- who may


def viewer(state: "AppState") -> Identity:
    """Who asks, if they may look."""
    require_same_origin_or_link()
    identity = identity_of(state)
    if not permitted(state, "can_monitor", identity):
        raise not_permitted(state, "the monitor is for those whom can_monitor admits")
    return identity


def operator(state: "AppState") -> Identity:
    """Who asks, if they may act; from this site's own pages, whoever else may read."""
    require_own_origin()
    identity = viewer(state)
    if not permitted(state, "can_operate", identity):
        raise not_permitted(state, "this is for those whom can_operate admits")
    return identity


# -- to look


def monitor() -> Response:
    """GET /monitor: the figures of the deployment as JSON; for a browser the page."""
    state = app_state()
    wants_a_page = _wants_a_page()
    require_same_origin_or_link()  # another site's frame is nobody who reads a page
    try:
        identity = viewer(state)
    except HTTPException as error:
        if wants_a_page and (error.code or 0) >= 400:
            return _refusal(error)
        raise
    notice_processes(state.instance())
    if wants_a_page:
        return _page(state, identity)
    state.monitor().refresh()
    response = json_answer(to_json(state.monitor().picture()))
    response.vary.add("Accept")
    return response


def _wants_a_page() -> bool:
    # To read one of spaces alone takes Werkzeug time by the square of its length.
    if len(request.headers.get("Accept", "")) > MAX_ACCEPT:
        return False
    return request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"


def _page(state: "AppState", identity: Identity) -> Response:
    here = request.view_args or {}  # the variables of the prefix, if it has some
    file = partial(url_for, ".client_file", version=hybrid.__version__, **here)
    text = render_template(
        "hybrid/monitor.html",
        base=url_for(".monitor", **here).removesuffix("/monitor"),
        file=file,
        name=request.host,
        operates=permitted(state, "can_operate", identity),
        version=hybrid.__version__,
        wall=request.args.get("wall") == "1",
    )
    return _as_page(Bare(text))


def _refusal(error: HTTPException) -> Response:
    """What a person reads in place of problem details, under the same status."""
    response = answer_refusal(error)
    page = render_template(
        "hybrid/refused.html",
        file=partial(
            url_for, ".client_file", version=hybrid.__version__, **(request.view_args or {})
        ),
        status=response.status_code,
        why=response.get_json(force=True)["detail"],
    )
    response.set_data(page)
    return _as_page(response)


def _as_page(response: Response) -> Response:
    response.content_type = "text/html; charset=utf-8"
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["Cache-Control"] = "private, no-store"
    response.headers["Referrer-Policy"] = "same-origin"
    response.vary.add("Accept")
    return response


def history() -> Response:
    """GET /monitor/history?range=5m|1h|24h: columns for charts."""
    state = app_state()
    viewer(state)
    step = RANGES.get(request.args.get("range", "5m"))
    if step is None:
        raise Problem(400, "Bad request", f"range is one of {', '.join(RANGES)}")
    return json_answer(to_json(state.monitor().history(step)))


def connections() -> Response:
    """GET /monitor/connections: one page of them, of all instances."""
    state = app_state()
    viewer(state)
    sort, transport = request.args.get("sort", "age"), request.args.get("transport", "")
    if sort not in SORTS:
        raise Problem(400, "Bad request", f"sort is one of {', '.join(SORTS)}")
    search = Search(
        text=request.args.get("q", "")[:MAX_SEARCH],
        transport=transport if transport in ("sse", "polling") else "",
        sort=sort,
        descending=request.args.get("order", "desc") == "desc",
        page=int(number("page", 1, 1, MAX_PAGE, whole=True)),
    )
    return json_answer(to_json(state.monitor().connections(search)))


def event() -> Response:
    """GET /monitor/event?cursor=: what an event says. Not for everybody who may look."""
    state = app_state()
    identity = operator(state)
    cursor = Cursor.parse(request.args.get("cursor", ""))
    found = state.instance().log.event_at(cursor) if cursor else None
    if found is None:
        raise Problem(404, "Not found", "the log does not hold this event (any more)")
    _log(identity, "read the event", str(cursor))
    shown = {"id": found.id, "type": found.type, "at": found.at}
    return json_answer(to_json(shown | {"text" if found.is_text else "data": found.data}))


# -- the monitor's own stream


def sse() -> Response:
    """GET /monitor/sse: the state of the deployment, once a second."""
    state = app_state()
    identity = viewer(state)
    if request.method == "HEAD":
        return StreamResponse(())
    require_streaming()
    watch = state.monitor().watch
    start = watch.begin(request.headers.get("Last-Event-ID") or request.args.get("since"))
    connection = Connection(
        random_id(),
        identity,
        frozenset(),
        position=start.cursor.offset,
        transport="sse",
        opened_at=watch.hub.clock(),
    )
    try:
        watch.hub.open(connection)
    except TooManyConnections as error:
        state.instance().refused["monitors"] += 1
        raise Problem(503, "Full", str(error), retry_after=FULL_RETRY_AFTER) from error
    opening = greeting(watch.hub, connection, start, state.instance().bus.state)
    return StreamResponse(Stream(watch.hub, connection, opening))


def polling() -> Response:
    """GET /monitor/polling: the same for who cannot stream; never held open."""
    state = app_state()
    viewer(state)
    watch = state.monitor().watch
    events = ",".join([entry.poll_item for entry in watch.poll(request.args.get("since"))])
    rest = {
        "cursor": str(watch.log.head),
        "more": False,
        "gap": None,
        "wait": TICK_MS,
        "bus": state.instance().bus.state,
    }
    return json_answer(f'{{"events":[{events}],{to_json(rest)[1:]}')


# -- to act


def disconnect() -> Response:
    """POST /monitor/disconnect: end one connection, all of a user, or all that a search finds.

    For the last, `count` is how many its operator has seen: if there are more now, none is ended.
    """
    state = app_state()
    identity = operator(state)
    fields = json_object({"connection", "user", "search", "count"}, state)
    connection, user, text = fields.get("connection"), fields.get("user"), fields.get("search")
    if text is not None and connection is None and user is None:
        return _disconnect_found(state, identity, text, fields.get("count"))
    if isinstance(connection, str) and user is None:
        _log(identity, "disconnect the connection", connection)
        if not state.monitor().disconnect(connection):
            raise Problem(404, "Not found", "there is no such connection (any more)")
    elif isinstance(user, str) and user and connection is None:
        _log(identity, "disconnect the user", user)
        state.instance().end(user)
    else:
        raise Problem(400, "Bad request", "name a connection or a user")
    return json_answer("{}")


def _disconnect_found(state: "AppState", identity: Identity, text: Any, count: Any) -> Response:
    if not isinstance(text, str) or not text.strip() or type(count) is not int:
        raise Problem(400, "Bad request", "a search is a text, and goes with a count")
    search = Search(text=text[:MAX_SEARCH])
    total = state.monitor().connections(search)["total"]
    if total > count:
        raise Problem(409, "Conflict", f"{total} connections match by now, and none was ended")
    _log(identity, "disconnect all that match", search.text)
    ended, missing = state.monitor().disconnect_found(search)
    return json_answer(to_json({"ended": ended, "missing": missing}))


def snooze() -> Response:
    """POST /monitor/snooze: tell nobody of an alert for some minutes, should it come again."""
    state = app_state()
    identity = operator(state)
    fields = json_object({"rule", "minutes"}, state)
    rule, minutes = fields.get("rule"), fields.get("minutes")
    if not isinstance(rule, str) or type(minutes) is not int or not 0 <= minutes <= MAX_SNOOZE:
        raise Problem(400, "Bad request", f"name a rule, and 0 to {MAX_SNOOZE} minutes")
    _log(identity, f"snooze for {minutes} minutes", rule)
    until = state.instance().wall() + minutes * 60_000
    found, missing = state.monitor().snooze(rule, until)
    if not found:
        raise Problem(404, "Not found", "no such alert stands (any more)")
    return json_answer(to_json({"missing": missing}))


def _log(identity: Identity, did: str, whom: str) -> None:
    # A warning, so that it is written also where nobody has set up logging. repr: what clients
    # chose themselves is not to forge lines of a log.
    address = address_of(app_state().instance())
    logger.warning("monitor: %r from %s: %s %r", identity.user, address, did, whom)


# -- what browsers report, what Prometheus asks


def report() -> Response:
    """POST /report: a browser's client had an error. Anybody may, a little."""
    state = app_state()
    require_same_origin()
    errors, address = state.monitor().errors, address_of(state.instance())
    if not errors.takes_from(address):
        raise enough()
    identity_of(state)
    fields = json_object({"message", "place"}, state)
    message, place = fields.get("message"), fields.get("place", "")
    if not isinstance(message, str) or not isinstance(place, str) or not message:
        raise Problem(400, "Bad request", "a report has a message, and may have a place: texts")
    if not errors.from_browser(message[:MAX_REPORT], place[:MAX_REPORT], address):
        raise enough()
    return json_answer("{}", 202)


def enough() -> Problem:
    """What is said to who reports when there were enough reports."""
    app_state().instance().refused["reports"] += 1
    return Problem(429, "Too many", "enough is known of what goes wrong", retry_after=60)


def metrics() -> Response:
    """GET /metrics: the deployment's figures as Prometheus reads them."""
    state = app_state()
    if state.settings.metrics_key is not None and "Authorization" in request.headers:
        require_bearer(state.settings.metrics_key)
    else:
        viewer(state)
    try:
        from hybrid.monitor.metrics import CONTENT_TYPE, exposition
    except ImportError:
        raise Problem(404, "Not found", "pip install prometheus-client for this") from None
    state.monitor().refresh()
    response = Bare(exposition(state.monitor().picture()), content_type=CONTENT_TYPE)
    response.headers["Cache-Control"] = "no-store"
    return response
