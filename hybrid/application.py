"""What belongs to one application: its settings, its hooks, and this process's instance for it.

It lives in `app.extensions["hybrid"]`. Made by `init_app`, which starts nothing; the instance and
its monitor are made on first use in each process.
"""

import _thread
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flask import Flask

from hybrid import signals
from hybrid.audience import Audience, Identity
from hybrid.bus import Receipt
from hybrid.config import Settings
from hybrid.connection import Connection
from hybrid.drain import watch
from hybrid.encoding import by_provider
from hybrid.errors import NotReady
from hybrid.events import Event, make_event, random_id, wish
from hybrid.hooks import Hooks
from hybrid.instance import Instance, unix_ms
from hybrid.monitor.alerts import rules
from hybrid.monitor.monitor import Monitor
from hybrid.monitor.sinks import Sinks
from hybrid.wire import to_json

if TYPE_CHECKING:
    from hybrid.extension import Hybrid

Topics = frozenset[str]
Seen = tuple[Identity | None, Collection[Topics]]
LookAgain = Callable[[Flask, "AppState", str, Collection[Topics]], Seen]
"""Who has these credentials now, and which of the wanted topics: as `Recheck` asks, for an app."""


@dataclass(slots=True)
class AppState:
    """What the extension keeps for one app, in `app.extensions["hybrid"]`."""

    hybrid: "Hybrid"
    hooks: Hooks
    settings: Settings
    look_again: LookAgain
    app: "weakref.ref[Flask]"
    clock: Callable[[], float] = time.monotonic
    """Seconds; this and `wall`, in Unix milliseconds, are other ones under a test only."""
    wall: Callable[[], int] = unix_ms
    _instance: Instance | None = None
    _monitor: Monitor | None = None
    _teller: signals.Teller | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _lock_pid: int = field(default_factory=os.getpid)
    receivers: list[Callable[..., None]] = field(default_factory=list)
    """Of other extensions' signals, which keep them weakly."""
    rehearsed: set[tuple[frozenset[str], str | None, frozenset[str]]] = field(default_factory=set)
    """What of an environ could not be kept with a stream, and was not missed at a first look."""

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
                instance = Instance(
                    self.settings,
                    self.look,
                    secret=self.secret(),
                    clock=self.clock,
                    wall=self.wall,
                    tell=self._tell,
                )
                instance.start()
                self._monitor = Monitor(
                    instance,
                    interval=self.settings.monitor_seconds,
                    rules=rules(self.settings.alerts or {}),
                    on_change=Sinks(self.app, self.settings.alert_webhook),
                )
                self._monitor.start()
                watch(instance.hub, self._monitor.watch.hub, bus=instance.bus)
                # Last: who comes meanwhile waits, and does not connect to what is only half there.
                self._instance = instance
            return self._instance

    def _tell(self, what: str, connection: Connection | None, reason: str) -> None:
        """Send a signal, for who stands where nothing may wait."""
        signal = signals.disconnected if what == "disconnected" else signals.gap
        app = self.app()
        if signal.receivers and app is not None:
            if self._teller is None:
                self._teller = signals.Teller(app)
            self._teller.tell(signal, connection=connection, reason=reason)

    def monitor(self) -> Monitor:
        """The monitor of this process's instance."""
        self.instance()
        assert self._monitor is not None
        return self._monitor

    def forget(self) -> None:
        """End this process's instance, with its log; the next use makes a new one. For tests."""
        with self._lock:
            if self._instance is not None and self._instance.pid == os.getpid():
                self._instance.stop()
            if self._monitor is not None:
                self._monitor.stop()
            self._instance = self._monitor = None

    def end_with(self, app: Flask) -> None:
        """Let this process's instance end with the app: factories make many, and drop them.

        The collector runs anywhere, in the middle of any locked step: of ours, and of `threading`'s
        when it starts a thread. So the thread that ends it is started by another.
        """
        end = weakref.finalize(app, _thread.start_new_thread, self._end_soon, ())
        end.atexit = False

    def _end_soon(self) -> None:
        threading.Thread(target=self.forget, name="hybrid-end", daemon=True).start()

    def secret(self) -> str | bytes | None:
        """What signs tickets."""
        app = self.app()
        return app.secret_key if app is not None else None

    def debug(self) -> bool:
        """Whether the app is in debug mode now."""
        app = self.app()
        return app is not None and app.debug

    def publish(self, events: Sequence[Event], *, replicas: int = 0) -> list[Receipt]:
        """Store the events, all or none, and say so. Raises `OutboxFull`."""
        receipts = self.instance().publish(events, replicas=replicas)
        if signals.emitted.receivers:
            for event, receipt in zip(events, receipts, strict=True):
                signals.emitted.send(self.app(), event=event, stored=receipt.stored)
        return receipts

    def look(
        self, credentials: str, wanted: Collection[frozenset[str]]
    ) -> tuple[Identity | None, Collection[frozenset[str]]]:
        """Who has these credentials now; see `Recheck`."""
        app = self.app()
        if app is None:
            raise NotReady("the application is gone")
        return self.look_again(app, self, credentials, wanted)

    def encode(self, data: Any) -> str:
        """The data as JSON, as the app's provider makes it now: it may have been set late."""
        app = self.app()
        return to_json(data) if app is None else by_provider(app.json, data)

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
            at=self.wall(),
            max_bytes=self.settings.max_event_bytes,
            encode=self.encode,
            new_id=new_id,
        )

    def wished(self, fields: Mapping[str, Any], *, new_id: Callable[[], str] = random_id) -> Event:
        """The event that a mapping describes. Raises `InvalidEvent`."""
        return self.event(*wish(fields), text=fields.get("text"), new_id=new_id)
