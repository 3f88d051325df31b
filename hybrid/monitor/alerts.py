"""When somebody should look, and why: rules over the deployment's figures. Pure.

A rule has a threshold that its value has to pass for some time before it is raised, and another,
milder one that it has to be back under, for some time again, before it is resolved: a value that
hovers about the threshold raises one alert and not a hundred. `Alerts.step` says what changed,
once; its state is plain data, so that the next keeper goes on where the last one stopped.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from hybrid.monitor.history import Point

Severity = Literal["critical", "warning"]
KEPT_CHANGES = 50
BLOCKED = 3.0
"""Seconds in which a process did not run at all: of that somebody is told at once."""
MIN_WINDOWS = 30
"""Ten-second windows before anything counts as unusual: five minutes."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What rules look at. `seconds` and `tens` are points of 1 s and of 10 s, oldest first."""

    now: float
    """Unix seconds."""
    picture: Mapping[str, Any]
    """The deployment as `deployment.deployment` has it."""
    seconds: Sequence[Point]
    tens: Sequence[Point]
    complete: bool = True
    """Whether the records of the other instances can be read, and have had the time to come in."""

    def over(self, seconds: int, name: str) -> float:
        """The sum of a field over the last so many seconds."""
        return sum(p[name] for p in self.seconds if p.at >= self.now - seconds)

    def live(self) -> list[Mapping[str, Any]]:
        """The instances that are not gone."""
        return [row for row in self.picture["instances"] if row["state"] != "gone"]


Reading = tuple[float, str] | None
"""A value and a sentence that explains it; None while there is too little to judge by."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Raised when the value is above `threshold` for `hold` seconds, resolved when it is at or
    under `clear` for `rest` seconds."""

    name: str
    severity: Severity
    read: Callable[[Scene], Reading]
    threshold: float
    clear: float
    hold: float = 0
    rest: float = 30
    of_all: bool = False
    """Whether it speaks of instances that may merely not be heard: what it found last stands while
    they cannot be."""


def _names(rows: Sequence[Mapping[str, Any]]) -> str:
    told = ", ".join(f"{row['host']}:{row['pid']}" for row in rows[:5])
    return told + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _lag(scene: Scene) -> Reading:
    recent = [p["lag"] for p in scene.seconds if p.at >= scene.now - 10]
    if not recent:
        return None
    return max(recent), (
        f"the event loop was busy for {max(recent):.0f} ms at a time: something in the application"
        " blocks it, and all clients of that process wait"
    )


def _blocked(scene: Scene) -> Reading:
    rows = scene.live()
    if not rows:
        return None
    worst = max(rows, key=lambda row: float(row["loop_lag_ms"]))
    return worst["loop_lag_ms"], (
        f"{_names([worst])} did not run for {worst['loop_lag_ms'] / 1000:.1f} s within the last"
        " minute: a call in the application blocked its event loop, or the process was stopped, and"
        " all its clients waited"
    )


def _redis_away(scene: Scene) -> Reading:
    away = [row for row in scene.live() if row["state"] == "degraded"]
    troubles = next((row["trouble"] for row in away if row["trouble"]), "")
    least = "" if scene.complete else "at least "
    return len(away), (
        f"{least}{len(away)} of {len(scene.live())} instances are without the shared log"
        f" ({_names(away)}): events reach the clients of their own process alone and wait in the"
        f" outbox. {troubles}"
    )


def _redis_slow(scene: Scene) -> Reading:
    slow = [row for row in scene.live() if row["redis_ms"] is not None]
    if not slow:
        return None
    worst = max(slow, key=lambda row: row["redis_ms"])
    return worst["redis_ms"], (
        f"a command of {_names([worst])} to Redis takes {worst['redis_ms']:.0f} ms: every emit"
        " waits that long"
    )


def _gone(scene: Scene) -> Reading:
    gone = [row for row in scene.picture["instances"] if row["state"] == "gone"]
    return len(gone), (
        f"nothing is heard of {_names(gone)} any more: it died, or cannot reach Redis;"
        " its clients have come back to others"
    )


def _fallback(scene: Scene) -> Reading:
    clients = scene.picture["connections"]["clients"]
    total = clients["sse"] + clients["polling"]
    if total < 10:
        return None
    share = clients["polling"] / total
    return share, (
        f"{_percent(share)} of {total} clients poll: a proxy in front may hold streams back,"
        " or streams are refused"
    )


def _resume(scene: Scene) -> Reading:
    full, gap = scene.over(300, "resumed"), scene.over(300, "unresumed")
    if full + gap < 20:
        return None
    share = gap / (full + gap)
    return share, (
        f"{gap:.0f} of {full + gap:.0f} clients that came back in the last 5 minutes could not be"
        " sent all that they had missed: the history is too short for how long they are away, or"
        " the log began anew"
    )


def _storm(scene: Scene) -> Reading:
    """How many times more reconnects than usual, of at least 30 in the last minute."""
    minute = scene.over(60, "resumed") + scene.over(60, "unresumed")
    earlier = [p["resumed"] + p["unresumed"] for p in scene.tens if p.at + 10 <= scene.now - 60]
    if minute < 30 or len(earlier) < MIN_WINDOWS:
        return None
    usual = max(1.0, 6 * median(earlier))
    return minute / usual, (
        f"{minute:.0f} clients came back within a minute, usually {usual:.0f}: a proxy or a"
        " process may have dropped its connections"
    )


def _slow(scene: Scene) -> Reading:
    cut = scene.over(300, "slow")
    return cut, f"{cut:.0f} clients were cut in the last 5 minutes because they did not read"


def _overflow(scene: Scene) -> Reading:
    lost = scene.over(300, "overflow")
    return lost, (
        f"{lost:.0f} times in the last 5 minutes a connected client read too slowly and fell out of"
        " the log: HYBRID_HISTORY_EVENTS is too small for this rate, or these clients are too slow"
    )


def _full(scene: Scene) -> Reading:
    rows = [row for row in scene.live() if row["max_connections"]]
    if not rows:
        return None
    fullest = max(rows, key=lambda row: row["connections"] / row["max_connections"])
    share = fullest["connections"] / fullest["max_connections"]
    return share, (
        f"{_names([fullest])} holds {fullest['connections']} of {fullest['max_connections']}"
        " connections: at the limit new clients are refused and poll"
    )


def _errors(scene: Scene) -> Reading:
    wrong = scene.over(300, "errors")
    done = sum(scene.over(300, name) for name in ("opened", "polls", "emitted", "refused"))
    if done < 100:
        return None
    share = wrong / done
    return share, f"{wrong:.0f} errors to {done:.0f} requests and emits in the last 5 minutes"


def _skew(scene: Scene) -> Reading:
    skewed = [row for row in scene.live() if row["skew_ms"] is not None]
    if not skewed:
        return None
    worst = max(skewed, key=lambda row: abs(row["skew_ms"]))
    return abs(worst["skew_ms"]), (
        f"the clock of {_names([worst])} is {abs(worst['skew_ms']) / 1000:.1f} s off that of Redis:"
        " times of its events and latencies are wrong by as much"
    )


def _unshared(scene: Scene) -> Reading:
    apart = [row for row in scene.live() if not row["alone"]]
    return len(apart), (
        "several processes serve without a bus between them: an event reaches only the clients of"
        " the process that emitted it. Set HYBRID_URL=redis://…, or run one worker"
    )


def unusual(values: Sequence[float], value: float) -> float:
    """How far a value is from the usual ones: the modified z-score.

    0.6745 (value - median) / MAD (Iglewicz and Hoaglin, 1993), which a few wild values among the
    usual ones do not move. The spread is taken as at least 5 % of the median and at least 1: where
    nothing ever varies everything would be unusual.
    """
    middle = median(values)
    spread = median(abs(each - middle) for each in values)
    return 0.6745 * (value - middle) / max(spread, 0.05 * middle, 1.0)


def _rate(scene: Scene) -> Reading:
    """The milder of the last two windows, in either direction."""
    if len(scene.tens) < MIN_WINDOWS + 2:
        return None
    *usual, before, now = [p["stored"] for p in scene.tens]
    scores = [unusual(usual, before), unusual(usual, now)]
    both = min(scores) if min(scores) > 0 else -max(scores)
    return both, (
        f"{now / 10:.1f} events a second, usually {median(usual) / 10:.1f} (median of the last"
        f" {len(usual) / 6:.0f} minutes): {abs(scores[1]):.1f} times the usual spread"
        f" {'above' if scores[1] > 0 else 'under'} it, in two windows of 10 s"
    )


RULES: tuple[Rule, ...] = (
    Rule("loop_lag", "warning", _lag, 200, 100, hold=30),
    Rule("blocked", "critical", _blocked, 1000 * BLOCKED, 1000 * BLOCKED, rest=0),
    Rule("redis_away", "critical", _redis_away, 0, 0, hold=5, rest=5),
    Rule("redis_slow", "warning", _redis_slow, 50, 25, hold=30),
    Rule("instance_gone", "critical", _gone, 0, 0, rest=0, of_all=True),
    Rule("fallback", "warning", _fallback, 0.3, 0.2, hold=120),
    Rule("resume", "warning", _resume, 0.05, 0.03, hold=10),
    Rule("reconnect_storm", "warning", _storm, 5, 2),
    Rule("slow_clients", "warning", _slow, 0, 0),
    Rule("overflow", "warning", _overflow, 0, 0),
    Rule("full", "critical", _full, 0.9, 0.8, hold=10),
    Rule("errors", "warning", _errors, 0.01, 0.005, hold=10),
    Rule("clock_skew", "warning", _skew, 1000, 500, hold=30),
    Rule("unshared", "critical", _unshared, 0, 0),
    Rule("event_rate", "warning", _rate, 6, 3),
)


def rules(changes: Mapping[str, Mapping[str, float] | None]) -> tuple[Rule, ...]:
    """The rules with other thresholds or times; None for a rule switches it off.

    Raises `ValueError` for a rule or a number that does not exist.
    """
    known = {rule.name: rule for rule in RULES}
    for name, change in changes.items():
        if name not in known:
            raise ValueError(f"there is no rule {name!r}; there are {', '.join(known)}")
        if change is None:
            del known[name]
            continue
        if not isinstance(change, Mapping):
            raise ValueError(f'{name!r} is to have a mapping, {{"threshold": …}}, or null')
        if unknown := change.keys() - {"threshold", "clear", "hold", "rest"}:
            raise ValueError(f"a rule has no {sorted(unknown)[0]!r}")
        old = known[name]
        threshold = float(change.get("threshold", old.threshold))
        known[name] = replace(
            old,
            threshold=threshold,
            clear=min(float(change.get("clear", old.clear)), threshold),
            hold=float(change.get("hold", old.hold)),
            rest=float(change.get("rest", old.rest)),
        )
    return tuple(known.values())


@dataclass(frozen=True, slots=True)
class Change:
    """An alert was raised, or resolved."""

    kind: Literal["raised", "resolved"]
    rule: str
    severity: Severity
    why: str
    value: float
    threshold: float
    at: int
    """Unix milliseconds."""
    since: int
    """When it was raised; Unix milliseconds."""
    silent: bool = False
    """Somebody has snoozed it: it is to be seen in the monitor and told nowhere."""


class Alerts:
    """What stands, of these rules; see the module's docstring."""

    def __init__(self, rules: Sequence[Rule] = RULES) -> None:
        self._rules = rules
        self._passed: dict[str, float] = {}
        self._cleared: dict[str, float] = {}
        self._standing: dict[str, dict[str, Any]] = {}
        self._changes: list[dict[str, Any]] = []

    def step(self, scene: Scene) -> list[Change]:
        """Judge the scene; what has changed. Scenes come in the order of their time."""
        rules = [rule for rule in self._rules if scene.complete or not rule.of_all]
        return [change for rule in rules if (change := self._judge(rule, scene))]

    def standing(self) -> list[dict[str, Any]]:
        """The alerts that stand, as plain data, the oldest first."""
        return sorted(self._standing.values(), key=lambda alert: int(alert["since"]))

    def changes(self) -> list[dict[str, Any]]:
        """What was raised and resolved, the newest first."""
        return self._changes[::-1]

    def snooze(self, rule: str, until: int) -> bool:
        """Tell nobody of this alert, which has to stand, before `until`, in Unix milliseconds: not
        that it comes again, nor that such a one is resolved. What still stands then is told."""
        alert = self._standing.get(rule)
        if alert is not None:
            self._standing[rule] = alert | {"snoozed_until": until}
        return alert is not None

    def shift(self, seconds: float) -> None:
        """The clock was set by so much: what has held for a time has held for that time still."""
        self._passed = {name: at + seconds for name, at in self._passed.items()}
        self._cleared = {name: at + seconds for name, at in self._cleared.items()}
        for alert in self._standing.values():
            for name in {"since", "snoozed_until"} & alert.keys():
                alert[name] += round(1000 * seconds)

    def dump(self) -> str:
        """The state as text."""
        state = [self._passed, self._cleared, self._standing, self._changes]
        return json.dumps(state, separators=(",", ":"))

    def load(self, text: str) -> None:
        """Go on from a state; an empty text, or one of another version, is the beginning."""
        try:
            passed, cleared, standing, changes = json.loads(text) if text else ({}, {}, {}, [])
        except ValueError:
            return
        # Of a rule that has been switched off since nothing stands any more.
        mine = {rule.name for rule in self._rules}
        self._passed = {name: at for name, at in passed.items() if name in mine}
        self._cleared = {name: at for name, at in cleared.items() if name in mine}
        self._standing = {name: alert for name, alert in standing.items() if name in mine}
        self._changes = changes

    def _judge(self, rule: Rule, scene: Scene) -> Change | None:
        reading, now = rule.read(scene), scene.now
        value, why = reading if reading is not None else (rule.clear, "there is too little to tell")
        alert = self._standing.get(rule.name)
        if alert is None:
            if value <= rule.threshold:
                self._passed.pop(rule.name, None)
                return None
            if now - self._passed.setdefault(rule.name, now) < rule.hold:
                return None
            del self._passed[rule.name]
            return self._change("raised", rule, value, why, scene)
        if value > rule.clear:
            self._cleared.pop(rule.name, None)
            if value > rule.threshold:
                alert |= {"value": round(value, 3), "why": why}
            if not alert.get("silent") or alert["snoozed_until"] > now * 1000:
                return None
            alert["silent"] = False
            return self._told("raised", rule, alert, int(now * 1000))
        if now - self._cleared.setdefault(rule.name, now) < rule.rest:
            return None
        del self._cleared[rule.name]
        return self._change("resolved", rule, value, why, scene)

    def _change(
        self,
        kind: Literal["raised", "resolved"],
        rule: Rule,
        value: float,
        why: str,
        scene: Scene,
    ) -> Change:
        at = int(scene.now * 1000)
        past: dict[str, Any] = {}
        if kind == "resolved":
            past = self._standing.pop(rule.name)
            # What the rule says now is made for when something is wrong.
            why = f"it is over, after {(at - past['since']) / 1000:.0f} s. It was: {past['why']}"
        else:
            ended = (each for each in reversed(self._changes) if each["rule"] == rule.name)
            past = next(ended, past)
        since = at if kind == "raised" else int(past["since"])
        until = int(past.get("snoozed_until", 0))
        silent = until > at if kind == "raised" else bool(past.get("silent"))
        alert: dict[str, Any] = {
            "rule": rule.name,
            "severity": rule.severity,
            "why": why,
            "value": round(value, 3),
            "threshold": rule.threshold,
            "since": since,
        } | ({"snoozed_until": until, "silent": silent} if until > at or silent else {})
        if kind == "raised":
            self._standing[rule.name] = alert
        self._changes = [*self._changes, alert | {"kind": kind, "at": at}][-KEPT_CHANGES:]
        return self._told(kind, rule, alert, at)

    @staticmethod
    def _told(
        kind: Literal["raised", "resolved"], rule: Rule, alert: Mapping[str, Any], at: int
    ) -> Change:
        return Change(
            *(kind, rule.name, rule.severity, alert["why"], alert["value"], rule.threshold, at),
            since=alert["since"],
            silent=bool(alert.get("silent")),
        )
