"""What went to each topic within the last minute. Pure.

Read from the log, in which everything is that anybody has emitted, whichever process it was: so
nothing is counted while events are delivered, and every worker says the same.
"""

from typing import Any

from hybrid.log import Log

MINUTE_MS = 60_000
LOOK = 5000
"""Events looked at, the newest: two milliseconds. Beyond that the rates are those of a shorter
time."""
LISTED = 50


def traffic(log: Log, now: int) -> dict[str, dict[str, Any]]:
    """The busiest topics, each with events and bytes a second and its newest event (Unix ms).

    Bytes are those of the frame that each reader is sent. `now` is Unix milliseconds.
    """
    last = log.last
    entries = log.between(max(log.anchor.offset, last - LOOK), last) or []
    since = now - MINUTE_MS
    if len(entries) == LOOK:
        since = max(since, entries[0].event.at)
    found: dict[str, list[int]] = {}
    for entry in entries:
        at = entry.event.at
        if at < since:
            continue
        for topic in entry.event.audience.topics:
            counts = found.setdefault(topic, [0, 0, 0])
            counts[0] += 1
            counts[1] += len(entry.frame)
            counts[2] = max(counts[2], at)
    seconds = max(1.0, (now - since) / 1000)
    busiest = sorted(found.items(), key=lambda item: (-item[1][0], item[0]))[:LISTED]
    return {
        topic: {
            "per_second": round(events / seconds, 3),
            "bytes_per_second": round(size / seconds, 1),
            "newest": newest,
        }
        for topic, (events, size, newest) in busiest
    }
