"""Numbers and JSON bodies of a request, checked."""

import json
import re
from typing import TYPE_CHECKING, Any

from flask import request

from hybrid.routes.answers import Problem

if TYPE_CHECKING:
    from hybrid.application import AppState

MAX_BODY = 16 * 1024 * 1024
TOPICS_BYTES = 320 * 1024
"""A hundred topics of 256 characters, each of which JSON may spell with twelve bytes."""


def number(name: str, default: float, low: float, high: float, *, whole: bool = False) -> float:
    text = request.args.get(name)
    if text is None:
        return default
    digits = r"[0-9]{1,9}" if whole else r"[0-9]{1,9}(\.[0-9]{1,9})?"
    value = float(text) if re.fullmatch(digits, text) else -1.0
    if not low <= value <= high:
        kind = "whole number" if whole else "number"
        raise Problem(400, "Bad request", f"{name} must be a {kind} from {low:g} to {high:g}")
    return value


def json_object(known: set[str], state: "AppState") -> dict[str, Any]:
    fields = json_body(state)
    if not isinstance(fields, dict):
        raise Problem(400, "Bad request", "the body must be a JSON object")
    if unknown := sorted(fields.keys() - known):
        raise Problem(400, "Bad request", f"unknown field {unknown[0]!r:.60}")
    return fields


def json_body(state: "AppState", events: int = 1) -> Any:
    """The body's JSON; it may be as large as that many events."""
    # Twice the event: its data may be spelled with escapes that encoding again removes.
    return _json(min((2 * state.settings.max_event_bytes + 16 * 1024) * events, MAX_BODY))


def posted_topics() -> list[str]:
    """The topics that the body of a POST asks for; none for other methods.

    JSON alone, which a page of another site cannot send without being asked first. The body is
    read whatever else comes of the request: what is left of it would be cut off with the stream.
    """
    if request.method != "POST":
        return []
    body = _json(TOPICS_BYTES)
    topics = body.get("topics") if isinstance(body, dict) else None
    if not isinstance(topics, list) or len(body) != 1:
        raise Problem(400, "Bad request", 'the body is {"topics": […]}, and nothing else')
    if not all(isinstance(topic, str) for topic in topics):
        raise Problem(400, "Bad request", "topics are texts")
    return topics


def _json(most: int) -> Any:
    """The body's JSON, of so many bytes at most."""
    if request.mimetype != "application/json":
        raise Problem(415, "Unsupported media type", "send application/json")
    request.max_content_length = most
    body = request.get_data(cache=False)
    if len(body) >= most:  # Werkzeug cuts a chunked body there, silently
        raise Problem(413, "Content too large", f"at most {most} bytes")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "Bad request", f"the body is not JSON: {error}") from error
