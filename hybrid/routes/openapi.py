"""GET /openapi.json: what docs/protocol.md says, for programs (OpenAPI 3.1)."""

from typing import Any

from flask import Response, request

import hybrid
from hybrid.audience import MAX_NAME
from hybrid.events import MAX_CURSOR
from hybrid.routes.access import MAX_TOPICS
from hybrid.routes.answers import app_state, json_answer
from hybrid.wire import to_json

Object = dict[str, Any]

MEANINGS = {
    "400": "a parameter or the body is not as described",
    "401": "no identity, or a ticket or key that is not valid",
    "403": "not for you, or asked for by a page of another site",
    "404": "nothing there, or switched off",
    "409": "there are more by now than were counted",
    "413": "too large",
    "415": "not application/json",
    "422": "this Idempotency-Key came with other events earlier",
    "429": "too often, or too many at once",
    "431": "headers that would be kept as long as the stream are too large",
    "503": "full, draining, out of reach, or a server that cannot stream",
}


def document(prefix: str, settings_bytes: int) -> Object:
    """The document for a blueprint that is mounted at `prefix`."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "flask-hybrid",
            "version": hybrid.__version__,
            "description": "Live updates: streams and polls with one cursor through both.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": prefix}],
        "paths": _paths(settings_bytes),
        "components": {"schemas": _schemas(), "securitySchemes": _security()},
    }


def openapi() -> Response:
    """GET /openapi.json."""
    prefix = request.path.removesuffix("/openapi.json")
    text = to_json(document(request.script_root + prefix, app_state().settings.max_event_bytes))
    return json_answer(text)


def _security() -> Object:
    return {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "HYBRID_PUBLISH_KEY or HYBRID_METRICS_KEY",
        }
    }


def _schemas() -> Object:
    text = {"type": "string"}
    optional: Object = {"type": ["string", "null"]}
    name: Object = {"type": ["string", "integer"], "minLength": 1, "maxLength": MAX_NAME}
    names: Object = {"type": "array", "items": name}
    addressed: Object = {"users": names, "roles": names, "topics": names}
    reason = {"type": "object", "properties": {"reason": text}, "required": ["reason"]}
    return {
        "Problem": _object(
            {
                "type": text,
                "title": text,
                "status": {"type": "integer", "minimum": 400, "maximum": 599},
                "detail": text,
            },
            "type title status detail",
        ),
        "Event": _object(
            {
                "id": text,
                "cursor": optional,
                "type": text,
                "data": {},
                "text": text,
                "at": {"type": "integer"},
            },
            "id cursor type at",
        ),
        "Poll": _object(
            {
                "events": {"type": "array", "items": _ref("Event")},
                "cursor": text,
                "more": {"type": "boolean"},
                "gap": {"anyOf": [{"type": "null"}, reason]},
                "wait": {"type": "integer"},
                "bus": {"enum": ["ok", "degraded"]},
            },
            "events cursor more gap wait bus",
        ),
        "Wish": _object({"type": text, "data": {}, **addressed}),
        "Publication": _object({"type": text, "data": {}, "text": text, **addressed}, "type"),
        "Receipt": _object(
            {
                "id": text,
                "cursor": optional,
                "stored": {"enum": ["log", "outbox"]},
                "connections": {"type": "integer"},
                "replicas": {"type": "integer"},
            },
            "id cursor stored connections",
        ),
    }


def _paths(max_bytes: int) -> Object:
    cursor = _query("since", "a cursor, or Unix milliseconds", maxLength=MAX_CURSOR)
    topic: Object = {
        "name": "topic",
        "in": "query",
        "schema": {"type": "array", "items": {"type": "string"}, "maxItems": MAX_TOPICS},
        "style": "form",
        "explode": True,
    }
    ticket = _query("ticket", "from `Hybrid.ticket`, in place of cookies and headers")
    last: Object = {"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}}
    wait = _query("wait", "seconds to hold the request", "number", minimum=0, maximum=25)
    limit = _query("limit", "events at most", "integer", minimum=1, maximum=1000)
    stream = _answer("a stream", "text/event-stream", {"type": "string"})
    poll = _answer("events since the cursor", "application/json", _ref("Poll"))
    anything = _answer("figures", "application/json", {"type": "object"})
    receipt = _answer("stored", "application/json", _ref("Receipt"))
    one_or_many: Object = {"anyOf": [_ref("Receipt"), {"type": "array", "items": _ref("Receipt")}]}
    receipts = _answer("stored", "application/json", one_or_many)
    publication = _ref("Publication")
    key: Object = {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string"}}
    ranges = _query("range", "how far back", enum=["5m", "1h", "24h"])
    sorts = _query("sort", "by what; see the monitor")
    page = _query("page", "from 1", "integer", minimum=1)
    return {
        "/sse": _read("Stream", [cursor, topic, ticket, last], stream),
        "/polling": _read("Poll", [cursor, topic, wait, limit], poll),
        "/test": _post(
            "Send a test event", _ref("Wish"), {"201": receipt, "202": receipt}, max_bytes
        ),
        "/publish": _post(
            "Send events with the key",
            {"anyOf": [publication, {"type": "array", "items": publication, "maxItems": 1000}]},
            {"201": receipts, "202": receipts},
            max_bytes,
            codes="400 401 404 413 415 422 503",
            parameters=[key, _query("ack", "wait for a replica", enum=["replica"])],
            security=[{"bearer": []}],
        ),
        "/monitor": _get("Figures, or the page", [], anything, MONITOR, page=True),
        "/monitor/history": _get("Columns for charts", [ranges], anything, MONITOR),
        "/monitor/connections": _get(
            "One page of connections",
            [
                _query("q", "text to look for"),
                _query("transport", "sse or polling"),
                sorts,
                _query("order", "asc or desc"),
                page,
            ],
            anything,
            MONITOR,
        ),
        "/monitor/event": _get(
            "What an event says", [_query("cursor", "its place")], anything, MONITOR + " 404"
        ),
        "/monitor/disconnect": _post(
            "End a connection, a user's, or all that a search finds",
            _object(
                {
                    "connection": {"type": "string"},
                    "user": {"type": "string"},
                    "search": {"type": "string"},
                    "count": {"type": "integer"},
                }
            ),
            {"200": anything},
            max_bytes,
            codes="400 401 403 404 409 413 415 503",
        ),
        "/monitor/snooze": _post(
            "Tell nobody of an alert for some minutes",
            _object({"rule": {"type": "string"}, "minutes": {"type": "integer"}}, "rule minutes"),
            {"200": anything},
            max_bytes,
            codes="400 401 403 404 413 415 503",
        ),
        "/monitor/sse": _get("The monitor's stream", [cursor], stream, MONITOR),
        "/monitor/polling": _get("The same as a poll", [cursor], poll, MONITOR),
        "/report": _post(
            "A browser had an error",
            _object({"message": {"type": "string"}, "place": {"type": "string"}}, "message"),
            {"202": anything},
            max_bytes,
        ),
        "/metrics": _get(
            "For Prometheus",
            [],
            _answer("figures", "text/plain", {"type": "string"}),
            MONITOR + " 404",
        ),
        "/client/{filename}": _get("The browser's files", [_path("filename")], _file(), "404"),
        "/client/{version}/{filename}": _get(
            "The same, never changing", [_path("version"), _path("filename")], _file(), "404"
        ),
        "/health/live": _get("The process answers", [], anything, ""),
        "/health/ready": _get("It can take clients", [], anything, "503"),
        "/openapi.json": _get("This document", [], anything, ""),
    }


MONITOR = "400 401 403 503"


def _object(properties: Object, required: str = "") -> Object:
    schema: Object = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": required.split()} if required else {})


def _ref(name: str) -> Object:
    return {"$ref": f"#/components/schemas/{name}"}


def _query(name: str, description: str, type: str = "string", **bounds: Any) -> Object:
    schema = {"type": type, **bounds}
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _path(name: str) -> Object:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _answer(description: str, kind: str, schema: Object) -> Object:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _file() -> Object:
    return {"description": "the file"}


def _problems(codes: str) -> Object:
    problems: Object = {
        code: _answer(MEANINGS[code], "application/problem+json", _ref("Problem"))
        for code in codes.split()
    }
    for code in {"429", "503"} & problems.keys():
        seconds = {"schema": {"type": "integer", "minimum": 1}}
        problems[code]["headers"] = {"Retry-After": seconds}
    return problems


def _get(
    summary: str, parameters: list[Object], answer: Object, codes: str, *, page: bool = False
) -> Object:
    if page:
        html = {"text/html": {"schema": {"type": "string"}}}
        answer = answer | {"content": answer["content"] | html}
    operation = {
        "summary": summary,
        "parameters": parameters,
        "responses": {"200": answer} | _problems(codes),
    }
    return {"get": operation}


def _read(summary: str, parameters: list[Object], answer: Object) -> Object:
    """GET, and POST with the topics in the body."""
    codes = "400 401 403 429 431 503"
    topics: Object = {"type": "array", "items": {"type": "string"}, "maxItems": MAX_TOPICS}
    post = {
        "summary": f"{summary}, with topics in the body",
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _object({"topics": topics}, "topics")}},
        },
        "responses": {"200": answer} | _problems(codes + " 413 415"),
    }
    return _get(summary, parameters, answer, codes) | {"post": post}


def _post(
    summary: str,
    schema: Object,
    answers: Object,
    max_bytes: int,
    *,
    codes: str = "400 401 403 413 415 429 503",
    parameters: list[Object] | None = None,
    security: list[Object] | None = None,
) -> Object:
    operation: Object = {
        "summary": summary,
        "description": f"The encoded data of an event has at most {max_bytes} bytes.",
        "parameters": parameters or [],
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": answers | _problems(codes),
    }
    return {"post": operation | ({"security": security} if security else {})}
