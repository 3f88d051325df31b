"""Whether a storage on the network can be asked now, and who goes there.

A courier makes the calls, so that nobody who asks waits longer than they want to, whatever holds
a call up. Those who ask the same while one is under way share the next: on the network it is the
journeys that take time.

A failure opens the circuit: nobody asks until a look of the courier's has found the storage back.
That look makes the connection too, which takes several answers: questions find it made, unless it
broke at rest. A storage that answers, and refuses, is there: the circuit stays closed, and who
asked goes on as if it were not. One that is not, or no longer, the right one (a replica since a
failover, a node without these keys) is as good as away: each look goes over a new connection, to
where the address leads by then.

Nothing is logged while a lock is held: a handler may be slow, or emit.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar, cast

from hybrid.bus.courier import Courier, Errand
from hybrid.bus.diagnosis import Diagnosis, diagnose, is_crowded

logger = logging.getLogger("hybrid")

Q = TypeVar("Q")
A = TypeVar("A")
Call = Callable[[Sequence[Q]], Sequence[A]]
PAUSE = 0.2
"""Seconds from one look to the next, so that the storage is used again within half a second."""
BREATH = 0.02
"""Seconds at least between two looks, of which the first took long."""
PATIENCE = 0.45
"""Seconds that a request waits for all that it asks together; a little more than `ANSWER`."""
ANSWER = 0.4
"""Seconds without any answer after which a storage is away: those of the Redis connections."""
CARGO = 200
"""Questions in one call: its answer has to come within the timeout."""
OUT_OF_REACH = "Redis is out of reach"
JOIN = 1.0
"""Seconds that `stop` waits for the calls that are under way."""


class Away(Exception):
    """The storage cannot be asked now."""


class _Question(Generic[Q, A]):
    """One of those that share a call, and what became of it."""

    __slots__ = ("answer", "answered", "call", "error", "what")

    def __init__(self, call: Call[Q, A], what: Q) -> None:
        self.call = call
        self.what = what
        self.answer: A | None = None
        self.answered = False
        self.error: Exception | None = None


class Patience:
    """How long one request waits for storages yet, whatever it asks them: `left` is seconds."""

    __slots__ = ("left",)

    def __init__(self, seconds: float = PATIENCE) -> None:
        self.left = seconds

    def spend(self, wait: Callable[[float], bool]) -> bool:
        """What `wait` returns, which waits so many seconds at most as there are left."""
        began = time.monotonic()
        try:
            return wait(self.left)
        finally:
            self.left = max(0.0, self.left - (time.monotonic() - began))


class Reach:
    """See the module's docstring.

    `look()` says whether the storage answers, and may raise; `renew()` has it look over a new
    connection, None where that cannot be asked for. `hands` calls go out at once, each with at
    most `cargo` questions.
    """

    def __init__(
        self,
        look: Callable[[], object],
        *,
        renew: Callable[[], object] | None = None,
        hands: int = 1,
        cargo: int = CARGO,
    ) -> None:
        self.away = True
        """Until the first look has found it."""
        self.headline = ""
        """Why it is away, in words that anybody may read."""
        self._renew = renew
        self.on_back: Callable[[], object] = lambda: None
        """Called when it answers again, before anybody asks; may raise where it does not after
        all."""
        self.on_silence: Callable[[Exception], object] = lambda _: None
        """Called when somebody has waited for an answer in vain."""
        self._look = look
        self._hands = hands
        self._cargo = cargo
        self._lock = threading.RLock()
        """Guards the circuit and the couriers' queues; held for no call."""
        self._couriers: list[Courier[_Question[Any, Any], None]] = []
        self._heard_at = 0.0
        self._refused: set[Call[Any, Any]] = set()
        """What the storage refuses to do, which has been said."""
        self._known = threading.Event()
        self._told = False
        self._stopped = threading.Event()

    @property
    def missing(self) -> bool:
        """Whether it was looked for, or asked, in vain."""
        return self.away and self._known.is_set()

    def start(self) -> None:
        """Begin to look, if that has not begun."""
        with self._lock:
            if not self._couriers and not self._stopped.is_set():
                self._send(_Question(self._look_out, None))

    def ask(self, call: Call[Q, A], what: Q, patience: Patience) -> A:
        """The answer of `call` to `what`, asked together with what others ask it.

        Raises `Away` where there is none: it fails, comes too late, or is not asked for at all.
        It may still be made then, or have been made.
        """
        if self.away and not self._is_found(patience):
            raise Away
        if not patience.left:
            raise Away
        with self._lock:
            if self.away:
                raise Away
            question = _Question(call, what)
            courier, errand = self._send(question)
        began = time.monotonic()
        try:
            answered = patience.spend(errand.wait)
        except BaseException:
            courier.withdraw(errand)
            raise
        if not answered:
            courier.withdraw(errand)
            # Others may be answered all the time: then it is slow, or many ask. And who had
            # little patience left has not waited long enough to tell.
            if time.monotonic() - began >= ANSWER and self._heard_at < began:
                why = f"no answer within {ANSWER:g} s"
                self.on_silence(TimeoutError(why))
                self.lost(why)
            raise Away
        if not question.answered:
            raise Away from question.error or errand.error
        return cast(A, question.answer)

    def lost(self, why: str, headline: str = OUT_OF_REACH) -> None:
        """It does not answer: nobody asks until it has been found back, and the log says so.

        `headline` is why in words that anybody may read.
        """
        if self.open(why, headline):
            self._tell_lost(why)

    def open(self, why: str, headline: str = OUT_OF_REACH) -> bool:
        """The circuit: nobody asks until it has been found back. Neither waits nor logs.

        False at the end, when nobody looks any more.
        """
        with self._lock:
            if self._stopped.is_set():
                return False
            self._known.set()
            self.headline = headline
            if not self.away:
                self.away = True
                for courier in self._couriers:
                    for errand in courier.withdraw_all():
                        errand.settle(None, Away(why))
                self._send(_Question(self._look_out, None))
            return True

    def stop(self) -> None:
        """Ask no more, and end the threads; those that are held up end with what holds them."""
        self._stopped.set()
        end = time.monotonic() + JOIN
        with self._lock:
            self.away = True
            self._known.set()
            couriers = list(self._couriers)
        for courier in couriers:
            courier.stop(max(0.0, end - time.monotonic()))

    def _is_found(self, patience: Patience) -> bool:
        """Whether it is there after all: who comes first waits for the first look."""
        if not self._known.is_set():
            self.start()
            if not patience.spend(self._known.wait):
                self.lost("the first look has not ended yet")
        return not self.away

    def _send(
        self, question: _Question[Any, Any]
    ) -> tuple[Courier[_Question[Any, Any], None], Errand[_Question[Any, Any], None]]:
        courier = self._free()
        return courier, courier.ask(question)

    def _free(self) -> Courier[_Question[Any, Any], None]:
        """One that has nothing to do, or the least."""
        for courier in self._couriers:
            if not courier.busy:
                return courier
        if len(self._couriers) == self._hands:
            return min(self._couriers, key=lambda courier: courier.waiting)
        courier = Courier(self._make_calls, load=self._load, lock=self._lock, name="hybrid-limits")
        self._couriers.append(courier)
        courier.start()
        return courier

    def _load(self, asked: Iterable[object]) -> int:
        return sum(1 for _ in islice(asked, self._cargo))

    # -- what the couriers do

    def _make_calls(self, asked: Sequence[_Question[Any, Any]]) -> list[None]:
        for call in dict.fromkeys(question.call for question in asked):
            together = [question for question in asked if question.call == call]
            try:
                answers = call([question.what for question in together])
            except Exception as error:
                # Whatever a storage raises.
                for question in together:
                    question.error = error
                if not self._is_there_after(error, call):
                    break  # who else is on this journey need not wait for the same
            else:
                for question, answer in zip(together, answers, strict=True):
                    question.answer, question.answered = answer, True
                self._heard_at = time.monotonic()
                if call in self._refused:
                    self._refused.discard(call)
                    logger.warning("the storage of the limits is back")
        return [None] * len(asked)

    def _is_there_after(self, error: Exception, call: Call[Any, Any]) -> bool:
        if is_crowded(error):
            return True
        found = diagnose(error)
        why = _why(found)
        # What cannot be asked over another connection would be found back and lost for ever.
        if _is_refusal(error) and not (found.elsewhere and self._renew):
            self._heard_at = time.monotonic()
            if call not in self._refused:
                self._refused.add(call)
                self._log_lost(why)
            return True
        if _is_late(error):
            self.on_silence(error)  # first: who is answered by the next line goes on to emit
        self.lost(why, found.what)
        return False

    def _look_out(self, _asked: Sequence[None]) -> Sequence[None]:
        """Wait until it answers. Nobody asks anything else meanwhile."""
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                if self._renew is not None:
                    self._renew()
                found, why = bool(self._look()), "it does not answer"
                if found:
                    self.on_back()
            except Exception as error:
                diagnosis = diagnose(error)
                found, why = False, _why(diagnosis)
                self.headline = diagnosis.what
            if found:
                with self._lock:
                    self.away = self._stopped.is_set()
                    told, self._told = self._told, False
                if told:
                    logger.warning("the storage of the limits is back")
            else:
                self._tell_lost(why)
            self._known.set()
            if found:
                break
            self._stopped.wait(max(BREATH, PAUSE - (time.monotonic() - began)))
        return [None]

    def _tell_lost(self, why: str) -> None:
        with self._lock:
            told, self._told = self._told, True
        if not told:
            self._log_lost(why)

    def _log_lost(self, why: str) -> None:
        logger.warning(
            "limits are counted in this process alone until their storage is back (%s)", why
        )


def _why(found: Diagnosis) -> str:
    # It may be another storage than Redis: of one that is silent no more is known than that.
    return str(found) if found.answers or not found.where else found.where


def _is_refusal(error: Exception) -> bool:
    """Whether it is the storage that says no: for want of a right, or of memory."""
    return any(each.__name__ == "ResponseError" for each in type(error).__mro__)


def _is_late(error: Exception) -> bool:
    # redis-py's is no TimeoutError of Python's, and who needs no Redis does not load it.
    return isinstance(error, TimeoutError) or type(error).__name__ == "TimeoutError"
