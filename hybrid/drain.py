"""Leaving: a process that is told to stop moves its clients on before it goes.

gunicorn runs nothing of an application's when it stops a worker, and knows nothing of streams
whose sockets are the hub's: it would cut them. So the first use in a process chains a handler for
SIGTERM, which a HUP reload sends to the old workers as well. It says `hybrid.bye` to everybody,
waits until that is out, and then hands the signal on to the handler that was there before.

Two spreads, for two things. The goodbyes go out over `WINDOW`, a twentieth at a time, so that
other requests are served in between; that is short, since the process is to be gone in about a
second. The clients come back over a longer time, each as its goodbye says: at
`RETURNS_PER_SECOND`, and not before this worker's listener is closed, so that none of them knocks
here again and comes back twice.

What waits in an outbox for Redis has as long as the goodbyes have; what is left then goes with the
process, and the log says how much.

A worker that reaches `max_requests` gets no signal. It is found by `watch_worker`, which the
shipped gunicorn.conf.py calls, or else at its exit.
"""

import _thread
import atexit
import logging
import os
import random
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from hybrid.hub import Hub

if TYPE_CHECKING:
    from hybrid.bus import Bus

logger = logging.getLogger("hybrid")

WINDOW = 0.5
"""Seconds over which the goodbyes are spread."""
SLICES = 20
LINGER = 1.0
"""Seconds after that for clients that are slow to take theirs, and for Redis to come back."""
FLUSH = 0.2
"""Seconds that the outbox has at least, also when clients have used up the others."""
CLOSED_MS = 2000
"""When nobody is accepted here any more: gunicorn's worker looks once a second whether it is to
stop, and it is told when the goodbyes are out."""
RETURNS_PER_SECOND = 1000
LONGEST_MS = 10_000
PEEK = 0.2
"""Seconds between two looks at a worker that may have reached `max_requests`."""

Handler = Callable[[int, FrameType | None], Any] | int | None


class Drain:
    """The end of one process. `begin` may be called from a signal handler, and more than once."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.hubs: weakref.WeakSet[Hub] = weakref.WeakSet()
        self.buses: weakref.WeakSet[Bus] = weakref.WeakSet()
        self.done = threading.Event()
        self._began = False
        self._signalled = self._watches = False
        self._lost = 0
        self._earlier: Handler = None

    def install(self) -> None:
        """Be told of SIGTERM and of the exit.

        Outside of the main thread no handler can be set. Where the one that is there belongs to a
        worker of gunicorn's (gthread, whose requests have threads), that worker is watched instead.
        """
        atexit.register(self._at_exit)
        self._earlier = signal.getsignal(signal.SIGTERM)
        try:
            signal.signal(signal.SIGTERM, self._on_term)
        except ValueError:
            worker = getattr(self._earlier, "__self__", None)
            if isinstance(getattr(worker, "alive", None), bool):
                self.watch(worker)
            elif callable(self._earlier):
                logger.warning(
                    "SIGTERM is not seen here, since this process used the extension in a thread"
                    " first: no client is told when it stops, and the server waits for its streams"
                    " as long as it has patience. Fix: gunicorn -k gevent, or"
                    " `hybrid.drain.drain()` in the main thread before the server begins"
                )
            else:
                logger.info("not in the main thread: SIGTERM ends this process without goodbyes")

    def watch(self, worker: Any) -> None:
        """Begin as soon as this worker of gunicorn's is not to be `alive` any more."""
        if self._watches:
            return
        self._watches = True

        def look() -> None:
            while worker.alive:
                time.sleep(PEEK)
            self.begin()

        threading.Thread(target=look, name="hybrid-drain", daemon=True).start()

    def begin(self) -> None:
        """Start to leave, and return at once."""
        if self._began:
            return
        self._began = True
        if not self._busy():
            self._refuse()
            self.done.set()
            return
        monkey = sys.modules.get("gevent.monkey")
        if monkey is not None and monkey.is_module_patched("threading"):
            import gevent

            # A signal handler runs in whatever greenlet there is, maybe the loop's own.
            gevent.get_hub().loop.run_callback_threadsafe(gevent.spawn, self._run)
        else:
            _thread.start_new_thread(self._run, ())

    def _busy(self) -> bool:
        return any(hub.connections for hub in self.hubs) or bool(self._waiting())

    def _waiting(self) -> int:
        return sum(bus.waiting for bus in self.buses)

    def _tell_lost(self) -> None:
        lost = self._waiting()
        if lost > self._lost:
            logger.error(
                "%d events wait in the outbox and are lost with this process: %s",
                lost,
                ", ".join(sorted({bus.trouble for bus in self.buses if bus.waiting})),
            )
            self._lost = lost

    def _refuse(self) -> None:
        for hub in self.hubs:
            hub.draining = True

    def _run(self) -> None:
        try:
            self._refuse()
            began = time.monotonic()
            for portion in self._portions():
                for hub, connection, after in portion:
                    hub.end(connection, "shutdown", after=after)
                time.sleep(WINDOW / SLICES)
            end = began + WINDOW + LINGER
            while any(hub.held() for hub in self.hubs) and time.monotonic() < end:
                time.sleep(0.02)
            for bus in self.buses:
                bus.flush(max(FLUSH, end - time.monotonic()))
            self._tell_lost()
        finally:
            self.done.set()
            if self._signalled:
                os.kill(self.pid, signal.SIGTERM)  # again, for whom it was meant

    def _portions(self) -> list[list[tuple[Hub, Any, int]]]:
        """Who is told when, and to come back when. Long polls at once: they are answered."""
        polls, streams = [], []
        for hub in self.hubs:
            for connection in list(hub.connections.values()):
                if connection.transport == "polling":
                    polls.append((hub, connection, 0))
                else:
                    streams.append((hub, connection))
        random.shuffle(streams)
        spread = min(LONGEST_MS, len(streams) * 1000 // RETURNS_PER_SECOND)
        told = [(*each, CLOSED_MS + random.randint(0, spread)) for each in streams]
        size = -(-len(told) // SLICES) or 1
        return [polls, *(told[at : at + size] for at in range(0, len(told), size))]

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        if self.pid == os.getpid() and not self.done.is_set():
            self.begin()
            self._signalled = True
            if not self.done.is_set():
                return
        earlier = self._earlier
        if callable(earlier):
            earlier(number, frame)
        elif earlier != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            if os.getpid() == 1:
                # The first process of a container: the kernel ends it by no signal without a
                # handler, and it would stay for ever, refusing streams.
                os._exit(128 + number)

    def _at_exit(self) -> None:
        """Whoever stops without a signal has streams to end as well."""
        if self.pid != os.getpid():
            return
        if not self._began:
            self._began = True
            if self._busy():
                self._run()
        else:
            # A worker that has reached `max_requests` goes without regard to goodbyes under way.
            self.done.wait(2 * (WINDOW + LINGER))
        self._tell_lost()  # what the last requests have emitted since


_lock = threading.Lock()
_drain: Drain | None = None


def drain() -> Drain:
    """This process's one; installed when first asked for."""
    global _drain, _lock
    found = _drain
    if found is None or found.pid != os.getpid():
        # After a fork the parent's lock may be held for ever; nobody else is here yet then.
        if found is not None:
            _lock = threading.Lock()
        with _lock:
            found = _drain
            if found is None or found.pid != os.getpid():
                _drain = found = Drain()
                found.install()
    return found


def watch(*hubs: Hub, bus: "Bus") -> None:
    """End these hubs' connections before the process goes, and see what the bus still has."""
    process = drain()
    process.hubs.update(hubs)
    process.buses.add(bus)


def watch_worker(worker: Any) -> None:
    """For gunicorn's hook `post_worker_init`: end the streams when `max_requests` is reached.

    Of that nobody tells. The streams and long polls are ended as soon as the worker has stopped
    accepting, while it waits for other requests.
    """
    process = drain()
    if not worker.cfg.max_requests:
        return
    worker.log.warning(
        "max_requests is %s: a worker that reaches it accepts nobody until its last request is done"
        " and another has taken its place, for up to graceful_timeout (%s s); with one worker that"
        " is an outage. Fix: max_requests = 0",
        worker.cfg.max_requests,
        worker.cfg.graceful_timeout,
    )
    process.watch(worker)
