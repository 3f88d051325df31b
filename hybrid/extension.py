"""`Hybrid`: the extension as an application sees it.

The object itself keeps hooks and nothing of any app: what belongs to an app lives in
`app.extensions["hybrid"]`, so that one `Hybrid` serves several apps, and what belongs to a
process is made on first use in that process.
"""

import os
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, overload

from flask import Blueprint, Flask, current_app, has_app_context, session
from flask.json.provider import DefaultJSONProvider

from hybrid.audience import Audience, Identity
from hybrid.config import Settings
from hybrid.errors import NotReady
from hybrid.events import Event, make_event, random_id, wish
from hybrid.instance import Instance, unix_ms
from hybrid.routes import make_blueprint
from hybrid.wire import to_json

MAX_HISTORY = 1000
HISTORY_BYTES = 16 * 1024 * 1024

Identify = Callable[[], Identity | None]
Authorize = Callable[[Identity, str], bool]
Permit = Callable[[Identity], bool]
Hook = TypeVar("Hook", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class History(Sequence[Event]):
    """Events as `events_for` found them, oldest first, with the position they lead to.

    `gap` names the reason when `since` could not be replayed in full; `more` says that the
    limit cut the list, and that `cursor` is where to go on.
    """

    events: tuple[Event, ...]
    cursor: str
    gap: str | None = None
    more: bool = False

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | Sequence[Event]:
        return self.events[index]

    def __len__(self) -> int:
        return len(self.events)


@dataclass(slots=True)
class AppState:
    """What the extension keeps for one app, in `app.extensions["hybrid"]`."""

    hybrid: "Hybrid"
    settings: Settings
    encode: Callable[[Any], str]
    debug: Callable[[], bool]
    _instance: Instance | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _lock_pid: int = field(default_factory=os.getpid)

    def instance(self) -> Instance:
        """This process's instance; made, with its pump, when first asked for."""
        instance = self._instance
        if instance is not None and instance.pid == os.getpid():
            return instance
        if self._lock_pid != os.getpid():
            # Forked: the parent's lock may be held by a thread that does not exist here.
            self._lock, self._lock_pid = threading.Lock(), os.getpid()
        with self._lock:
            if self._instance is None or self._instance.pid != os.getpid():
                self._instance = Instance(self.settings)
                self._instance.start()
            return self._instance

    def event(
        self,
        type: str,
        data: Any,
        audience: Audience,
        *,
        text: str | None = None,
        new_id: Callable[[], str] = random_id,
    ) -> Event:
        """A new event within this app's bounds. Raises `InvalidEvent`."""
        return make_event(
            type,
            data,
            audience,
            text=text,
            at=unix_ms(),
            max_bytes=self.settings.max_event_bytes,
            encode=self.encode,
            new_id=new_id,
        )

    def wished(self, fields: Mapping[str, Any], *, new_id: Callable[[], str] = random_id) -> Event:
        """The event that a mapping describes. Raises `InvalidEvent`."""
        return self.event(*wish(fields), text=fields.get("text"), new_id=new_id)


class Hybrid:
    """Live updates for a Flask application.

    `Hybrid(app)` or `Hybrid()` and later `init_app(app)`. Hooks are set by decorators before
    the first request:

    - `identify()` returns who a request is, or None for 401. Default: Flask-Login's current
      user, else the Flask session's `user_id` or `user`, else anonymous.
    - `authorize(identity, topic)` grants a topic. Default: none.
    - `can_test(identity)`, `can_monitor(identity)` open those endpoints. Default: debug mode.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._identify: Identify = session_identity
        self._authorize: Authorize = refuse_topic
        self._can_test: Permit | None = None
        self._can_monitor: Permit | None = None
        self._apps: weakref.WeakSet[Flask] = weakref.WeakSet()
        self.blueprint: Blueprint = make_blueprint()
        """Registered by `init_app`, unless it has been registered by hand before."""
        if app is not None:
            self.init_app(app)

    # -- hooks

    def identify(self, hook: Hook) -> Hook:
        """Decorator: `hook() -> Identity | None` says who the current request is."""
        self._identify = hook
        return hook

    def authorize(self, hook: Hook) -> Hook:
        """Decorator: `hook(identity, topic) -> bool` says who may read a topic."""
        self._authorize = hook
        return hook

    def can_test(self, hook: Hook) -> Hook:
        """Decorator: `hook(identity) -> bool` says who may send test events to anyone."""
        self._can_test = hook
        return hook

    def can_monitor(self, hook: Hook) -> Hook:
        """Decorator: `hook(identity) -> bool` says who may read the monitor."""
        self._can_monitor = hook
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
        app.extensions["hybrid"] = AppState(
            self, settings, partial(to_json, default=_json_default(app)), lambda: app.debug
        )
        self._apps.add(app)
        if app.blueprints.get(self.blueprint.name) is not self.blueprint:
            app.register_blueprint(self.blueprint, url_prefix=settings.url_prefix)
        app.jinja_env.globals["hybrid_cursor"] = self.cursor

    # -- sending and reading

    def emit(
        self,
        type: str,
        data: Any = None,
        *,
        users: Collection[str] | None = None,
        roles: Collection[str] | None = None,
        topics: Collection[str] | None = None,
        text: str | None = None,
    ) -> str:
        """Send an event to all who match ANY of users, roles, topics; to everyone if none given.

        `data` is anything that the app's JSON provider encodes; `text` in its place goes out
        as it is, for HTML fragments. An audience given but empty reaches nobody. Returns the
        event's id at once. Callable from any thread, with or without an app context.

        Raises `InvalidEvent` (`EventTooLarge`) for arguments that cannot be sent, `OutboxFull`
        when Redis is away and too much waits for it already, `NotReady` without an app.
        """
        audience = Audience.of(users, roles, topics)
        state = self._state()
        (receipt,) = state.instance().publish([state.event(type, data, audience, text=text)])
        return receipt.id

    def emit_many(self, events: Iterable[Mapping[str, Any]]) -> list[str]:
        """Send several events in order and in one step: all are stored, or none.

        Each is what `emit` takes, as a mapping: `{"type": …, "data": …, "users": …}`. Returns
        their ids. Raises as `emit` does.
        """
        state = self._state()
        made = [state.wished(fields) for fields in events]
        return [receipt.id for receipt in state.instance().publish(made)]

    def events_for(
        self,
        identity: Identity,
        since: str | None = None,
        *,
        topics: Collection[str] = (),
        limit: int = MAX_HISTORY,
    ) -> History:
        """The kept events that this identity with these granted topics may see, after `since`.

        `since` is a cursor or Unix milliseconds; None means from the oldest kept.
        """
        log = self._state().instance().log
        start = log.resolve("0" if since is None else since)
        granted = frozenset(topics)
        reading = log.read(
            start.cursor.offset,
            log.last,
            lambda event: event.audience.admits(identity, granted),
            max_events=max(1, limit),
            max_bytes=HISTORY_BYTES,
        )
        return History(
            tuple(entry.event for entry in reading.entries),
            str(reading.cursor),
            "overflow" if reading.overflow else start.gap,
            reading.cursor.offset < log.last,
        )

    def cursor(self) -> str:
        """The log's current position. Read it BEFORE loading a snapshot and send it along."""
        return str(self._state().instance().log.head)

    def disconnect(self, *, user: str) -> int:
        """End every stream of a user, on every instance, with `hybrid.bye` (`kicked`).

        Returns how many there were on this one. Instances that cannot hear of it now do it when
        they can.
        """
        return self._state().instance().disconnect(user)

    # -- inside

    def _state(self) -> AppState:
        if has_app_context() and "hybrid" in current_app.extensions:
            state: AppState = current_app.extensions["hybrid"]
            return state
        apps = list(self._apps)
        if len(apps) == 1:
            state = apps[0].extensions["hybrid"]
            return state
        raise NotReady(
            "call init_app(app) first"
            if not apps
            else "this Hybrid serves several apps: use it inside `with app.app_context():`"
        )


def session_identity() -> Identity:
    """The default `identify`: Flask-Login's user, else the session's, else anonymous."""
    login = getattr(current_app, "login_manager", None)
    if login is not None:
        from flask_login import current_user

        return Identity(str(current_user.get_id())) if current_user.is_authenticated else Identity()
    user = session.get("user_id", session.get("user"))
    return Identity(str(user)) if isinstance(user, (str, int)) and user != "" else Identity()


def refuse_topic(_identity: Identity, _topic: str) -> bool:
    """The default `authorize`: a topic is closed until the application opens it."""
    return False


def _json_default(app: Flask) -> Callable[[Any], Any] | None:
    """How the app's JSON provider turns dates, decimals and the like into JSON values."""
    provider = app.json
    return provider.default if isinstance(provider, DefaultJSONProvider) else None
