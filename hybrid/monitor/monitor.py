"""The monitor of one process: samples it, tells the others, keeps the history if it falls to it.

Two threads (greenlets under gevent). One is a timer that rings four times a second: how late it
rings is the event loop's lag, once a second it takes a sample, and while somebody watches here it
pushes the state. The other one speaks to Redis, which may take its time: it writes this process's
record, reads those of the others while somebody watches, and if this process is the keeper it
makes the deployment's history of them and decides about alerts.

Both hold this object only while they work, so that it goes when its application goes.
"""

import atexit
import json
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hybrid.distinct import estimate, unpack
from hybrid.events import random_id
from hybrid.hub import KICKED_MS
from hybrid.instance import Instance, unix_ms
from hybrid.monitor import connections, errors
from hybrid.monitor.alerts import BLOCKED, Alerts, Change, Rule, Scene
from hybrid.monitor.connections import Search
from hybrid.monitor.counting import KEPT, MINUTE, Sampler
from hybrid.monitor.deployment import GONE_MS, deployment, is_live, strangers
from hybrid.monitor.history import RINGS, Point, Rings, columns, merge, roll
from hybrid.monitor.records import Away, LocalRecords, Record, Records, Seen
from hybrid.monitor.snapshot import snapshot
from hybrid.monitor.tail import Tail
from hybrid.monitor.traffic import traffic
from hybrid.monitor.watch import Watch
from hybrid.wire import to_json

logger = logging.getLogger("hybrid")

RING = 0.25
"""Seconds between two rings of the timer: a stall of the loop shows if it is longer than this."""
JUMP = 2.0
"""Seconds by which the wall clock moves against the monotonic one when somebody sets it."""
CARRIED = 30
"""Seconds of points in a record: until another process has become keeper, and a little more."""
WATCHED = 1.0
"""Seconds between two records while somebody watches."""
PATIENCE = 12
"""Seconds that the history waits for an instance that says nothing."""
TOLD = 10
"""Seconds of points that a pushed state carries."""
ANSWER = 2.0
"""Seconds that other instances have to answer a question."""


class Monitor:
    """See the module's docstring.

    `interval` is the seconds between two records, `on_change` is called for each alert that is
    raised or resolved, in the keeper alone.
    """

    def __init__(
        self,
        instance: Instance,
        *,
        interval: float,
        rules: Sequence[Rule],
        on_change: Callable[[Change], None],
    ) -> None:
        self.instance = instance
        self.errors = errors.Errors(unix_ms)
        self.sampler = Sampler(instance, self.errors)
        self.watch = Watch(self.state, heartbeat=instance.settings.heartbeat_seconds, clock=unix_ms)
        self.tail = Tail(instance)
        self._interval = interval
        self._on_change = on_change
        self._rings = Rings()
        self._alerts = Alerts(rules)
        self._unsaved: list[tuple[int, Point]] = []
        self._keeping = False
        self._taken: dict[str, int] = {}
        self._head: tuple[str, int] = (self.sampler.began.epoch, self.sampler.began.offset)
        self._records: Records = LocalRecords(self._rings)
        settings = instance.settings
        if settings.url != "memory://" and not settings.frugal:
            # Only now: who needs no Redis does not load its client.
            from hybrid.monitor.redis_records import RedisRecords

            self._records = RedisRecords(settings.url, settings.namespace, instance.id)
        self._seen: list[Seen] = []
        self._told: list[Point] = []
        self._read_at = self._written_at = self._away_at = float("-inf")
        self._skew_ms: int | None = None
        self._watched = self._mixed = False
        self._wall, self._monotonic = time.time(), time.monotonic()
        self._second = int(self._wall)
        self._stopped = threading.Event()
        # Weakly: the interpreter would keep every monitor until its end.
        leave = weakref.WeakMethod(self._on_exit)
        self._leave = lambda: (mine := leave()) and mine()
        self._nudge = threading.Event()

    def start(self) -> None:
        """Begin to look, to tell and to listen."""
        errors.listen(self.errors)
        # Only a weak way back: the bus would keep the monitor alive.
        overhear = weakref.WeakMethod(self._overhear)
        self._records.listen(self.instance.bus, lambda text: (mine := overhear()) and mine(text))
        atexit.register(self._leave)
        for run in (_ring, _exchange):
            arguments = (weakref.ref(self), self._stopped, self._nudge)
            threading.Thread(target=run, args=arguments, name="hybrid-monitor", daemon=True).start()

    def stop(self) -> None:
        """End what `start` began."""
        atexit.unregister(self._leave)
        self._stopped.set()
        self._nudge.set()
        self.watch.stop()
        errors.forget(self.errors)

    # -- what there is to see

    def record(self) -> Record:
        """The figures of this instance now."""
        figures = snapshot(self.instance, self.sampler, self.errors)
        return figures | {"skew_ms": self._skew_ms}

    def picture(self) -> dict[str, Any]:
        """The figures of the deployment; those of others as old as their last record."""
        own = self.record()
        aged = int((time.monotonic() - self._read_at) * 1000) if self._seen else 0
        others = [
            Seen(each.record, each.age + aged)
            for each in self._seen
            if each.record["instance"]["id"] != self.instance.id
        ]
        alerts = self._alerts.standing()
        picture = deployment([Seen(own, 0), *others], own, self._recent(), alerts)
        picture["events"]["topics"] = traffic(self.instance.log, self.instance.wall())
        return picture

    def refresh(self) -> None:
        """Read the others' records, if that was not done just now. May wait for Redis."""
        if not self._records.shared:
            return
        if time.monotonic() - self._read_at > WATCHED:
            try:
                self._read()
            except Away:
                pass  # the picture says how old it is

    def state(self) -> dict[str, Any]:
        """What is pushed to who watches."""
        return self.picture() | {
            "points": columns(self._recent()[-TOLD:], 1),
            "changes": self._alerts.changes(),
            "tail": self.tail.newest(),
        }

    def history(self, step: int) -> dict[str, Any]:
        """A ring as columns. Raises `KeyError` for a step that is none."""
        RINGS[step]
        try:
            return columns(self._records.history(step), step)
        except Away:
            return columns(self._rings.points(step), step)

    def connections(self, search: Search) -> dict[str, Any]:
        """One page of the open connections of all instances; `missing` did not answer."""
        answers, missing = self._ask({"do": "find", **search.plain()})
        return connections.merge(answers, search) | {"missing": missing}

    def disconnect(self, connection: str) -> bool:
        """End one connection wherever it is; whether it was found."""
        answers, _ = self._ask({"do": "end", "id": connection})
        return any(answer["ended"] for answer in answers)

    def disconnect_found(self, search: Search) -> tuple[int, list[str]]:
        """End all that are found, wherever they are: how many, and which instances did not say."""
        answers, missing = self._ask({"do": "end_found", **search.plain()})
        return sum(int(answer.get("ended", 0)) for answer in answers), missing

    def snooze(self, rule: str, until: int) -> tuple[bool, list[str]]:
        """Silence a standing alert on all instances until then (Unix ms).

        Whether anybody knows it, and who did not answer: one of them may be the one that tells.
        """
        answers, missing = self._ask({"do": "snooze", "rule": rule, "until": until})
        return any(answer.get("snoozed") for answer in answers), missing

    def _on_exit(self) -> None:
        """The process ends on purpose: it is not to count as gone."""
        if os.getpid() != self.instance.pid:
            return  # a child that was forked and has ended
        self.stop()
        try:
            self._records.leave()
        except Away:
            pass  # it will be shown as gone, and then expire

    # -- questions to the other instances, and theirs

    def _ask(self, question: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
        """The answers of all instances, this one's among them; who did not answer."""
        own = self._answer(dict(question))
        if not self._records.shared:
            return [own], []
        self.refresh()
        others = {
            each.record["instance"]["id"]
            for each in self._seen
            if is_live(each) and each.record["instance"]["id"] != self.instance.id
        }
        place = random_id()
        asked = {"place": place, "from": self.instance.id, "question": question}
        answers = [own]
        try:
            self._records.ask(to_json(asked))
            deadline = time.monotonic() + ANSWER
            given: Mapping[str, str] = {}
            while others - given.keys() and time.monotonic() < deadline:
                time.sleep(0.02)
                given = self._records.answers(place)
        except Away:
            given = {}
        answers += [json.loads(text) for text in given.values()]
        return answers, sorted(others - given.keys())

    def _overhear(self, text: str) -> None:
        """What another process said besides events. Called by the bus, which is not to wait."""
        try:
            asked = json.loads(text)
            if asked["from"] == self.instance.id:
                return
            question, place = dict(asked["question"]), str(asked["place"])
        except (ValueError, KeyError, TypeError):
            return  # of another version

        def reply() -> None:
            try:
                self._records.answer(place, to_json(self._answer(question)))
            except Away:
                pass  # who asks does not wait for long

        threading.Thread(target=reply, name="hybrid-monitor", daemon=True).start()

    def _answer(self, question: dict[str, Any]) -> dict[str, Any]:
        hub = self.instance.hub
        what = question.pop("do")
        if what == "end":
            found = hub.connections.get(question["id"])
            if found is not None:
                hub.end(found, "kicked", after=0)
            return {"ended": found is not None}
        if what == "snooze":
            return {"snoozed": self._alerts.snooze(str(question["rule"]), int(question["until"]))}
        search = Search(**question)
        if what == "end_found":
            found_here = connections.matching(hub, search)
            for each in found_here:
                # They come back, a thousand a second at most, and not all at once.
                hub.end(each, "kicked", after=KICKED_MS + random.randint(0, len(found_here)))
            return {"ended": len(found_here)}
        return connections.find(hub, search, self.instance.id)

    # -- the timer

    def _tick(self, late: float) -> None:
        self.sampler.late(late)
        if late >= BLOCKED * 1000:
            logger.warning(
                "this process did not run for %.1f s (blocked event loop): a call in the"
                " application held it, or the process was stopped, and all its clients waited",
                late / 1000,
            )
        self._look_at_clock()
        second = int(self._now())
        if second <= self._second:
            return
        self.sampler.sample(second - 1)
        self._second = second
        watched = self.watch.wanted
        self.tail.sample(wanted=watched)
        if not self._records.shared:
            self._told = list(self._rings.points(1))[-MINUTE:]
        if watched:
            if not self._watched:
                self._nudge.set()  # the first one who comes is not to wait for fresh records
            self.watch.push()

    def _now(self) -> float:
        """Unix seconds, by Redis' clock where there is one: all instances have that."""
        return time.time() + (self._skew_ms or 0) / 1000

    def _look_at_clock(self) -> None:
        wall, monotonic = time.time(), time.monotonic()
        moved = (wall - self._wall) - (monotonic - self._monotonic)
        self._wall, self._monotonic = wall, monotonic
        if abs(moved) < JUMP:
            return
        logger.warning(
            "the clock of this machine was set %s by %.1f s (or the machine slept): times of events"
            " and latencies from before and after it do not fit together",
            "back" if moved < 0 else "forward",
            abs(moved),
        )
        if self._skew_ms is not None:
            self._skew_ms -= round(moved * 1000)
            return
        self._alerts.shift(moved)
        if moved < 0:
            # Its seconds are still to come: nothing would be kept until then.
            self.sampler.points.clear()
            self._rings.clear()
            self._taken = {}
            self._second = int(wall) - 1

    def _recent(self) -> list[Point]:
        """The deployment's last minute; of this instance alone until there is one."""
        return self._told or [point.with_("stored", 0) for point in self.sampler.recent()]

    # -- the exchange with the others

    def _write(self) -> None:
        record = self.record()
        # Up to what was written last, and as far back as a new keeper may have to go.
        away = time.monotonic() - self._written_at
        carried = min(KEPT, max(CARRIED, int(min(away, KEPT)) + 2))
        points = list(self.sampler.points)[-carried:]
        record |= {
            "points": [point.pack() for point in points],
            "until": points[-1].at if points else 0,
        }
        text, began, now = to_json(record), time.monotonic(), unix_ms()
        try:
            beat = self._records.beat(text, watched=self.watch.wanted)
        except Away:
            self._told = []
            self._away_at = time.monotonic()
            self._judge(self.picture())
            raise
        self._written_at = time.monotonic()
        if self._records.shared:
            self.sampler.redis_ms = round((self._written_at - began) * 1000, 2)
            self._skew_ms = beat.now - (now + unix_ms()) // 2
        self._watched = beat.watched
        if beat.keeper or beat.watched:
            self._read()
        if beat.keeper:
            self._keep()
        self._keeping = beat.keeper

    def _read(self) -> None:
        seen, told = self._records.read(), self._records.history(1, MINUTE)
        # All in one step, since others look at it while Redis is waited for.
        self._seen, self._told, self._read_at = seen, told, time.monotonic()
        mixed = bool(strangers(seen, self.instance.application))
        if mixed and not self._mixed:
            logger.warning(
                "another application, with another SECRET_KEY, uses the namespace %r of this Redis"
                " too: each delivers the other's events; give one another HYBRID_NAMESPACE",
                self.instance.settings.namespace,
            )
        self._mixed = mixed
        if not self._keeping:
            self._load(self._records.state())

    def _load(self, state: dict[str, Any]) -> None:
        self._alerts.load(state.get("alerts", ""))
        self._taken = state.get("taken", {})
        self._head = tuple(state.get("head", self._head))

    def _keep(self) -> None:
        """Add the seconds that are complete to the history, and look whether all is well."""
        if not self._keeping and self._records.shared:
            self._rings = Rings({step: self._records.history(step) for step in RINGS})
            self._load(self._records.state())
        for point in self._complete([each for each in self._seen if is_live(each)]):
            self._unsaved += self._rings.append(point)
        changes = self._alerts.step(self._scene(self.picture()))
        state = {"alerts": self._alerts.dump(), "taken": self._taken, "head": self._head}
        if self._records.keep(self._unsaved, state):
            self._tell(changes)
        self._unsaved = []

    def _complete(self, live: Sequence[Seen]) -> list[Point]:
        """The deployment's seconds of which every instance has told, in order."""
        told = {each.record["instance"]["id"]: self._untaken(each.record) for each in live}
        newest = [each.record["until"] for each in live if each.record["points"]]
        if not newest:
            return []
        upto = max(min(newest), max(newest) - PATIENCE)
        seconds: dict[int, list[Point]] = {}
        for id, points in told.items():
            for point in points:
                if point.at <= upto:
                    seconds.setdefault(point.at, []).append(point)
                    self._taken[id] = point.at
        self._taken = {id: at for id, at in self._taken.items() if id in told}
        polling = estimate(unpack(each.record["connections"]["pollers"]) for each in live)
        return [
            point.with_("polling", max(polling, point["polling"])).with_(
                "stored", self._stored(int(point["stored"]))
            )
            for point in (merge(seconds[at]) for at in sorted(seconds))
        ]

    def _stored(self, offset: int) -> int:
        """How many events there are more than in the second before."""
        # What a point says of a log that is no more is not to count in the one that is.
        offset = min(offset, self.instance.log.last)
        epoch, before = self._head
        if epoch != self.instance.log.epoch:
            epoch, before = self.instance.log.epoch, 0
        self._head = (epoch, max(before, offset))
        return self._head[1] - before

    def _untaken(self, record: Record) -> list[Point]:
        """The seconds of an instance that are not in the history yet.

        Those that come too late, as the first ones of a new instance, count in the next second
        that there is: what was counted is not to be lost. But for what others counted as well.
        """
        taken, done = self._taken.get(record["instance"]["id"], 0), self._rings.upto
        points = [point for text in record["points"] if (point := Point.unpack(text))]
        late = [point.with_("stored", 0) for point in points if taken < point.at <= done]
        rest = [point for point in points if point.at > max(taken, done)]
        return [roll([*late, rest[0]], rest[0].at), *rest[1:]] if rest and late else rest

    def _scene(self, picture: dict[str, Any]) -> Scene:
        complete = time.monotonic() - self._away_at >= GONE_MS / 1000
        seconds, tens = self._rings.points(1), self._rings.points(10)
        return Scene(self._now(), picture, seconds, tens, complete)

    def _judge(self, picture: dict[str, Any]) -> None:
        """Without Redis each judges for itself, so that its own page is true; the last keeper
        tells of it, since nobody else can become one."""
        changes = self._alerts.step(self._scene(picture))
        if self._keeping:
            self._tell(changes)

    def _tell(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if not change.silent:
                self._on_change(change)

    def _beat(self) -> float:
        """Write and read; seconds until the next time."""
        try:
            self._write()
        except Away:
            self.sampler.redis_ms = None
        return WATCHED if self._watched or self.watch.wanted else self._interval


def _ring(ref: "weakref.ref[Monitor]", stopped: threading.Event, _nudge: threading.Event) -> None:
    while True:
        began = time.monotonic()
        if stopped.wait(RING):
            return
        late = max(0.0, time.monotonic() - began - RING) * 1000
        monitor = ref()
        if monitor is None:
            return
        try:
            monitor._tick(late)
        except Exception:
            logger.exception("the monitor failed and goes on")
        del monitor


def _exchange(
    ref: "weakref.ref[Monitor]", stopped: threading.Event, nudge: threading.Event
) -> None:
    wait = WATCHED
    written = float("-inf")
    while not stopped.is_set():
        if nudge.wait(max(0.0, wait - (time.monotonic() - written))):
            nudge.clear()
            wait = min(wait, WATCHED)
            continue
        monitor = ref()
        if monitor is None:
            return
        written = time.monotonic()
        try:
            wait = monitor._beat()
        except Exception:
            wait = WATCHED
            logger.exception("the monitor failed and goes on")
        del monitor
