"""How much a client may do: who is counted as one, and what is said to who did too much."""

import ipaddress
import logging
from functools import lru_cache

from flask import Response, current_app, request
from limits.strategies import RateLimiter
from werkzeug.exceptions import HTTPException

from hybrid.audience import Identity
from hybrid.errors import Draining, TooManyConnections, TooManyOfOne
from hybrid.instance import Instance
from hybrid.limits import of_address, of_user
from hybrid.reach import Patience
from hybrid.routes.answers import (
    DRAINING_RETRY_AFTER,
    FULL_RETRY_AFTER,
    Problem,
    app_state,
    http_problem,
)

logger = logging.getLogger("hybrid")

NOWHERE = "local"
"""The bucket of all who have no address: behind a Unix socket without HYBRID_TRUSTED_PROXIES."""
MAX_ADDRESS = 100
"""Characters, with a zone and a port. Longer texts, which a header may bring, are not kept."""
CROWDED_RETRY_AFTER = 30
"""Seconds: until one of a user's many streams has ended; the client polls meanwhile."""


def address_of(instance: Instance) -> str:
    """Where the request comes from: one IPv4 address, or the /64 of an IPv6 address.

    An IPv4 address inside of an IPv6 one is that IPv4 address.

    X-Forwarded-For counts only from the right, by the number of trusted proxies: what is further
    left anybody can write. A single IPv6 customer has at least a /64 to choose addresses from.
    """
    environ = request.environ
    direct = environ.get("REMOTE_ADDR") or ""
    proxies = instance.settings.trusted_proxies
    forwarded = environ.get("HTTP_X_FORWARDED_FOR")  # of several, the server makes one
    if "werkzeug.proxy_fix.orig" in environ:
        return _bucket(direct)  # the application has looked through its proxies already
    if proxies:
        chain = [*(forwarded.split(",") if forwarded is not None else ()), direct]
        return _bucket(chain[-1 - min(proxies, len(chain) - 1)])
    bucket = _bucket(direct)
    if forwarded is not None and not instance.one_address and _is_near(bucket):
        instance.one_address = True
        logger.warning(
            "requests come through a proxy, and all clients share the limits of its address (%s);"
            " set HYBRID_TRUSTED_PROXIES to the number of proxies in front",
            bucket,
        )
    return bucket


def _bucket(text: str) -> str:
    text = text.strip().strip('"')
    return _network(text) if len(text) <= MAX_ADDRESS else NOWHERE


@lru_cache(4096)
def _network(text: str) -> str:
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return NOWHERE
    if isinstance(address, ipaddress.IPv6Address):
        inner = _ipv4_in(address)
        network = ipaddress.ip_network((address, 64), strict=False)
        return str(network) if inner is None else str(inner)
    return str(address)


NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _ipv4_in(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address of a client that has no other and is seen by IPv6.

    All the IPv4 clients of a NAT64 gateway (RFC 6052) or of a Teredo server (RFC 4380) would share
    one /64; one IPv4 address has 65,536 of them by 6to4 (RFC 3056).
    """
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour


def is_this_machine(bucket: str) -> bool:
    """Whether an address, as `address_of` gives it, is a loopback one."""
    return bucket == _network("::1") or (
        bucket != NOWHERE and ipaddress.ip_network(bucket).is_loopback
    )


def _is_near(bucket: str) -> bool:
    return bucket == NOWHERE or ipaddress.ip_network(bucket).is_private


def patience(*, theirs: bool = False) -> Patience:
    """How long this request waits yet for where limits and the like are kept, all in all.

    `theirs`: for the storage of the application's own `Limiter`, which, should it be slow, is not
    to take what there is for ours.
    """
    key = "hybrid.patience.theirs" if theirs else "hybrid.patience"
    left: Patience | None = request.environ.get(key)
    if left is None:
        left = request.environ[key] = Patience()
    return left


ASKED = "hybrid.asked"
"""In the environ of a request: a hook of the application has been asked about it."""


def _are_off() -> bool:
    """Whether the application's own limits are switched off, and ours with them."""
    return not current_app.config.get("RATELIMIT_ENABLED", True) or not all(
        limiter.enabled for limiter in current_app.extensions.get("limiter", ())
    )


def count(instance: Instance, limit: str, who: str) -> None:
    """Count one for whom `of_user` or `of_address` names; 429 when it is too much."""
    if _are_off():
        return
    strategy: RateLimiter | None = None
    if limiters := current_app.extensions.get("limiter"):
        strategy = next(iter(limiters)).limiter
    wait = instance.rates.hit(
        limit, who, strategy=strategy, patience=patience(theirs=strategy is not None)
    )
    if wait is not None:
        raise too_many(instance, limit, wait)


def count_request(instance: Instance) -> None:
    """Count a request for its address before any hook is asked; 429 when it is too much.

    What is counted is what this process's hooks can be made to do, so each process counts for
    itself and no storage is asked. The bound is generous, since a whole office may be behind one
    address; one whose requests the hooks refuse has a smaller one (`answer_refusal`).
    """
    who = of_address(address_of(instance))
    refuse_if_spent(instance, "refusals", who)
    left = None if _are_off() else instance.rates.hit_here("ip_requests", who)
    if left is not None:
        raise too_many(instance, "ip_requests", left)


def answer_refusal(error: HTTPException) -> Response:
    """The answer to a request that was refused; where a hook said no, counted for its address.

    Else who has no identity, or tries one topic after the other, could ask the hooks for ever.
    """
    if error.code in (401, 403) and ASKED in request.environ:
        try:
            count_refusal()
        except Problem as limit:
            error = limit
    return http_problem(error)


def count_refusal() -> None:
    """Count that a hook said no, for the address; 429 when that is too much."""
    instance = app_state().instance()
    count(instance, "refusals", of_address(address_of(instance)))


def refuse_if_spent(instance: Instance, limit: str, who: str) -> None:
    """429 where a limit was reached lately, without counting."""
    left = instance.rates.refused_for(limit, who)
    if left is not None:
        raise too_many(instance, limit, left)


def too_many(instance: Instance, limit: str, seconds: int) -> Problem:
    """What is said to who has reached a limit."""
    instance.refused[limit] += 1
    words = limit.replace("_", " ")
    name = {"refusals": "polls", "wrong_keys": "ip_events"}.get(limit, limit)
    detail = f"too many {words}: more than HYBRID_LIMIT_{name.upper()} allows"
    return Problem(429, "Too many requests", detail, retry_after=seconds)


def count_for_user(instance: Instance, limit: str, identity: Identity) -> None:
    """Count one for the user; anonymous visitors are told apart by address alone."""
    if identity.user is not None:
        count(instance, limit, of_user(identity.user))


def refusal(instance: Instance, error: TooManyConnections) -> Problem:
    """What is said to a stream that finds no slot."""
    if isinstance(error, TooManyOfOne):
        instance.refused["streams"] += 1
        return Problem(429, "Too many streams", str(error), retry_after=CROWDED_RETRY_AFTER)
    if isinstance(error, Draining):
        instance.refused["draining"] += 1
        return Problem(503, "Draining", str(error), retry_after=DRAINING_RETRY_AFTER)
    return Problem(503, "Full", str(error), retry_after=FULL_RETRY_AFTER)
