"""The deployment's figures in Prometheus' text format.

A collector over the same picture that the page shows: any worker answers for all of them, so that
a scrape through a balancer says the same wherever it ends. Labels are bounded: instances (those
that live, with host, pid and id), and words of the protocol; no type, topic or user is one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

__all__ = ["CONTENT_TYPE", "exposition"]

WORKER = ("worker", "id")


def exposition(picture: Mapping[str, Any]) -> bytes:
    """The picture that `Monitor.picture` gives, as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Picture(picture))
    return generate_latest(registry)


class _Picture(Collector):
    def __init__(self, picture: Mapping[str, Any]) -> None:
        self._picture = picture

    def collect(self) -> Iterator[Metric]:
        picture = self._picture
        connections, events = picture["connections"], picture["events"]
        live = [row for row in picture["instances"] if row["state"] != "gone"]
        yield _labelled(
            GaugeMetricFamily,
            "hybrid_clients",
            "Clients by the way they are served now.",
            "transport",
            connections["clients"],
        )
        for name, part, key, label, about in COUNTED:
            yield _labelled(CounterMetricFamily, name, about, label, picture[part][key])
        for name, value, about in (
            ("hybrid_polls", connections["polls"], "Polls that were answered."),
            ("hybrid_events_emitted", events["emitted"], "Emitted by the application."),
            ("hybrid_events_delivered", events["delivered"], "Handed to clients."),
            ("hybrid_delivered_bytes", events["delivered_bytes"], "Bytes handed to clients."),
            ("hybrid_errors", picture["errors"]["total"], "Errors of the servers."),
            ("hybrid_reports", picture["errors"]["reported"], "Errors that browsers reported."),
        ):
            yield CounterMetricFamily(name, about, value=value)
        yield from _latency(picture["performance"]["latency_buckets"])
        yield from _by_worker(live)
        alerts = {alert["rule"]: 1 for alert in picture["alerts"]}
        about = "1 for every alert that stands."
        yield _labelled(GaugeMetricFamily, "hybrid_alert", about, "rule", alerts)
        yield GaugeMetricFamily("hybrid_instances", "Instances that live.", value=len(live))
        gone = len(picture["instances"]) - len(live)
        yield GaugeMetricFamily("hybrid_instances_gone", "Instances that are gone.", value=gone)
        version = InfoMetricFamily("hybrid", "The version that answers.")
        version.add_metric([], {"version": picture["instance"]["version"]})
        yield version


COUNTED = (
    (
        "hybrid_connections_opened",
        "connections",
        "opened_by_transport",
        "transport",
        "Streams and held polls that began.",
    ),
    (
        "hybrid_connections_closed",
        "connections",
        "closed",
        "reason",
        "Streams and held polls that ended.",
    ),
    (
        "hybrid_connections_refused",
        "connections",
        "refused_by",
        "reason",
        "Requests refused for want of room or by a limit.",
    ),
    (
        "hybrid_resumes",
        "connections",
        "resumes",
        "result",
        "Streams that began with a cursor: `full` if all that followed could be sent.",
    ),
    ("hybrid_gaps", "events", "gaps", "reason", "Gaps that clients were told of."),
    ("hybrid_problems", "errors", "responses", "status", "Requests that were refused."),
)

GAUGES = (
    ("hybrid_worker_connections", "connections", 1, "Streams and held polls."),
    ("hybrid_worker_max_connections", "max_connections", 1, "As many it may hold."),
    ("hybrid_worker_memory_bytes", "memory_bytes", 1, "Resident memory."),
    ("hybrid_worker_uptime_seconds", "uptime_seconds", 1, "Since it began."),
    ("hybrid_worker_loop_lag_seconds", "loop_lag_ms", 1000, "Worst of the last minute."),
    ("hybrid_worker_redis_seconds", "redis_ms", 1000, "How long a command to Redis took."),
    ("hybrid_worker_cpu_ratio", "cpu_percent", 100, "Of one core, over the last minute."),
)


def _by_worker(live: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    for name, key, scale, about in GAUGES:
        family = GaugeMetricFamily(name, about, labels=WORKER)
        for row in live:
            if row[key] is not None:
                family.add_metric([f"{row['host']}:{row['pid']}", row["id"]], row[key] / scale)
        yield family
    bus = GaugeMetricFamily("hybrid_worker_bus_ok", "1 while Redis is in reach.", labels=WORKER)
    for row in live:
        bus.add_metric([f"{row['host']}:{row['pid']}", row["id"]], row["bus"] == "ok")
    yield bus


def _latency(buckets: Sequence[tuple[float, int]]) -> Iterator[Metric]:
    """From emit to the write to the socket, as a cumulative histogram."""
    family = Metric("hybrid_delivery_seconds", "From emit to the write to a client.", "histogram")
    total, summed, below = 0, 0.0, 0.0
    for bound, count in buckets:
        total += count
        summed += count * (below + bound) / 2  # the middle of the bucket
        below = bound
        family.add_sample("hybrid_delivery_seconds_bucket", {"le": repr(bound)}, total)
    family.add_sample("hybrid_delivery_seconds_bucket", {"le": "+Inf"}, total)
    family.add_sample("hybrid_delivery_seconds_count", {}, total)
    family.add_sample("hybrid_delivery_seconds_sum", {}, summed)
    yield family


def _labelled(
    family: type[CounterMetricFamily] | type[GaugeMetricFamily],
    name: str,
    about: str,
    label: str,
    values: Mapping[str, float],
) -> Metric:
    metric = family(name, about, labels=(label,))
    for word, value in values.items():
        metric.add_metric([word], value)
    return metric
