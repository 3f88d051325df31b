"""Who asks, and what they may do."""

import hmac
import json
import logging
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from contextvars import Context
from inspect import isawaitable
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from flask import Flask, current_app, request
from werkzeug.exceptions import HTTPException

from hybrid.audience import DOCTOR, MAX_NAME, Audience, Identity, is_name
from hybrid.auth import STREAM_SECONDS
from hybrid.hooks import refuse_topic
from hybrid.limits import of_address
from hybrid.routes.answers import FULL_RETRY_AFTER, Problem, app_state
from hybrid.routes.bounds import (
    ASKED,
    address_of,
    count,
    count_refusal,
    count_request,
    patience,
    refuse_if_spent,
)
from hybrid.routes.carried import MAX_VALUE, RECHECK, carried
from hybrid.routes.origins import host_of, is_own_host
from hybrid.wire import to_json

if TYPE_CHECKING:
    from hybrid.application import AppState

logger = logging.getLogger("hybrid")

MAX_TOPICS = 100


def identity_of(state: "AppState") -> Identity:
    """Who asks: counted for the address first, so that nobody makes the hooks work for nothing."""
    count_request(state.instance())
    return _identity(state)


def _identity(state: "AppState") -> Identity:
    identity = ask("identify", state.hooks.identify)
    if not isinstance(identity, Identity):  # None, or a hook that forgot what it returns
        raise Problem(401, "Unauthorized", "this needs an identity; log in first")
    if identity.user is None and not state.settings.anonymous:
        raise Problem(401, "Unauthorized", "anonymous visitors may not connect; log in first")
    return identity


MAX_CREDENTIALS = 16 * 1024
"""Characters kept for a stream: a hundred streams of one address are then under 2 MB."""
REHEARSAL_SECONDS = 5.0
"""How long a first look may take before the stream goes on without its answer."""
MAX_REHEARSED = 1000
"""Users, topics and kinds of environ whose first look is remembered."""
GRANTED = "hybrid.granted"
TICKET = "hybrid.ticket"
OURS = frozenset({"since", "topic", "wait", "limit", "ticket"})
"""Query parameters of the protocol; what else there is, the application may look at."""


def credentials_of(identity: Identity, topics: frozenset[str], *, granted: bool = False) -> str:
    """What of this request says who it is, to be kept as long as its stream.

    Everything that a hook could look at, since a proxy may name the user in any header; the
    same for all tabs of a browser. Nothing for who has nothing to lose: an anonymous visitor
    without topics, who sees what everybody does. `granted`: the topics are the endpoint's own.
    """
    if identity.user is None and not identity.roles and not topics:
        return ""
    args = request.args
    told, lost = carried(request.environ)
    query = [(key, value) for key, value in args.items(multi=True) if key not in OURS]
    told["QUERY_STRING"] = urlencode(query) if query else ""
    if granted:
        told[GRANTED] = "yes"
    text = to_json(told)
    if len(text) > MAX_CREDENTIALS:
        raise Problem(431, "Header fields too large", "they are kept as long as the stream lives")
    if lost:
        _rehearse(app_state(), text, identity, topics, lost)
    return text


class NotKept(Problem):
    """Who asks cannot be kept for as long as a stream lives."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "Unavailable",
            "who you are cannot be kept with the stream; the server's log says why",
            retry_after=FULL_RETRY_AFTER,
        )


def _rehearse(
    state: "AppState",
    credentials: str,
    identity: Identity,
    topics: frozenset[str],
    lost: frozenset[str],
) -> None:
    """Ask again at once where something of the environ cannot be kept; refuse if that is missed.

    Else each such stream would end at its first heartbeat, come back, and end again. What has
    passed is not asked about any more: `lost`, the keys and types of the environ, for this user and
    these topics, since hooks may look at it for some alone.
    """
    passed = (lost, identity.user, topics)
    if passed in state.rehearsed:
        return
    answers: list[bool] = []

    def look() -> None:
        try:
            found, granted = state.look(credentials, {topics} if topics else ())
            answers.append(found == identity and (not topics or topics in granted))
        except Exception:
            answers.append(False)  # `ask` has logged what the hook raised

    # A thread and a context of its own: nothing of this request may be in the answer.
    thread = threading.Thread(target=Context().run, args=(look,), name="hybrid-rehearsal")
    thread.daemon = True
    thread.start()
    thread.join(REHEARSAL_SECONDS)
    if answers == [True]:
        if len(state.rehearsed) >= MAX_REHEARSED:
            state.rehearsed.clear()
        state.rehearsed.add(passed)
    elif answers == [False]:
        logger.error(
            "a stream is refused: identify or authorize answers otherwise when it is asked again,"
            " as at each heartbeat. What a middleware puts into the WSGI environ is kept only if"
            " it is JSON (strings, numbers, lists, dicts) of at most %d characters, which this is"
            " not: %s. Put JSON there, or let identify read the cookies and headers itself.",
            MAX_VALUE,
            ", ".join(sorted(lost)),
        )
        raise NotKept


def look_again(
    app: Flask, state: "AppState", credentials: str, wanted: Collection[frozenset[str]]
) -> tuple[Identity | None, Collection[frozenset[str]]]:
    """Who the credentials belong to now, None for nobody, and which of the wanted are granted.

    What the application does before a request is done here too: it may be what makes `identify`
    work, and what refuses. Raises where no answer can be had.
    """
    told = json.loads(credentials)
    if TICKET in told:
        user, roles, until = told[TICKET]
        return (Identity(user, roles) if state.clock() < until else None), wanted
    environ = {
        "REQUEST_METHOD": "GET",
        "wsgi.version": (1, 0),
        "wsgi.input": BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    environ |= told
    environ[RECHECK] = True
    with app.request_context(environ):
        try:
            refusal = app.preprocess_request()
            if refusal is not None:
                if app.make_response(refusal).status_code in UNDECIDED:
                    raise RuntimeError("a before_request handler cannot answer now")
                return None, ()
            identity = _identity(state)
            if GRANTED in told:
                return identity, wanted
            return identity, {topics for topics in wanted if _granted(state, identity, topics)}
        except HTTPException as refusal:
            if refusal.code in UNDECIDED:
                raise
            return None, ()


UNDECIDED = (429, 500, 502, 503, 504)
"""Statuses that do not say no, only that it cannot be said now."""


def _granted(state: "AppState", identity: Identity, topics: Collection[str]) -> bool:
    return all(
        topic.startswith(DOCTOR) or ask("authorize", state.hooks.authorize, identity, topic)
        for topic in topics
    )


def redeem(state: "AppState", ticket: str) -> tuple[Identity, frozenset[str], str, int]:
    """Who the ticket was issued to, for which topics, what is kept as credentials, and when."""
    try:
        found = state.instance().tickets.redeem(ticket, patience())
    except ConnectionError as error:
        raise Problem(503, "Unavailable", str(error), retry_after=FULL_RETRY_AFTER) from error
    if found is None:
        raise Problem(401, "Unauthorized", "the ticket is not valid (any more)")
    identity, topics, issued_ms = found
    until = state.clock() + STREAM_SECONDS  # which nobody sets back, as they may the time of day
    credentials = json.dumps({TICKET: [identity.user, sorted(identity.roles), until]})
    return identity, topics, credentials, issued_ms


def topics_of(state: "AppState", identity: Identity, posted: Sequence[str]) -> frozenset[str]:
    """The topics of the query and those that were `posted`, all of which are granted."""
    topics = frozenset([*request.args.getlist("topic"), *posted])
    if len(topics) > MAX_TOPICS:
        raise Problem(400, "Bad request", f"at most {MAX_TOPICS} topics a connection")
    for topic in topics:
        if not is_name(topic):
            raise Problem(
                400,
                "Bad request",
                f"a topic has 1 to {MAX_NAME} characters and no control characters",
            )
        if not _granted(state, identity, {topic}):
            raise _closed(state, identity, topic)
    return topics


def _closed(state: "AppState", identity: Identity, topic: str) -> Problem:
    """What is said of a topic that is refused; to the operator too, once in a while."""
    detail, why = f"the topic {topic!r} is not open to you", "the authorize hook said no"
    if state.hooks.authorize is refuse_topic:
        why = "no @realtime.authorize hook is set, so every topic is closed"
        if state.debug():  # whether there is a hook is nothing for strangers
            detail += f": {why}"
    more = state.instance().closed_topics.told()
    if more is not None:
        others = f" ({more} more since the last line like this one)" if more else ""
        logger.warning("topic %.80a refused to user %.80a: %s%s", topic, identity.user, why, others)
    return Problem(403, "Forbidden", detail)


def permitted(state: "AppState", name: str, identity: Identity) -> bool:
    """Whether the hook of this name admits somebody.

    Without one, debug mode admits who asks for this machine.

    A page of any other site can have its own name lead here (DNS rebinding): to a browser it is
    then of one origin with us.
    """
    hook = getattr(state.hooks, name)
    if hook is not None:
        return bool(ask(name, hook, identity))
    return state.debug() and is_own_host()


def not_permitted(state: "AppState", detail: str) -> Problem:
    """What is said to who is not permitted; where debug mode would have been enough, why not."""
    if state.debug() and not is_own_host():
        detail += (
            f". Debug mode opens it by the names of this machine alone, and {host_of()!r:.80} is"
            " none that is known: add it to app.config['TRUSTED_HOSTS']"
        )
    return Problem(403, "Forbidden", detail)


def may_test(state: "AppState", identity: Identity, audience: Audience) -> bool:
    only_self = identity.user is not None and audience == Audience(users=frozenset({identity.user}))
    return only_self or permitted(state, "can_test", identity)


def require_key(state: "AppState") -> None:
    """Let in who knows the key; without a key there is nothing here."""
    key = state.settings.publish_key
    if key is None:
        raise Problem(404, "Not found", "publishing is off: HYBRID_PUBLISH_KEY is not set")
    require_bearer(key)


def require_bearer(key: str) -> None:
    """Let in who knows the key.

    An address that has tried too many wrong ones is refused before another is looked at, right
    or wrong: it would still find out otherwise. Who sends the right one is never counted.
    """
    instance = app_state().instance()
    who = of_address(address_of(instance))
    refuse_if_spent(instance, "wrong_keys", who)
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), key.encode()):
        count(instance, "wrong_keys", who)
        problem = Problem(401, "Unauthorized", "send the key: Authorization: Bearer …")
        problem.headers["WWW-Authenticate"] = "Bearer"
        raise problem


def ask(name: str, hook: Callable[..., Any], *arguments: Any) -> Any:
    """Call the hook of this name; one that raises admits nobody.

    It may be `async`. What could still be waited for is no answer: taken as one it would be true.
    """
    request.environ[ASKED] = True
    try:
        answer = current_app.ensure_sync(hook)(*arguments)
        if isawaitable(answer):
            raise TypeError("the hook returned something to wait for; make it an `async def`")
        return answer
    except HTTPException as refusal:
        # abort(403) in a hook is an answer. Of abort(response) Flask asks no error handler.
        status = getattr(refusal.response, "status_code", None)
        if status in (401, 403) and RECHECK not in request.environ:
            count_refusal()
        raise
    except Exception:
        match arguments:
            case []:
                about, undecided = "", "who you are could not be established"
            case [identity]:
                about = f" for user {identity.user!r:.80}"
                undecided = "whether this is open to you could not be decided"
            case [identity, topic]:
                about = f" for user {identity.user!r:.80}, topic {topic!r:.80}"
                undecided = f"whether the topic {topic!r:.80} is open to you could not be decided"
        logger.exception(
            "the %s hook (%s.%s) raised%s at %s %s; answered 503",
            name,
            getattr(hook, "__module__", "?"),
            getattr(hook, "__qualname__", hook),
            about,
            request.method,
            request.path,
        )
        raise Problem(503, "Unavailable", undecided, retry_after=FULL_RETRY_AFTER) from None
