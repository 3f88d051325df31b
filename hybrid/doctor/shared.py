"""What Redis says: whether it is there, new enough, may be used, and keeps what it is given."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from hybrid.audience import Audience
from hybrid.bus.diagnosis import DIAGNOSES, diagnose
from hybrid.config import SCHEMES, Settings
from hybrid.doctor.finding import Finding
from hybrid.events import Event, random_id
from hybrid.monitor.deployment import strangers
from hybrid.monitor.records import Away

OLDEST = (6, 2)
PATIENCE = 3.0
SKEW = 2.0
SLOW = 0.1
COMMANDS = (
    "ping evalsha script|load eval del unlink hdel hget hlen hmget hset xadd xlen xrange xtrim time"
    " publish subscribe unsubscribe info config|get client|setname hello set wait"
)


def look_at_log(settings: Settings, application: str = "") -> Iterator[Finding]:
    """`application` is the mark of the one that asks."""
    scheme = settings.url.partition("://")[0]
    if scheme not in SCHEMES:
        yield Finding("ok", "log", f"{scheme}://, no server to ask")
        return
    # Only now: who needs no Redis does not load its client.
    import redis

    from hybrid.bus.store import Store

    store = Store(settings.url, settings.namespace, timeout=PATIENCE)
    try:
        began = time.monotonic()
        store.client.ping()
        took = time.monotonic() - began
    except (redis.RedisError, OSError) as error:
        yield _refusal(error, settings)
        store.close()
        return
    try:
        yield Finding("ok", "Redis", f"answers in {took * 1000:.0f} ms")
        yield from _facts(store.client, redis.RedisError)
        yield _round_trip(store, settings, redis.RedisError)
        yield from _strangers(settings, application)
    finally:
        store.close()


def _strangers(settings: Settings, application: str) -> Iterator[Finding]:
    from hybrid.monitor.redis_records import RedisRecords

    try:
        seen = RedisRecords(settings.url, settings.namespace, "").read()
    except Away:
        return
    if found := strangers(seen, application):
        yield Finding(
            "fail",
            "namespace",
            f"{settings.namespace!r} is used by another application too, with another SECRET_KEY,"
            f" at {', '.join(found)}: each delivers the other's events",
            "give one of them a HYBRID_NAMESPACE of its own",
        )


def _refusal(error: Exception, settings: Settings) -> Finding:
    """What is wrong, and the fix: as the log, the health check and the monitor say it."""
    found = diagnose(error)
    where = f" ({found.where})" if found.where else ""
    if found.what == DIAGNOSES["NOPERM"].what:
        base = f"{{{settings.namespace}}}:*"
        rights = " ".join(f"+{command}" for command in COMMANDS.split())
        fix = f"ACL SETUSER … ~{base} &{base} {rights}"
        return Finding("fail", "Redis ACL", f"{found.what}{where}", fix)
    fix = found.fix
    if not found.answers:
        fix += "; until then each worker serves its own clients alone"
    return Finding("fail", "Redis", f"{found.what}{where}", fix)


def _facts(client: Any, denied: type[Exception]) -> Iterator[Finding]:
    def ask(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except denied:
            return None  # hosted services and tight ACLs hide some of it

    info = ask(client.info)
    if info is None:
        yield Finding("skip", "Redis version", "INFO is not allowed; it has to be 6.2 or newer")
    else:
        yield _version(info)
        if info.get("role") == "slave":
            yield Finding(
                "fail",
                "Redis role",
                "a replica, which takes no events",
                "use the primary's address",
            )
        if not int(info.get("aof_enabled", 0)):
            yield Finding(
                "look",
                "Redis persistence",
                "no append-only file: a restart loses events, and every client is told so",
                "appendonly yes",
            )
    yield _policy(info, ask(lambda: client.config_get("maxmemory*")))
    clock = ask(client.time)
    if clock is None:
        yield Finding("skip", "clock", "TIME is not allowed")
    else:
        yield skewed(time.time() - (clock[0] + clock[1] / 1e6), "Redis")


def _version(info: dict[str, Any]) -> Finding:
    text = str(info.get("redis_version", "0"))
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
    if numbers < OLDEST:
        return Finding(
            "fail", "Redis version", f"{text} is too old", "Redis 6.2 or newer, or Valkey"
        )
    return Finding("ok", "Redis version", text)


def _policy(info: dict[str, Any] | None, config: dict[str, Any] | None) -> Finding:
    told = {
        **(info or {}),
        **{key.replace("-", "_"): value for key, value in (config or {}).items()},
    }
    policy = told.get("maxmemory_policy")
    if policy is None:
        return Finding(
            "skip", "Redis maxmemory", "not readable; the policy has to be noeviction or volatile-…"
        )
    if str(policy).startswith("allkeys"):
        return Finding(
            "fail",
            "Redis maxmemory",
            f"{policy} may throw the log away when memory is short, and all clients lose history",
            "maxmemory-policy noeviction, or a volatile-… one: our keys never expire",
        )
    return Finding("ok", "Redis maxmemory", f"{policy}")


def skewed(seconds: float, whose: str) -> Finding:
    """How far another clock is from ours."""
    if abs(seconds) > SKEW:
        return Finding(
            "look",
            f"{whose} clock",
            f"is {abs(seconds):.1f} s {'behind' if seconds > 0 else 'ahead of'} this machine's",
            "run NTP on both: history by time, and delays shown in the monitor, go wrong",
        )
    return Finding("ok", f"{whose} clock", f"within {SKEW:g} s of ours")


def _round_trip(store: Any, settings: Settings, denied: type[Exception]) -> Finding:
    """An event that nobody sees, stored by the script and heard by a subscription."""
    event = Event(random_id(), "hybrid.doctor", "null", time.time_ns() // 1_000_000, Audience())
    try:
        bell = store.subscribe()
        try:
            began = time.monotonic()
            store.publish([event], new_epoch=random_id())
            while time.monotonic() - began < PATIENCE:
                message = bell.get_message(timeout=PATIENCE)
                if message and event.id in str(message.get("data")):
                    took = time.monotonic() - began
                    return Finding(
                        "look" if took > SLOW else "ok",
                        "Redis round trip",
                        f"stored and heard in {took * 1000:.0f} ms",
                        "a Redis that is nearer",
                    )
        finally:
            bell.close()
    except (denied, OSError) as error:
        return _refusal(error, settings)
    return Finding(
        "fail",
        "Redis round trip",
        "an event was stored and never heard",
        f"let published messages of {store.channel} through to this client",
    )
