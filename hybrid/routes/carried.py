"""What of a request's environ can be kept as JSON for as long as its stream lives."""

import json
from collections.abc import Mapping
from typing import Any

RECHECK = "hybrid.recheck"
"""The key that is true in the environ where an identity is looked at again; not in a request's."""

MAX_VALUE = 4096
"""Characters of JSON for one value that a middleware has put there. What is longer (a catalogue, a
configuration) is no credential, and would be kept once a stream."""

# What a browser prefers, where it stands in the log, which trace a request belongs to, what its
# body is, which nobody keeps: it has no say in who the request is.
UNTELLING = frozenset(
    "HTTP_" + name
    for name in (
        *("ACCEPT", "ACCEPT_ENCODING", "ACCEPT_LANGUAGE", "CACHE_CONTROL", "CONNECTION", "DNT"),
        *("IF_MODIFIED_SINCE", "IF_NONE_MATCH", "LAST_EVENT_ID", "PRAGMA", "PRIORITY", "REFERER"),
        *("SEC_CH_UA", "SEC_CH_UA_MOBILE", "SEC_CH_UA_PLATFORM", "SEC_FETCH_DEST", "SEC_GPC"),
        *("SEC_FETCH_MODE", "SEC_FETCH_SITE", "SEC_FETCH_USER", "TE", "UPGRADE_INSECURE_REQUESTS"),
        *("TRACEPARENT", "TRACESTATE", "EXPECT", "TRANSFER_ENCODING"),
    )
) | {
    *("REMOTE_PORT", "RAW_URI", "REQUEST_URI", "REQUEST_METHOD", "SERVER_SOFTWARE"),
    *("CONTENT_LENGTH", "CONTENT_TYPE"),
}
OF_ONE_REQUEST = ("wsgi.", "gunicorn.", "werkzeug.", "flask.", "opentelemetry", "hybrid.")
"""Keys below these are of a request itself: its socket, its contexts, when its span began."""


def carried(environ: Mapping[str, Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """What can be kept, and what cannot, or not as what it is, as `key (type)`.

    Kept is what comes out of JSON as it went in: strings, numbers, lists and dicts of them, as a
    middleware puts into the environ that has read a token. Of a class derived from these, which
    may have more to it, the JSON is kept.
    """
    kept: dict[str, Any] = {}
    lost = set[str]()
    for key, value in environ.items():
        if key in UNTELLING or key.startswith("gunicorn."):
            continue
        if type(value) is str:
            kept[key] = value
        elif not key.startswith(OF_ONE_REQUEST):
            comes_back = _comes_back(value)
            if comes_back:
                kept[key] = value
            if not comes_back or not _is_plain(value):
                lost.add(f"{key} ({type(value).__name__})")
    return kept, frozenset(lost)


def _is_plain(value: Any) -> bool:
    """Whether it is of the very types that JSON gives back. It is no deeper than JSON can be."""
    if type(value) is list:
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return value is None or type(value) in (str, int, float, bool)


def _comes_back(value: Any) -> bool:
    """Whether JSON gives the same value back, and it is short enough to be kept."""
    try:
        text = json.dumps(value, allow_nan=False)
        return len(text) <= MAX_VALUE and bool(json.loads(text) == value)
    except (TypeError, ValueError, RecursionError):
        return False
