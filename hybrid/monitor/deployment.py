"""The whole deployment as one picture, made of what its instances say of themselves. Pure.

Counters are those of all instances that are known, the gone ones among them until they are
forgotten; what is a state (open streams, memory) is that of the live ones alone.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hybrid.distinct import estimate, unpack
from hybrid.histogram import BUCKETS, bound, quantile
from hybrid.monitor import errors
from hybrid.monitor.history import Point, milliseconds, roll
from hybrid.monitor.records import Record, Seen
from hybrid.monitor.snapshot import top

GONE_MS = 15_000
"""Without a record for so long an instance is gone."""
TOP = 50
QUANTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))


def is_live(seen: Seen) -> bool:
    return seen.age < GONE_MS


def strangers(seen: Sequence[Seen], mine: str) -> list[str]:
    """Where other applications run in the same namespace, by their marks; ours is `mine`."""
    told = [each.record["instance"] for each in seen if is_live(each)]
    return sorted(
        f"{each['host']}:{each['pid']}"
        for each in told
        if mine and each.get("application") and each["application"] != mine
    )


def deployment(
    seen: Sequence[Seen], own: Record, recent: Sequence[Point], alerts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The figures of all instances; `own` is the record of the one that is asked.

    `recent` are the deployment's last seconds, of at most a minute.
    """
    records = [each.record for each in seen]
    live = [each.record for each in seen if is_live(each)]
    picture = {
        "at": own["at"],
        "connections": _connections(records, live),
        "events": _events(records, own),
        "performance": _performance(records, live),
        "recent": _recent(recent),
        "errors": {
            "pump": _sum(records, "errors", "pump"),
            "total": _sum(records, "errors", "total"),
            "reported": _sum(records, "errors", "reported"),
            "responses": _counts(records, "errors", "responses"),
            "limits": _counts(records, "errors", "limits"),
            "revoked": _sum(records, "errors", "revoked"),
            "rechecks_failed": _sum(records, "errors", "rechecks_failed"),
            "groups": errors.merge(record["errors"]["groups"] for record in records),
        },
        "instance": own["instance"],
        "instances": sorted(map(_row, seen), key=lambda row: (row["host"], row["pid"], row["id"])),
        "alerts": list(alerts),
    }
    return picture | {"state": _state(live, alerts)}


def clients_polling(live: Iterable[Record]) -> int:
    """Clients that poll: those whose poll is held now, or, if more, all that polled lately."""
    live = list(live)
    held: int = sum(record["connections"]["by_transport"]["polling"] for record in live)
    return max(held, estimate(unpack(record["connections"]["pollers"]) for record in live))


def _connections(records: Sequence[Record], live: Sequence[Record]) -> dict[str, Any]:
    streams = sum(record["connections"]["by_transport"]["sse"] for record in live)
    polling = clients_polling(live)
    clients = streams + polling
    resumes = _counts(records, "connections", "resumes")
    resumed = sum(resumes.values())
    return {
        "open": _sum(live, "connections", "open"),
        "max": _sum(live, "connections", "max"),
        "by_transport": _counts(live, "connections", "by_transport"),
        "clients": {"sse": streams, "polling": polling},
        "fallback_share": polling / clients if clients else None,
        "opened": _sum(records, "connections", "opened"),
        "opened_by_transport": _counts(records, "connections", "opened_by_transport"),
        "closed": _counts(records, "connections", "closed"),
        "refused": _sum(records, "connections", "refused"),
        "refused_by": _counts(records, "connections", "refused_by"),
        "polls": _sum(records, "connections", "polls"),
        "reconnects": resumed,
        "resumes": resumes,
        "resume_success": resumes["full"] / resumed if resumed else None,
        "topics": top(_counts(live, "connections", "topics"), TOP),
    }


def _events(records: Sequence[Record], own: Record) -> dict[str, Any]:
    return {
        "emitted": _sum(records, "events", "emitted"),
        "by_type": top(_counts(records, "events", "by_type"), TOP),
        "delivered": _sum(records, "events", "delivered"),
        "delivered_bytes": _sum(records, "events", "delivered_bytes"),
        "gaps": _counts(records, "events", "gaps"),
        "kept": own["events"]["kept"],
        "cursor": own["events"]["cursor"],
    }


def _performance(records: Sequence[Record], live: Sequence[Record]) -> dict[str, Any]:
    latency: Counter[int] = Counter()
    for record in records:
        pairs = record["performance"]["latency"]
        latency.update(dict(zip(pairs[::2], pairs[1::2], strict=True)))
    parts = [record["performance"] for record in live]
    slowest = [part["redis_ms"] for part in parts if part["redis_ms"] is not None]
    return {
        "latency_ms": {name: milliseconds(quantile(latency, q)) for name, q in QUANTILES},
        "latency_buckets": [
            (bound(last), sum(latency[bucket] for bucket in range(last - 7, last + 1)))
            for last in range(7, BUCKETS, 8)
        ],
        "lags": _sum(records, "performance", "lags"),
        "memory_bytes": sum(part["memory_bytes"] or 0 for part in parts),
        "cpu_seconds": round(sum(part["cpu_seconds"] for part in parts), 3),
        "cpu_percent": round(sum(part["cpu_percent"] for part in parts), 1),
        "loop_lag_ms": max((part["loop_lag_ms"] for part in parts), default=None),
        "redis_ms": max(slowest, default=None),
    }


def _recent(points: Sequence[Point]) -> dict[str, Any]:
    """The last minute: each second's average of what is counted, and the latency."""
    if not points:
        return {"seconds": 0}
    minute = roll(points, points[0].at)
    counted = ("opened", "closed", "emitted", "stored", "delivered", "bytes", "gaps", "errors")
    return {
        "seconds": len(points),
        "per_second": {name: round(minute[name] / len(points), 3) for name in counted},
        "latency_ms": {name: milliseconds(quantile(minute.latency, q)) for name, q in QUANTILES},
        "loop_lag_ms": round(minute["lag"], 1),
    }


def _row(seen: Seen) -> dict[str, Any]:
    """An instance as a line of a table."""
    record = seen.record
    one, figures = record["instance"], record["performance"]
    return {
        "id": one["id"],
        "host": one["host"],
        "pid": one["pid"],
        "version": one["version"],
        "uptime_seconds": one["uptime_seconds"],
        "state": _state_of(seen),
        "age_seconds": round(seen.age / 1000, 1),
        "connections": record["connections"]["open"],
        "max_connections": record["connections"]["max"],
        "emitted": record["events"]["emitted"],
        "delivered": record["events"]["delivered"],
        "memory_bytes": figures["memory_bytes"],
        "cpu_percent": figures["cpu_percent"],
        "loop_lag_ms": figures["loop_lag_ms"],
        "redis_ms": figures["redis_ms"],
        "bus": one["bus"],
        "trouble": one["bus_trouble"],
        "alone": one["alone"],
        "skew_ms": record["skew_ms"],
    }


def _state_of(seen: Seen) -> str:
    if not is_live(seen):
        return "gone"
    return "ok" if seen.record["instance"]["bus"] == "ok" else "degraded"


def _state(live: Sequence[Record], alerts: Sequence[Mapping[str, Any]]) -> str:
    """`critical` while a critical alert stands, `degraded` while anything else is wrong."""
    if any(alert["severity"] == "critical" for alert in alerts):
        return "critical"
    troubled = any(record["instance"]["bus"] != "ok" for record in live)
    told = any(record["instance"]["alerts"] for record in live)
    return "degraded" if alerts or troubled or told else "ok"


def _sum(records: Iterable[Record], part: str, name: str) -> int:
    return sum(record[part][name] for record in records)


def _counts(records: Iterable[Record], part: str, name: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for record in records:
        total.update(record[part].get(name, {}))  # an older version may not tell it
    return dict(total)
