"""`Hybrid`: the extension as an application sees it.

The object itself keeps hooks and nothing of any app: what belongs to an app lives in
`app.extensions["hybrid"]`, so that one `Hybrid` serves several apps, and what belongs to a
process is made on first use in that process.
"""

import gc
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from flask import Blueprint, Flask, Response, current_app, has_app_context, make_response

from hybrid.application import AppState
from hybrid.audience import Audience, Identity, Names, as_name
from hybrid.auth import scrub_logs
from hybrid.commit import when_committed
from hybrid.config import Settings
from hybrid.errors import ConfigError, NotReady
from hybrid.events import check_count
from hybrid.history import MAX_HISTORY, History, read_history
from hybrid.hooks import Authorize, Hooks, Identify, Permit
from hybrid.monitor.alerts import rules
from hybrid.neighbours import follow_logouts, keep_off
from hybrid.routes import make_blueprint
from hybrid.routes.access import look_again
from hybrid.routes.client import TEMPLATE_GLOBALS

IdentifyHook = TypeVar("IdentifyHook", bound=Identify)
AuthorizeHook = TypeVar("AuthorizeHook", bound=Authorize)
PermitHook = TypeVar("PermitHook", bound=Permit)
P = ParamSpec("P")


class Hybrid:
    """Live updates for a Flask application.

    `Hybrid(app)` or `Hybrid()` and later `init_app(app)`. Hooks are set by decorators before
    the first request:

    - `identify()` returns who a request is, or None for 401. Default: Flask-Login's current
      user, else `session["user_id"]` or `session["user"]` if it is a string or a number (17 is
      the user "17"), else anonymous.
    - `authorize(identity, topic)` grants a topic. Default: none.
    - `can_test(identity)`, `can_monitor(identity)` open those endpoints, `can_operate(identity)`
      what can be done in the monitor. Default: debug mode.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._hooks = Hooks()
        self._apps: weakref.WeakSet[Flask] = weakref.WeakSet()
        self.blueprint: Blueprint = make_blueprint()
        """Registered by `init_app`, unless it has been registered by hand before."""
        if app is not None:
            self.init_app(app)

    # -- hooks

    def identify(self, hook: IdentifyHook) -> IdentifyHook:
        """Decorator: `hook() -> Identity | None` says who the current request is; None is 401.

        It may be an `async def`, as all hooks may."""
        self._hooks.identify = hook
        return hook

    def authorize(self, hook: AuthorizeHook) -> AuthorizeHook:
        """Decorator: `hook(identity, topic) -> bool` says who may read a topic."""
        self._hooks.authorize = hook
        return hook

    def can_test(self, hook: PermitHook) -> PermitHook:
        """Decorator: `hook(identity) -> bool` says who may send test events to anyone."""
        self._hooks.can_test = hook
        return hook

    def can_monitor(self, hook: PermitHook) -> PermitHook:
        """Decorator: `hook(identity) -> bool` says who may read the monitor."""
        self._hooks.can_monitor = hook
        return hook

    def can_operate(self, hook: PermitHook) -> PermitHook:
        """Decorator: `hook(identity) -> bool` says who may act there: end connections, read what
        an event says. It is asked of those only whom `can_monitor` admits."""
        self._hooks.can_operate = hook
        return hook

    # -- setting up

    def init_app(self, app: Flask) -> None:
        """Read the `HYBRID_` settings, register the blueprint; later changes have no effect.

        Starts nothing: the first request or emit in a process does. Raises `ConfigError` for
        a setting that cannot be used, `RuntimeError` when the app has a Hybrid already.
        """
        if "hybrid" in app.extensions:
            raise RuntimeError(
                "this app has a Hybrid already; make one Hybrid() at module level and import"
                " it where it is needed, or call init_app once"
            )
        settings = Settings.load(app.config)
        try:
            rules(settings.alerts or {})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"HYBRID_ALERTS: {error}") from None
        state = AppState(self, self._hooks, settings, look_again, weakref.ref(app))
        app.extensions["hybrid"] = state
        state.end_with(app)
        self._apps.add(app)
        scrub_logs(app.name)
        if app.blueprints.get(self.blueprint.name) is not self.blueprint:
            app.register_blueprint(self.blueprint, url_prefix=settings.url_prefix)
        app.jinja_env.globals.update(TEMPLATE_GLOBALS, hybrid_cursor=self.cursor)
        keep_off(app, self.blueprint)
        receiver = follow_logouts(app, lambda user: self.revoke(user=user))
        if receiver is not None:
            state.receivers.append(receiver)

    # -- sending and reading

    def emit(
        self,
        type: str,
        data: Any = None,
        *,
        users: Names | None = None,
        roles: Names | None = None,
        topics: Names | None = None,
        text: str | None = None,
    ) -> str:
        """Send an event to all who match ANY of users, roles, topics; to everyone if none given.

            realtime.emit("report.approved", {"id": 17}, users=[report.author_id])

        `data` is anything that the app's JSON provider (`app.json`) encodes at this moment, as
        `jsonify` does; `text` in its place goes out as it is, for HTML fragments. A user, role or
        topic is a string, or a number for its digits; an audience given but empty reaches nobody.
        Returns the event's id at once. Callable from any thread, with or without an app context.

        Raises `InvalidEvent` (`EventTooLarge`) for arguments that cannot be sent, `OutboxFull`
        when Redis is away and too much waits for it already, `NotReady` without an app.
        """
        audience = Audience.of(users, roles, topics)
        state = self._state()
        (receipt,) = state.publish([state.event(type, data, audience, text=text)])
        return receipt.id

    def emit_many(self, events: Iterable[Mapping[str, Any]]) -> list[str]:
        """Send several events, at most 1,000, in order and in one step: all are stored, or none.

        Each is what `emit` takes, as a mapping: `{"type": …, "data": …, "users": …}`. Returns
        their ids. Raises as `emit` does.
        """
        state = self._state()
        made = [state.wished(fields) for fields in events]
        check_count(made)
        return [receipt.id for receipt in state.publish(made)]

    def emit_on_commit(
        self,
        session: Any,
        type: str,
        data: Any = None,
        *,
        users: Names | None = None,
        roles: Names | None = None,
        topics: Names | None = None,
        text: str | None = None,
    ) -> str:
        """As `emit`, but sent only when the session's transaction has been committed.

        `session` is SQLAlchemy's, Flask-SQLAlchemy's `db.session` or an `AsyncSession`. Nothing is
        sent on a rollback, of a savepoint either; the events of a transaction go out together, in
        order. `data` is encoded now. Returns the event's id.

        Raises `InvalidEvent` and `NotReady` as `emit` does. An `OutboxFull` after the commit is
        logged: it could not undo it.
        """
        state = self._state()
        event = state.event(type, data, Audience.of(users, roles, topics), text=text)
        when_committed(session, event, state.publish)
        return event.id

    def events_for(
        self,
        identity: Identity,
        since: str | None = None,
        *,
        topics: Names = (),
        limit: int = MAX_HISTORY,
    ) -> History:
        """The kept events that this identity with these granted topics may see, after `since`.

        `since` is a cursor or Unix milliseconds; None means from the oldest kept.
        """
        return read_history(
            self._state().instance(), identity, since, Audience.of(topics=topics).topics, limit
        )

    def cursor(self) -> str:
        """The log's current position. Read it BEFORE loading a snapshot and send it along."""
        return str(self._state().instance().log.head)

    def snapshot(self, view: Callable[P, Any]) -> Callable[P, Response]:
        """Decorator for a view whose data a page keeps live: adds `X-Realtime-Cursor`.

        The cursor is read before the view loads anything. What is emitted meanwhile is then
        replayed to the page, which may be told of a change that it has already, and misses none.
        """

        @wraps(view)
        def with_cursor(*arguments: P.args, **named: P.kwargs) -> Response:
            cursor = self.cursor()
            response = make_response(current_app.ensure_sync(view)(*arguments, **named))
            response.headers["X-Realtime-Cursor"] = cursor
            return response

        return with_cursor

    def disconnect(self, *, user: str | int) -> int:
        """End every stream of a user, on every instance, with `hybrid.bye` (`kicked`).

        Returns how many there were on this instance: 0 does not say that there are none on others.
        Instances that cannot hear of it now do it when they can: while Redis is out of reach the
        order waits in the outbox, and a warning in the log says that it has reached nobody else.
        """
        return self._state().instance().end(cast(str, as_name(user)))

    def ticket(self, identity: Identity, *, topics: Names = ()) -> str:
        """A ticket for one stream of this identity: `GET /sse?ticket=…`, within 30 seconds, once.

        For clients that can send neither cookies nor headers. Who may have it, and with which
        topics, is for the caller to decide; `authorize` is not asked. The stream lives for 15
        minutes at most. Needs the app's `SECRET_KEY`; raises `NotReady` without one.
        """
        state = self._state()
        if not state.secret():
            raise NotReady("tickets are signed with the app's SECRET_KEY, which is not set")
        return state.instance().tickets.issue(identity, Audience.of(topics=topics).topics)

    def revoke(self, *, user: str | int) -> int:
        """Shut a user out who has logged out or lost their account: as `disconnect`, with
        `hybrid.bye` (`revoked`).

        It ends what is open, on every instance, and what is about to open with an identity that
        was looked up before this call. Who comes back is judged by `identify`, so call it after
        the session or account has been closed. With Flask-Login it is called at each logout.

        Returns what `disconnect` does, and waits for Redis in the same way.
        """
        return self._state().instance().end(cast(str, as_name(user)), "hybrid.revoke")

    # -- inside

    def _state(self) -> AppState:
        if has_app_context() and "hybrid" in current_app.extensions:
            state: AppState = current_app.extensions["hybrid"]
            return state
        if len(self._apps) > 1:
            # An app is one of those cycles that live on until they are looked for: a test that
            # has dropped its app means the new one.
            gc.collect()
        apps = list(self._apps)
        if len(apps) == 1:
            state = apps[0].extensions["hybrid"]
            return state
        raise NotReady(
            "call init_app(app) first"
            if not apps
            else f"this Hybrid serves {len(apps)} apps that are in use"
            f" ({', '.join(sorted(app.name for app in apps))}), and it cannot guess which is meant:"
            " call it inside `with app.app_context():`; in tests, drop each app at the end of its"
            " fixture, or make the Hybrid in the factory"
        )
