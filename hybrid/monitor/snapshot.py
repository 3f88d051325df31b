"""The figures of one instance as plain data: what it writes for the others to read."""

import resource
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import hybrid
from hybrid.distinct import pack
from hybrid.instance import Instance
from hybrid.monitor.counting import Sampler, resident_bytes, total_latency
from hybrid.monitor.errors import Errors

TOP = 20
"""Names listed per table: a client that invents topics must not make the answer grow."""
TOP_ERRORS = 10


def snapshot(instance: Instance, sampler: Sampler, errors: Errors) -> dict[str, Any]:
    """The figures of this instance since it started; seconds, bytes and milliseconds as named."""
    hub, log = instance.hub, instance.log
    held = hub.held()
    by_transport = Counter(connection.transport for connection in list(hub.connections.values()))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    recent = sampler.recent()
    return {
        "at": int(time.time() * 1000),
        "connections": {
            "open": held,
            "max": hub.max_connections,
            "by_transport": {name: by_transport[name] for name in ("sse", "polling")},
            "opened": sum(hub.opened.values()),
            "opened_by_transport": dict(hub.opened),
            "closed": dict(hub.closed),
            "refused": hub.refused,
            "polls": instance.polls,
            "pollers": pack(instance.pollers.bits(hub.clock())),
            "resumes": {name: hub.resumes[name] for name in ("full", "gap")},
            "topics": top(hub.readers.topics()),
        },
        "events": {
            "emitted": instance.emitted.total(),
            "by_type": top(instance.emitted),
            "delivered": hub.deliveries,
            "delivered_bytes": hub.delivered_bytes,
            "gaps": dict(hub.gaps),
            "kept": len(log),
            "cursor": str(log.head),
        },
        "performance": {
            "latency": total_latency(hub.latency),
            "lags": hub.lags,
            "memory_bytes": resident_bytes(),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
            "cpu_percent": round(100 * sum(p["cpu"] for p in recent) / max(1, len(recent)), 1),
            "loop_lag_ms": round(max((p["lag"] for p in recent), default=0.0), 1),
            "redis_ms": sampler.redis_ms,
        },
        "errors": {
            "pump": hub.faults,
            "total": errors.total,
            "reported": errors.reported,
            "responses": {str(status): count for status, count in instance.problems.items()},
            "groups": errors.groups(TOP_ERRORS),
            "limits": dict(instance.rates.refused) | {"streams": instance.slots.refused},
            "revoked": instance.recheck.revoked,
            "rechecks_failed": instance.recheck.failures,
        },
        "instance": {
            "id": instance.id,
            "host": instance.host,
            "pid": instance.pid,
            "application": instance.application,
            "version": hybrid.__version__,
            "uptime_seconds": round(time.time() - instance.started_at, 1),
            "bus": instance.bus.state,
            "bus_trouble": instance.bus.trouble,
            "deaf": instance.bus.deaf,
            "outbox": instance.bus.waiting,
            "alerts": instance.alerts(),
            "alone": instance.alone,
            "url": told(instance.settings.url),
        },
    }


def top(counts: Mapping[str, int], limit: int = TOP) -> dict[str, int]:
    """The largest counts."""
    return dict(Counter(counts).most_common(limit))


def told(url: str) -> str:
    """A URL without what may be secret: its user and password, and its options, which redis-py
    takes a password from as well."""
    scheme, _, rest = url.partition("://")
    # By hand: several hosts in one, as Sentinels have, are none for urlsplit where one is IPv6.
    place, slash, path = rest.partition("?")[0].partition("/")
    _, login, place = place.rpartition("@")
    return f"{scheme}://{'…@' if login else ''}{place}{slash}{path}"
