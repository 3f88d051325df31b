"""The settings: one table of keys, defaults and what is allowed."""

import difflib
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from hybrid.errors import ConfigError

PREFIX = "HYBRID_"
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
    if text != "memory://":
        raise ValueError("this version knows memory:// only")
    return text


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
            if raw is None:
                continue
            try:
                values[setting.name] = setting.metadata["check"](raw)
            except (TypeError, ValueError) as error:
                # A URL may carry a password, and errors end in logs and on screens.
                told = "cannot be used" if setting.name == "url" else f"is {raw!r}"
                raise ConfigError(f"{key} {told}: {error}") from None
        return cls(**values)
