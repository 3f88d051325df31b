"""What one instance does, second by second: read from counters that others keep anyway.

Nothing here runs when an event is delivered. Once a second the counters are read and compared
with those of a second ago.
"""

import resource
from collections import deque
from pathlib import Path

from hybrid.histogram import Histogram
from hybrid.instance import Instance
from hybrid.monitor.errors import Errors
from hybrid.monitor.history import Point

KEPT = 120
"""Seconds that an instance keeps of itself: what Redis may be away without a hole in history."""
MINUTE = 60


class Sampler:
    """Makes a point of what has changed since the last one.

    `lag` is told by a timer: how late it rang, in milliseconds. `redis_ms` is how long the last
    command took, None where there is no Redis.
    """

    def __init__(self, instance: Instance, errors: Errors) -> None:
        self._instance = instance
        self._errors = errors
        self.points: deque[Point] = deque(maxlen=KEPT)
        self.redis_ms: float | None = None
        self._lag = 0.0
        self._before = self._counters()
        self._latency = list(instance.hub.latency.counts)
        self.began = instance.log.head
        """Where the log was when this process began."""

    def late(self, milliseconds: float) -> None:
        """The timer rang so late: the event loop was busy with something else."""
        self._lag = max(self._lag, milliseconds)

    def sample(self, at: int) -> None:
        """Keep a point for this second (Unix); it must be later than the one before.

        Seconds that a busy process slept through have points as well: what was open still was.
        """
        hub = self._instance.hub
        counters, latency = self._counters(), list(hub.latency.counts)
        values = {name: value - self._before[name] for name, value in counters.items()}
        values |= {
            "instances": 1,
            "sse": sum(c.transport == "sse" for c in list(hub.connections.values())),
            "stored": self._instance.log.last,
            "outbox": self._instance.bus.waiting,
            "memory": resident_bytes() or 0,
            "lag": self._lag,
            "redis": self.redis_ms or 0,
        }
        values["polling"] = hub.held() - values["sse"]
        new = {
            bucket: count - before
            for bucket, (count, before) in enumerate(zip(latency, self._latency, strict=True))
            if count > before
        }
        if self.points:
            before = self.points[-1]
            for missed in range(max(before.at + 1, at - KEPT), at):
                self.points.append(before.carried(missed))
        self.points.append(Point.of(at, values, new))
        self._before, self._latency, self._lag = counters, latency, 0.0

    def recent(self) -> list[Point]:
        """The points of the last minute; `stored` is where the log was, not what came to it."""
        return list(self.points)[-MINUTE:]

    def _counters(self) -> dict[str, float]:
        instance, hub = self._instance, self._instance.hub
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "opened": sum(hub.opened.values()),
            "closed": sum(hub.closed.values()),
            "refused": sum(instance.refusals().values()),
            "polls": instance.polls,
            "resumed": hub.resumes["full"],
            "unresumed": hub.resumes["gap"],
            "emitted": instance.emitted.total(),
            "delivered": hub.deliveries,
            "bytes": hub.delivered_bytes,
            "gaps": sum(hub.gaps.values()),
            "overflow": hub.gaps["overflow"],
            "slow": hub.closed["slow"],
            "errors": self._errors.total + hub.faults,
            "reported": self._errors.reported,
            "cpu": usage.ru_utime + usage.ru_stime,
        }


def resident_bytes() -> int | None:
    """The memory of this process; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None  # not Linux
    return pages * resource.getpagesize()


def total_latency(histogram: Histogram) -> list[int]:
    """The histogram as one flat list of bucket, count, bucket, count: for JSON."""
    return [number for pair in histogram.sparse().items() for number in pair]
