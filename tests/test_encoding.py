"""The application's JSON provider decides what data looks like, at the moment of the emit."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from flask import Flask, jsonify
from flask.json.provider import DefaultJSONProvider, JSONProvider
from hypothesis import given
from hypothesis import strategies as st

from hybrid import EventTooLarge, Hybrid, InvalidEvent
from hybrid.wire import on_one_line
from servers import PREFIX
from sites import MakeSite, Site

MOMENT = datetime(2026, 12, 1, 3, 0, tzinfo=UTC)


def iso(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"no JSON: {type(value).__name__}")


class OfItsOwn(JSONProvider):
    """No relative of Flask's default, as one on orjson is none."""

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        return json.dumps(obj, default=iso, indent=2, ensure_ascii=False)

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        return json.loads(s)


class Bytes(OfItsOwn):
    """As orjson and msgspec do; `jsonify` takes it."""

    def dumps(self, obj: Any, **kwargs: Any) -> Any:
        return super().dumps(obj).encode()


class Overriding(DefaultJSONProvider):
    """Flask's, with a `dumps` that does something first."""

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        return super().dumps({"at": obj["at"].isoformat()}, **kwargs)


class WithDefault(DefaultJSONProvider):
    """Flask's, with another `default`."""

    default = staticmethod(iso)


def with_default(app: Flask) -> JSONProvider:
    """Flask's own, changed in place."""
    provider = DefaultJSONProvider(app)
    provider.default = iso
    return provider


def with_dumps(app: Flask) -> JSONProvider:
    provider = DefaultJSONProvider(app)
    provider.dumps = OfItsOwn(app).dumps  # type: ignore[method-assign]
    return provider


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "make", [OfItsOwn, Bytes, Overriding, WithDefault, with_default, with_dumps]
)
def test_data_is_what_jsonify_says(make: Callable[[Flask], JSONProvider], late: bool) -> None:
    """Whichever way the provider is another one, and also if it is set after `Hybrid(app)`."""
    app = Flask(__name__)
    if not late:
        app.json = make(app)
    realtime = Hybrid(app)
    if late:
        app.json = make(app)
    app.add_url_rule("/same", "same", lambda: jsonify({"at": MOMENT}))
    realtime.emit("told", {"at": MOMENT})
    client = app.test_client()
    (event,) = client.get(f"{PREFIX}/polling?since=0").get_json(force=True)["events"]
    same = json.loads(client.get("/same").data)
    assert event["data"] == same == {"at": MOMENT.isoformat()}
    app.extensions["hybrid"].forget()


class Given(OfItsOwn):
    """Says what a test wants it to say."""

    text: Any = "null"

    def dumps(self, obj: Any, **kwargs: Any) -> Any:
        return self.text


@pytest.fixture
def said(make_site: MakeSite) -> tuple[Site, Given]:
    site = make_site(MAX_EVENT_BYTES=1024)
    site.app.json = provider = Given(site.app)
    return site, provider


@pytest.mark.parametrize(
    ("text", "frame"),
    [
        ('{\r\n\t"b": 1.10,\n"a": 9007199254740993}', '{ "b": 1.10, "a": 9007199254740993}'),
        ('"z\u2028o\xeb \U0001f514"', '"z\\u2028o\\u00eb \\ud83d\\udd14"'),
        (b'["zo\xc3\xab"]', '["zo\\u00eb"]'),
        ('"\\n"', '"\\n"'),
    ],
)
def test_a_frame_has_the_providers_text_on_one_line(
    said: tuple[Site, Given], text: Any, frame: str
) -> None:
    """Digits and order as they were; nothing that could end a line of a stream."""
    site, provider = said
    provider.text = text
    with site.stream() as stream:
        stream.hello()
        site.realtime.emit("told", 1)
        assert stream.upto("told")[-1].data == frame
    assert json.loads(frame) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "NaN", "[-Infinity]", "{'a': 1}", '"\n"', "1 2", "[1,]", "[" * 100_000, None),
        b"\xff",
        "1\n\nevent: hybrid.bye\ndata: 1",
    ],
)
def test_what_is_no_json_is_refused(said: tuple[Site, Given], text: Any) -> None:
    """By name, before anything is stored."""
    site, provider = said
    provider.text = text
    with pytest.raises(InvalidEvent, match="data is not JSON"):
        site.realtime.emit("told", 1)
    assert site.poll("?since=0")["events"] == []


def test_the_bound_is_that_of_the_providers_text(said: tuple[Site, Given]) -> None:
    """As it goes out: beyond ASCII a character has six bytes."""
    site, provider = said
    provider.text = json.dumps("x" * 1022)
    site.realtime.emit("told", 1)
    provider.text = '"' + "\xeb" * 171 + '"'
    with pytest.raises(EventTooLarge):
        site.realtime.emit("told", 1)


floats = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(values, st.sampled_from([None, 0, "\t", "\r\n"]))
def test_one_line_means_the_same(value: Any, indent: Any) -> None:
    """Whatever the provider's spaces and characters: the same values, ASCII, one line."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if isinstance(indent, str):
        text = text.replace("\n", "\r\n")
    line = on_one_line(text)
    assert line.isascii()
    assert not {"\n", "\r", "\t"} & set(line)
    assert json.loads(line) == value


def test_flasks_own_makes_what_it_made(site: Site) -> None:
    """A date as in a header, a decimal as a string; without spaces."""
    site.realtime.emit("told", {"at": MOMENT, "sum": Decimal("1.10")})
    with site.stream("?since=0") as stream:
        data = stream.upto("told")[-1].data
    assert data == '{"at":"Tue, 01 Dec 2026 03:00:00 GMT","sum":"1.10"}'
