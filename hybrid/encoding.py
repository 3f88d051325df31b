"""Data as the application's JSON provider makes it, in the bytes that a frame can carry."""

from typing import Any

from flask.json.provider import DefaultJSONProvider, JSONProvider

from hybrid.wire import on_one_line, to_json


def by_provider(provider: JSONProvider, data: Any) -> str:
    """JSON text in ASCII on one line, of what the provider's `dumps` says.

    Flask's own is not asked for its text but for its `default`: a text without spaces comes of
    that, and the same values. Raises `TypeError` and `ValueError` for what is no JSON, and whatever
    an own provider raises.
    """
    own = getattr(provider.dumps, "__func__", None)
    if isinstance(provider, DefaultJSONProvider) and own is DefaultJSONProvider.dumps:
        return to_json(data, provider.default)
    text: str | bytes = provider.dumps(data)
    if isinstance(text, bytes):
        text = text.decode()
    if not isinstance(text, str):
        raise TypeError(f"{type(provider).__name__}.dumps returned {type(text).__name__}, no text")
    return on_one_line(text)
