"""The figures in a terminal: where to get them, and a table of them."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hybrid.errors import NoFigures
from hybrid.monitor.deployment import deployment, is_live
from hybrid.monitor.records import Away

MINUTE = 60


def by_redis(url: str, namespace: str) -> Callable[[], dict[str, Any]]:
    """What gives the picture from the records in Redis. Raises `NoFigures` when called."""
    from hybrid.monitor.redis_records import RedisRecords

    records = RedisRecords(url, namespace, "")

    def look() -> dict[str, Any]:
        try:
            seen, recent = records.read(), records.history(1, MINUTE)
            alerts = records.state().get("alerts")
        except Away as away:
            raise NoFigures(f"Redis is out of reach: {away}") from away
        if not seen:
            raise NoFigures(f"no instance has been seen in namespace {namespace} for ten minutes")
        standing = json.loads(alerts)[2].values() if alerts else ()
        newest = min(seen, key=lambda each: (not is_live(each), each.age))
        return deployment(seen, newest.record, recent, list(standing))

    return look


def by_http(url: str, headers: Sequence[str]) -> Callable[[], dict[str, Any]]:
    """What gives the picture from a server's GET /monitor. Raises `NoFigures` when called."""
    if not url.startswith(("http://", "https://")):
        raise NoFigures(f"{url} is no http:// or https:// URL")
    sent = {"Accept": "application/json"}
    for header in headers:
        name, _, value = header.partition(":")
        sent[name.strip()] = value.strip()

    def look() -> dict[str, Any]:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, headers=sent), timeout=5
            ) as answer:
                picture: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            raise NoFigures(f"{url} answers {error.code}: {error.reason}") from error
        except (OSError, ValueError) as error:
            raise NoFigures(f"{url} cannot be asked: {error}") from error
        return picture

    return look


def table(picture: Mapping[str, Any]) -> str:
    """The picture for a terminal, 80 columns wide."""
    connections, recent = picture["connections"], picture["recent"]
    rates, latency = recent.get("per_second", {}), recent.get("latency_ms", {})
    clients = connections["clients"]
    share, resumed = connections["fallback_share"], connections["resume_success"]
    lines = [
        f"state        {picture['state']}",
        f"clients      {clients['sse'] + clients['polling']}"
        f"  (sse {clients['sse']}, polling {clients['polling']}, fallback {_percent(share)})",
        f"connections  {connections['open']} open, {connections['opened']} opened,"
        f" {sum(connections['closed'].values())} closed, {connections['refused']} refused"
        f"{_reasons(connections.get('refused_by', {}))}",
        f"events       {rates.get('stored', 0):g}/s in, {rates.get('delivered', 0):g}/s delivered,"
        f" {picture['events']['emitted']} emitted so far",
        f"latency      p50 {_ms(latency.get('p50'))}, p95 {_ms(latency.get('p95'))},"
        f" p99 {_ms(latency.get('p99'))}",
        f"resumes      {_percent(resumed)} of {connections['reconnects']} in full,"
        f" {sum(picture['events']['gaps'].values())} gaps",
        f"errors       {picture['errors']['total']}",
        "",
        f"{'instance':<24} {'state':<9} {'conns':>6} {'emitted':>8} {'lag':>8} {'cpu':>6}"
        f" {'memory':>8} {'redis':>8}",
    ]
    for row in picture["instances"]:
        name = f"{row['host']}:{row['pid']}"
        memory = f"{(row['memory_bytes'] or 0) / 1e6:.0f} MB"
        lines.append(
            f"{name:<24} {row['state']:<9} {row['connections']:>6} {row['emitted']:>8}"
            f" {_ms(row['loop_lag_ms']):>8} {row['cpu_percent']:>4} % {memory:>8}"
            f" {_ms(row['redis_ms']):>8}"
        )
    lines += ["", *(f"{a['severity']}: {a['rule']}: {a['why']}" for a in picture["alerts"])]
    return "\n".join(lines).rstrip()


def _reasons(refused: Mapping[str, int]) -> str:
    """The two that are most frequent."""
    most = sorted(refused.items(), key=lambda item: -item[1])[:2]
    told = ", ".join(f"{reason.replace('_', ' ')} {times}" for reason, times in most if times)
    return f" ({told})" if told else ""


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.1f} s"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
