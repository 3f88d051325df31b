"""What WSGI middleware puts into the environ, when an identity is looked at again."""

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from flask import request
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from hybrid import Identity
from hybrid.application import AppState
from hybrid.routes.carried import MAX_VALUE, carried
from servers import PREFIX
from sites import MakeSite, Site, as_problem, types


@dataclass(frozen=True)
class Account:
    """What a middleware may make of a token; JSON knows nothing of it."""

    name: str


def state_of(site: Site) -> AppState:
    state: AppState = site.app.extensions["hybrid"]
    return state


def put(site: Site, **values: Any) -> None:
    """A middleware that puts these values into each environ below `sso.`."""
    inner: Callable[..., Iterable[bytes]] = site.app.wsgi_app

    def middleware(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ.update({f"sso.{key}": value for key, value in values.items()})
        return inner(environ, start_response)

    site.app.wsgi_app = middleware  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("value", "who"),
    [
        ({"user": {"name": "zoë"}, "roles": ["a", "b"]}, lambda value: value["user"]["name"]),
        (["alice"], lambda value: value[0]),
        (17, lambda value: f"number {value + 1}"),
        (None, lambda value: "nobody" if value is None else ""),
    ],
)
def test_what_json_can_carry_is_there_at_the_look(
    make_site: MakeSite, value: Any, who: Callable[[Any], str]
) -> None:
    """A look answers as the request did: the stream goes on after it."""
    site = make_site(identify=False)
    put(site, found=value)
    site.realtime.identify(lambda: Identity(who(request.environ["sso.found"])))
    with site.stream() as stream:
        stream.hello()
        state_of(site).instance().recheck.step()
        site.emit("on", users=[who(value)])
        assert types(stream.upto("on")) == ["on"]


@pytest.mark.parametrize("wait", ["/sse", "/polling?wait=20&since="])
def test_an_object_that_identify_needs_is_refused_at_the_first_request(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture, wait: str
) -> None:
    """And not at a heartbeat, again and again; the log names the key and what may be there."""
    site = make_site(identify=False)
    put(site, account=Account("alice"), ready=True)
    site.realtime.identify(lambda: Identity(request.environ["sso.account"].name))
    cursor = site.realtime.cursor() if "polling" in wait else ""
    with caplog.at_level(logging.ERROR, "hybrid"):
        for _ in range(2):
            if cursor:
                # A poll is answered, and does not wait: who falls back to polls goes on.
                assert site.get(wait + cursor).status_code == 200
            else:
                as_problem(site.get(wait), 503)
    said = [line for line in caplog.messages if line.startswith("a stream is refused")]
    assert len(said) == 2
    assert "sso.account (Account)" in said[0]
    assert "ready" not in said[0]
    assert site.hub.connections == {}


def test_an_identity_without_its_object_is_no_other_one(make_site: MakeSite) -> None:
    """A hook that falls back to somebody else is refused too: the stream would be another's."""
    site = make_site(identify=False)
    put(site, account=Account("alice"))

    @site.realtime.identify
    def identify() -> Identity:
        account = request.environ.get("sso.account")
        return Identity(account.name if account else "guest")

    as_problem(site.get("/sse"), 503)


def test_an_object_that_no_hook_needs_costs_one_look(make_site: MakeSite) -> None:
    """Once in a process; a long list and a callable are nobody's credentials either."""
    site = make_site(identify=False)
    put(site, account=Account("x"), call=print, long=["x"] * MAX_VALUE, numbered={1: "x"})
    asked: list[bool] = []

    @site.realtime.identify
    def identify() -> Identity:
        asked.append(request.environ.get("hybrid.recheck", False))
        assert "sso.account" in request.environ or asked[-1]
        return Identity("alice")

    for _ in range(3):
        with site.stream() as stream:
            stream.hello()
    assert asked == [False, True, False, False]


def test_a_first_look_that_does_not_end_keeps_nobody_waiting_for_ever(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream opens, and the look at the heartbeat judges it."""
    monkeypatch.setattr("hybrid.routes.access.REHEARSAL_SECONDS", 0.01)
    site = make_site(identify=False)
    put(site, account=Account("x"))
    answer = threading.Event()

    @site.realtime.identify
    def identify() -> Identity:
        if "hybrid.recheck" in request.environ:
            answer.wait()
        return Identity("alice")

    try:
        with site.stream() as stream:
            stream.hello()
    finally:
        answer.set()


def test_what_is_kept_is_the_same_for_all_tabs() -> None:
    """Where a request stands in the log, its trace and its span say nothing of who it is."""
    tab = {"HTTP_COOKIE": "a=b", "sso.user": {"id": 1}}
    other = tab | {
        "HTTP_TRACEPARENT": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "HTTP_LAST_EVENT_ID": "x.1.y",
        "opentelemetry-flask.starttime_key": 1795411881700,
        "wsgi.multithread": True,
    }
    assert carried(tab) == carried(other) == (tab, frozenset())


def test_with_opentelemetry_a_hook_can_tell_a_look_from_a_request(make_site: MakeSite) -> None:
    """Each look makes a span, since it runs what comes before a request; it is told apart by the
    key in the environ, begins when the look does, and is gone with `excluded_urls`."""
    site, quiet = make_site(), make_site()
    spans = InMemorySpanExporter()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))

    def mark(span: Any, environ: dict[str, Any]) -> None:
        span.set_attribute("hybrid.recheck", bool(environ.get("hybrid.recheck")))

    instrumentor: Any = FlaskInstrumentor()  # its methods have no types
    instrumentor.instrument_app(site.app, request_hook=mark, tracer_provider=tracing)
    instrumentor.instrument_app(quiet.app, excluded_urls=f"{PREFIX}/", tracer_provider=tracing)
    try:
        alice = {"X-User": "alice"}
        with site.stream(headers=alice) as stream, quiet.stream(headers=alice) as unseen:
            stream.hello(), unseen.hello()
            for one in (site, quiet):
                state_of(one).instance().recheck.step()
            site.emit("on", users=["alice"])
            assert types(stream.upto("on")) == ["on"]
        found = [span for span in spans.get_finished_spans() if span.attributes]
        looks = [span for span in found if (span.attributes or {})["hybrid.recheck"]]
        requests = [span for span in found if not (span.attributes or {})["hybrid.recheck"]]
        assert len(looks) == 1
        assert len(requests) == 1
        assert (looks[0].start_time or 0) > (requests[0].start_time or 0)
        assert not looks[0].parent
    finally:
        instrumentor.uninstrument_app(site.app)
        instrumentor.uninstrument_app(quiet.app)


class Claims(dict[str, Any]):
    """As a library has them that has read a token."""

    @property
    def sub(self) -> str:
        return str(self["sub"])


def test_a_class_of_json_values_is_not_taken_for_them(make_site: MakeSite) -> None:
    """What it has besides them is missed at the first request, not at the heartbeat."""
    site = make_site()
    wrapped = site.app.wsgi_app

    def with_claims(environ: Any, start: Any) -> Any:
        environ["sso.claims"] = Claims(sub="alice")
        return wrapped(environ, start)

    site.app.wsgi_app = with_claims  # type: ignore[method-assign, assignment]
    site.realtime.identify(lambda: Identity(request.environ["sso.claims"].sub))
    assert site.get("/sse").status_code == 503
    assert site.get("/polling?since=0").status_code == 200
    assert site.get("/polling?since=0&wait=20").status_code == 200, "answered without a wait"
    site.realtime.identify(lambda: Identity(request.environ["sso.claims"]["sub"]))
    with site.stream() as stream:
        stream.hello()


def test_who_passes_the_first_look_passes_for_no_other(make_site: MakeSite) -> None:
    """Hooks may look at the environ for some alone: for a topic, for who has no header."""
    site = make_site()
    wrapped = site.app.wsgi_app

    def with_tenant(environ: Any, start: Any) -> Any:
        environ["acme.tenant"] = object()
        return wrapped(environ, start)

    site.app.wsgi_app = with_tenant  # type: ignore[method-assign, assignment]
    site.realtime.identify(lambda: Identity(request.headers.get("X-User") or "somebody"))
    site.realtime.authorize(lambda _who, _topic: "acme.tenant" in request.environ)
    with site.stream(headers={"X-User": "bob"}) as stream:
        stream.hello()
    assert site.get("/sse?topic=a", headers={"X-User": "bob"}).status_code == 503
