"""The settings: one table of keys, defaults and what is allowed."""

import difflib
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar
from urllib.parse import urlsplit

from hybrid.errors import ConfigError

PREFIX = "HYBRID_"
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
T = TypeVar("T")


def _setting(default: T, doc: str, check: Callable[[Any], T]) -> T:
    value: T = field(default=default, metadata={"doc": doc, "check": check})
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a non-empty string")
    return value


def _url(value: Any) -> str:
    text = _text(value)
    scheme, found, _ = text.partition("://")
    if not found or (text != "memory://" and scheme not in SCHEMES):
        raise ValueError(f"must be memory:// or one of {', '.join(SCHEMES)}")
    return text


def _namespace(value: Any) -> str:
    text = _text(value)
    if not re.fullmatch("[A-Za-z0-9_.:-]{1,64}", text):
        raise ValueError("must have 1 to 64 characters of A-Z a-z 0-9 _ . : -")
    return text


def _secret(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or len(value) < 16):
        raise ValueError("must be a string of at least 16 characters")
    return value


def _prefix(value: Any) -> str:
    text = _text(value)
    if not text.startswith("/") or text.endswith("/"):
        raise ValueError("must start with / and not end with it")
    return text


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    raise ValueError("must be true or false")


def _choice(*allowed: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return str(value)

    return check


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        # By its decimal digits: int() would cut 1.5 and read "1_000".
        if isinstance(value, bool) or not re.fullmatch("[0-9]{1,10}", str(value), re.ASCII):
            number = -1
        else:
            number = int(value)
        if not low <= number <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return number

    return check


def _seconds(low: float, high: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not low <= (number := float(value)) <= high:
            raise ValueError(f"must be seconds from {low:g} to {high:g}")
        return number

    return check


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one application, checked. Read once, in `init_app`."""

    url: str = _setting("memory://", "where the log lives", _url)
    namespace: str = _setting(
        "hybrid", "prefix of every Redis key and channel; one log each", _namespace
    )
    outbox_events: int = _setting(
        1000, "events that one instance keeps while Redis is away", _whole(0, 1_000_000)
    )
    probe_seconds: float = _setting(
        7.0, "seconds of silence after which the subscription is tried", _seconds(0.1, 600)
    )
    publish_key: str | None = _setting(
        None, "what POST /publish wants as its bearer key; off without one", _secret
    )
    url_prefix: str = _setting("/api/realtime", "where the blueprint is mounted", _prefix)
    history_events: int = _setting(10_000, "events that the log keeps", _whole(1, 10_000_000))
    history_seconds: float = _setting(
        3600.0, "seconds that the log keeps them", _seconds(1, 30 * 86400)
    )
    # Under 30: Heroku ends a connection after 55 s of silence, nginx and most load balancers
    # after 60, and one heartbeat may get lost.
    heartbeat_seconds: float = _setting(15.0, "seconds between signs of life", _seconds(0.1, 25))
    stall_seconds: float = _setting(
        30.0, "seconds after which a client that does not read is cut", _seconds(0.1, 3600)
    )
    max_connections: int = _setting(
        10_000, "streams and long polls that one instance holds", _whole(0, 1_000_000)
    )
    max_event_bytes: int = _setting(
        65_536, "bytes of an event's encoded data", _whole(1, 64 * 1024 * 1024)
    )
    max_replay_events: int = _setting(
        10_000, "events that a cursor may be behind before it is a gap", _whole(0, 10_000_000)
    )
    native_errors: str = _setting(
        "status",
        "how a native EventSource is refused: by `status` (which ends it) or by an `event`",
        _choice("status", "event"),
    )
    anonymous: bool = _setting(True, "whether visitors without an identity may connect", _flag)
    direct_writes: bool = _setting(
        True, "whether the pump may write to the server's sockets itself", _flag
    )

    @classmethod
    def load(cls, config: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> "Settings":
        """The settings from `app.config` and, where that is silent, the environment.

        Raises `ConfigError` for a value that cannot be used; warns of a `HYBRID_` key in
        `config` that does not exist, with the nearest that does.
        """
        known = {PREFIX + setting.name.upper(): setting for setting in fields(cls)}
        for key in config:
            if key.startswith(PREFIX) and key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                warnings.warn(f"there is no setting {key}{hint}", stacklevel=3)
        values: dict[str, Any] = {}
        for key, setting in known.items():
            raw = config.get(key, environ.get(key))
            if raw is None and setting.name == "url":
                raw = url_from(environ)
            if raw is None:
                continue
            try:
                values[setting.name] = setting.metadata["check"](raw)
            except (TypeError, ValueError) as error:
                # A URL may carry a password, and errors end in logs and on screens.
                told = "cannot be used" if setting.name in ("url", "publish_key") else f"is {raw!r}"
                raise ConfigError(f"{key} {told}: {error}") from None
        return cls(**values)


def url_from(environ: Mapping[str, str]) -> str | None:
    """The Redis that the environment names, if it does: what platforms set when one is added.

    Upstash gives an address and a token for its REST interface; the same host speaks the Redis
    protocol over TLS, with the token as the password.
    """
    for name in ("HYBRID_REDIS_URL", "REDIS_URL"):
        if environ.get(name):
            return environ[name]
    rest, token = environ.get("UPSTASH_REDIS_REST_URL"), environ.get("UPSTASH_REDIS_REST_TOKEN")
    if rest and token:
        host = urlsplit(rest).hostname or rest
        return f"rediss://default:{token}@{host}:{environ.get('UPSTASH_REDIS_PORT', '6379')}"
    return None
