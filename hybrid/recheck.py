"""Who is connected is asked again, once a heartbeat: roles change, and people are shut out.

Of a request only what identifies it is kept (`Connection.credentials`); `identify` and
`authorize` are asked again with that, as if the request came now. Connections with the same
credentials, a person's tabs, are asked about once. Each has its moment within the interval, by its
credentials' hash, so that the work is spread and none waits longer than one interval.

The application's hooks may take their time, so each look has a thread (a greenlet under gevent) of
its own, a few at once, and a bound. One that is not over by then counts as one that failed: its
streams end, and it is in nobody's way. If all are slow but in time, the round takes longer, and the
log says so.
"""

import _thread
import logging
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from hybrid.audience import Identity
from hybrid.connection import Connection
from hybrid.hub import Hub

logger = logging.getLogger("hybrid")

MOMENTS = 20
"""Into which an interval is divided."""
INTERVAL, PATIENCE = 0.75, 0.15
"""Shares of a heartbeat: from one look to the next, and for a look. With a moment to begin and one
to notice they make less than a heartbeat, after which who is shut out is gone."""
LEAST_PATIENCE = 1.0
"""Seconds for a look, with however short a heartbeat: a busy machine is no broken hook."""
AT_ONCE = 8
"""Looks under way: an application's pool of database connections has five to fifteen."""
LOT = 4
"""Looks that begin together; no more, since all others wait for them."""
STOOD = 1.0
"""Seconds by which a wait has to take too long until the process counts as one that stood still:
then no hook was slow, and none is blamed."""
MOST_STUCK = 64
"""Looks that never end, as when the database hangs. What is asked beyond that fails at once."""
Topics = frozenset[str]
Look = Callable[[str, Collection[Topics]], tuple[Identity | None, Collection[Topics]]]
UNAVAILABLE_MS = 5000
"""When a client comes back whose identity could not be established."""


@dataclass(eq=False, slots=True)
class _Asked:
    """A look; `until` is when it has to be over, in seconds of `time.monotonic`."""

    connections: Collection[Connection]
    until: float
    over: bool = False
    """It was answered, or given up."""
    judged: bool = False
    """And its streams go on, or end."""


class Recheck:
    """See the module's docstring. `heartbeat` is seconds.

    `look(credentials, wanted)` says who that is now, None for nobody, and which of the wanted sets
    of topics are open to them. Where it raises or takes longer than `patience`, nobody is admitted:
    the streams end, and their clients come back to be judged as anyone who connects.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        heartbeat: float,
        look: Look,
    ) -> None:
        self.rounds = 0
        """Rounds in which everybody has been asked; the last answers may be still to come."""
        self.asked = 0
        self.revoked = 0
        self.failures = 0
        self.patience = max(LEAST_PATIENCE, heartbeat * PATIENCE)
        self._hub = hub
        self._interval = heartbeat * INTERVAL
        self._look = look
        self._failing = self._late = False
        self._stood = 0.0
        self._stopped = threading.Event()
        self._under_way: dict[str, _Asked] = {}
        self._changed = threading.Condition()

    def start(self) -> None:
        """Begin, in a thread of its own."""
        threading.Thread(target=self._run, name="hybrid-recheck", daemon=True).start()

    def stop(self) -> None:
        """Let it end soon."""
        self._stopped.set()

    def step(self, moment: int | None = None) -> None:
        """Ask about those whose moment it is, None is everybody, and wait for the answers."""
        self._ask_all(moment, until=0.0)
        with self._changed:
            asked = list(self._under_way.values())
        while True:
            with self._changed:
                if all(one.judged for one in asked):
                    return
                self._wait_for_one()
            self._give_up_late()

    def _run(self) -> None:
        moment, due = 0, time.monotonic()
        began = due
        while not self._wait(self._stopped.wait, max(0.0, due - time.monotonic())):
            due = max(due, time.monotonic()) + self._interval / MOMENTS
            try:
                self._ask_all(moment, until=due)
            except Exception:
                # Whatever it was: who goes unasked would keep rights for ever.
                self.failures += 1
                logger.exception("the look at who is connected failed and goes on")
            moment = (moment + 1) % MOMENTS
            if moment == 0:
                self.rounds += 1
                self._say_late(time.monotonic() - began - self._stood)
                began, self._stood = time.monotonic(), 0.0

    def _ask_all(self, moment: int | None, *, until: float) -> None:
        """Begin to ask about those whose moment it is, spread over the time until `until`."""
        self._give_up_late()
        groups: dict[str, list[Connection]] = {}
        for connection in list(self._hub.connections.values()):
            credentials = connection.credentials
            due = moment is None or hash(credentials) % MOMENTS == moment
            if due and credentials:
                groups.setdefault(credentials, []).append(connection)
        for number, (credentials, connections) in enumerate(groups.items()):
            if number and number % LOT == 0:
                # A pause costs as much as a third of a look.
                lots = (len(groups) - number) / LOT
                pause = max(0.0, until - time.monotonic()) / (lots + 1)
                if self._wait(self._stopped.wait, pause):
                    return
            self.asked += 1
            asked = self._admit(credentials, connections)
            if asked is None:
                self._fail(connections, None)
                continue
            _begin(self._ask, credentials, asked)

    def _admit(self, credentials: str, connections: Collection[Connection]) -> _Asked | None:
        """Wait until it is this one's turn; None where it will not be."""
        while True:
            self._give_up_late()
            with self._changed:
                stuck = sum(one.over for one in self._under_way.values())
                earlier = self._under_way.get(credentials)
                # Given up, and it hangs: a second look at the same person would as well.
                if stuck >= MOST_STUCK or (earlier is not None and earlier.judged):
                    return None
                if earlier is None and len(self._under_way) - stuck < AT_ONCE:
                    asked = _Asked(connections, time.monotonic() + self.patience)
                    self._under_way[credentials] = asked
                    return asked
                self._wait_for_one()

    def _wait_for_one(self) -> None:
        """Until a look is over, or has to be given up; with the lock, which others have
        meanwhile."""
        now = time.monotonic()
        first = min((one.until for one in self._under_way.values() if not one.over), default=now)
        self._wait(self._changed.wait, max(0.001, first - now))

    def _wait(self, wait: Callable[[float], bool], seconds: float) -> bool:
        """Wait so long. What the process did not run meanwhile counts against no look."""
        began = time.monotonic()
        found = wait(seconds)
        stood = time.monotonic() - began - seconds
        if stood > STOOD:
            self._stood += stood
            with self._changed:
                for one in self._under_way.values():
                    if not one.over:
                        one.until += stood
        return found

    def _give_up_late(self) -> None:
        """End the streams of those whose look is not over in time."""
        now = time.monotonic()
        with self._changed:
            late = [one for one in self._under_way.values() if not one.over and one.until <= now]
            for one in late:
                one.over = True
        for one in late:
            self._fail(one.connections, None)
            one.judged = True

    def _ask(self, credentials: str, asked: _Asked) -> None:
        error: BaseException | None = None
        identity: Identity | None = None
        granted: Collection[Topics] = ()
        try:
            wanted = {each.topics for each in asked.connections if each.topics}
            identity, granted = self._look(credentials, wanted)
        except BaseException as raised:
            # A gevent.Timeout in a hook is no Exception, and its streams end all the same.
            error = raised
        with self._changed:
            in_time, asked.over = not asked.over, True
        if in_time and error is not None:
            self._fail(asked.connections, error)
        elif in_time:
            self._failing = False
            self._judge(asked.connections, identity, granted)
        with self._changed:
            asked.judged = True
            del self._under_way[credentials]
            self._changed.notify_all()

    def _judge(
        self,
        connections: Collection[Connection],
        identity: Identity | None,
        granted: Collection[Topics],
    ) -> None:
        for connection in connections:
            topics = connection.topics
            same = identity is not None and identity.user == connection.identity.user
            if identity is None or not same or (topics and topics not in granted):
                self.revoked += 1
                self._hub.end(connection, "revoked", after=0)
            elif identity != connection.identity:
                self._hub.readers.change(connection, identity)

    def _fail(self, connections: Collection[Connection], error: BaseException | None) -> None:
        """Who they are nobody can say: they end. `error` is what the hook raised, if it did."""
        self.failures += 1
        if not self._failing:
            self._failing = True
            logger.error(
                "who is connected could not be asked again%s; these streams end",
                "" if error is not None else f": no answer within {self.patience:g} s",
                exc_info=error,
            )
        for connection in connections:
            self._hub.end(connection, "unavailable", after=UNAVAILABLE_MS)

    def _say_late(self, took: float) -> None:
        """One line where a round takes longer than a heartbeat, until one does not."""
        late = took > self._interval / INTERVAL
        if late and not self._late:
            logger.warning(
                "the looks at all who are connected took %.1f s, and who is shut out is gone only"
                " then: identify or authorize is too slow for so many users",
                took,
            )
        self._late = late


def _begin(work: Callable[..., None], *arguments: object) -> None:
    """Start a thread for it; never one that is used again.

    What a hook leaves in a `threading.local` is one user's, and another would be taken for them.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        # A greenlet needs no `Thread`, which one waits for until it runs: a quarter of a look.
        _thread.start_new_thread(work, arguments)
    else:
        # For a thread without one `threading` makes one up when it is asked, and keeps it.
        threading.Thread(target=work, args=arguments, name="hybrid-recheck", daemon=True).start()
