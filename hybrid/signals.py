"""What happens, as blinker signals. The sender is always the app; nobody listening costs nothing.

    from hybrid.signals import connected

    @connected.connect_via(app)
    def greet(app, connection, **_): ...

`emitted` and `connected` are sent where it happens, in the request or task that did it. The others
come from the pump, where nothing may wait: they are sent from a thread of
their own (under gevent a greenlet), inside an app context, in order. Receivers take `**_`, since
arguments may be added.
"""

import logging
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from blinker import Namespace

if TYPE_CHECKING:
    from flask import Flask

logger = logging.getLogger("hybrid")

_signals = Namespace()

connected = _signals.signal("hybrid.connected")
"""A stream begins. `connection` (with `id`, `identity`, `topics`, `transport`)."""
disconnected = _signals.signal("hybrid.disconnected")
"""A stream has ended. `connection`; `reason`, a word, as counted by the monitor."""
emitted = _signals.signal("hybrid.emitted")
"""An event was published by this process. `event`; `stored` is `log` or `outbox`."""
gap = _signals.signal("hybrid.gap")
"""A client was told that it missed events. `connection` (None for a poll); `reason`."""
alert = _signals.signal("hybrid.alert")
"""Something needs a look, or does not any more. `message`, in words; `active`."""


class Teller:
    """Sends signals from a thread of its own, one after the other.

    `tell` waits for no receiver: it is called by the pump, which everybody waits for.
    """

    def __init__(self, app: "Flask") -> None:
        self._app = weakref.ref(app)  # who waits to tell is not to keep it
        self._waiting: deque[tuple[Any, dict[str, Any]]] = deque()
        self._busy = threading.Lock()

    def tell(self, signal: Any, **about: Any) -> None:
        if not signal.receivers:
            return
        self._waiting.append((signal, about))
        if self._busy.acquire(blocking=False):
            threading.Thread(target=self._run, name="hybrid-signals", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                while self._waiting:
                    signal, about = self._waiting.popleft()
                    self._send(signal, about)
            finally:
                self._busy.release()
            # One that came between the last look and the release has started nobody.
            if not self._waiting or not self._busy.acquire(blocking=False):
                return

    def _send(self, signal: Any, about: dict[str, Any]) -> None:
        try:
            app = self._app()
            if app is not None:
                with app.app_context():
                    signal.send(app, **about)
        except Exception:
            logger.exception("a receiver of the signal %s raised", signal.name)
