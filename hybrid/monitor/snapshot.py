"""The figures of one instance as plain data."""

import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import hybrid
from hybrid.instance import Instance

TOP = 50
"""Names listed per table: a client that invents topics must not make the answer grow."""


def snapshot(instance: Instance) -> dict[str, Any]:
    """The figures of this instance since it started; seconds, bytes and milliseconds as named."""
    hub, log = instance.hub, instance.log
    opened = sum(hub.opened.values())
    held = hub.held()
    by_transport = Counter(connection.transport for connection in list(hub.connections.values()))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "connections": {
            "open": held,
            "max": hub.max_connections,
            "by_transport": {name: by_transport[name] for name in ("sse", "polling")},
            "opened": opened,
            "opened_by_transport": dict(hub.opened),
            "closed": dict(hub.closed),
            "refused": hub.refused,
            "polls": instance.polls,
            "topics": dict(Counter(hub.topics()).most_common(TOP)),
        },
        "events": {
            "emitted": instance.emitted.total(),
            "by_type": dict(instance.emitted.most_common(TOP)),
            "delivered": hub.deliveries,
            "delivered_bytes": hub.delivered_bytes,
            "gaps": dict(hub.gaps),
            "kept": len(log),
            "cursor": str(log.head),
        },
        "performance": {
            "latency_ms": {
                name: None if (value := hub.latency.quantile(q)) is None else value * 1000
                for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
            },
            "lags": hub.lags,
            "memory_bytes": _resident_bytes(),
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
        },
        "errors": {
            "pump": hub.faults,
            "responses": {str(status): count for status, count in instance.problems.items()},
        },
        "instance": {
            "id": instance.id,
            "host": instance.host,
            "pid": instance.pid,
            "version": hybrid.__version__,
            "uptime_seconds": time.time() - instance.started_at,
            "bus": instance.bus.state,
            "bus_trouble": instance.bus.trouble,
            "deaf": instance.bus.deaf,
            "outbox": instance.bus.waiting,
            "alerts": instance.alerts(),
            "url": told(instance.settings.url),
        },
    }


def told(url: str) -> str:
    """A URL without its password."""
    head, at, rest = url.rpartition("@")
    return f"{head.partition('://')[0]}://…@{rest}" if at else url


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None  # not Linux
    return pages * resource.getpagesize()
