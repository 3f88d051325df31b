"""Many ask, one goes: whoever asks while a call is under way shares the next one.

A thread (a greenlet under gevent) makes all the calls. So nobody who asks waits longer than they
want to, whatever holds the call up: a name that does not resolve, a connection that is being
made, a line that swallows everything. And a request that is ended in the middle of it leaves no
half-read answer behind.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Gate:
    """Shut until it is opened, which lets one through and shuts it again."""

    def __init__(self) -> None:
        # A lock and not an event, which is three times as much work.
        self._lock = threading.Lock()
        self._lock.acquire()

    def open(self) -> None:
        self._lock.release()

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it was opened; waits for ever without `seconds`."""
        return self._lock.acquire(timeout=-1 if seconds is None else max(0.0, seconds))


class Errand(Generic[Q, A]):
    """What one asks for; `answer` or `error` is there once it is `settled`."""

    __slots__ = ("_gate", "answer", "error", "settled", "what")

    def __init__(self, what: Q, gate: Gate) -> None:
        self.what = what
        self.answer: A | None = None
        self.error: Exception | None = None
        self.settled = False
        self._gate = gate

    def wait(self, seconds: float) -> bool:
        """Wait until it is settled, so many seconds at most; whether it is."""
        return self.settled or self._gate.wait(seconds) or self.settled

    def settle(self, answer: A | None, error: Exception | None = None) -> None:
        """Only the first time counts. Under the courier's lock."""
        if not self.settled:
            self.answer, self.error = answer, error
            self.settled = True
            self._gate.open()


class Courier(Generic[Q, A]):
    """See the module's docstring.

    `call` gets what is asked for, oldest first, and returns as many answers; what it raises is
    everybody's who shared the call. `load` says how many of those that wait go along in one call:
    one at least. `lock` guards the queue; who holds it sees an errand either open or settled.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Q]], Sequence[A]],
        *,
        lock: "threading.RLock",
        name: str,
        load: Callable[[Iterable[Q]], int],
        make_gate: Callable[[], Gate] = Gate,
    ) -> None:
        self._call = call
        self._load = load
        self._lock = lock
        self._name = name
        self._make_gate = make_gate
        self._queue: deque[Errand[Q, A]] = deque()
        self._under_way: list[Errand[Q, A]] = []
        self._bell = make_gate()
        self._asleep = False
        self._running = True
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, if it has not begun."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self.run, name=self._name, daemon=True)
                self._thread.start()

    def stop(self, seconds: float) -> None:
        """Make the calls that are asked for already, and end; waits so long at most."""
        with self._lock:
            self._running = False
            self._wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(seconds)

    def ask(self, what: Q) -> Errand[Q, A]:
        """Have a call made; does not wait for it."""
        errand = Errand[Q, A](what, self._make_gate())
        with self._lock:
            self._queue.append(errand)
            self._wake()
        return errand

    def withdraw(self, errand: Errand[Q, A]) -> None:
        """Ask no more, unless the call is under way."""
        with self._lock:
            if errand in self._queue:
                self._queue.remove(errand)

    def withdraw_all(self) -> list[Errand[Q, A]]:
        """The open ones, oldest first, which nobody asks for any more; some are under way yet."""
        with self._lock:
            found = [errand for errand in (*self._under_way, *self._queue) if not errand.settled]
            self._queue.clear()
            return found

    @property
    def waiting(self) -> int:
        """How many wait for a call that has not begun."""
        return len(self._queue)

    @property
    def busy(self) -> bool:
        """Whether somebody waits for an answer, or a call is under way."""
        return bool(self._queue or self._under_way)

    def _wake(self) -> None:
        if self._asleep:
            self._asleep = False
            self._bell.open()

    def run(self) -> None:
        """What the thread does."""
        while True:
            with self._lock:
                self._under_way = self._next()
                if not self._under_way:
                    if not self._running:
                        return
                    self._asleep = True
            if self._under_way:
                self._go(self._under_way)
            else:
                self._bell.wait()

    def _next(self) -> list[Errand[Q, A]]:
        if not self._queue:
            return []
        count = self._load(errand.what for errand in self._queue)
        return [self._queue.popleft() for _ in range(count)]

    def _go(self, errands: Sequence[Errand[Q, A]]) -> None:
        try:
            answers = self._call([errand.what for errand in errands])
        except Exception as error:
            with self._lock:
                for errand in errands:
                    errand.settle(None, error)
        else:
            with self._lock:
                for errand, answer in zip(errands, answers, strict=True):
                    errand.settle(answer)
