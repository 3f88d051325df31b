"""The settings: one table of keys, defaults and what is allowed."""

import difflib
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit

from hybrid.errors import ConfigError

PREFIX = "HYBRID_"
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
TLS_OPTIONS = frozenset(
    f"ssl_{name}"
    for name in ("ca_certs", "ca_path", "cert_reqs", "certfile", "check_hostname", "keyfile")
)
URL_OPTIONS = frozenset({"db", "username", "password"})
SENTINEL_OPTIONS = frozenset({"sentinel_username", "sentinel_password"})
"""What may stand behind the question mark of a Redis URL, as redis-py has it. Options there win
over those that the client is made with, so none may bound how long a call takes, or how many
connections there are."""
SECRET = ("url", "publish_key", "metrics_key", "alert_webhook")
"""Settings whose values are told to nobody."""
T = TypeVar("T")


def _setting(default: T, doc: str, check: Callable[[Any], T]) -> T:
    value: T = field(default=default, metadata={"doc": doc, "check": check, "off": False})
    return value


def _bound(default: T, doc: str, check: Callable[[Any], T]) -> T | None:
    """A setting that None and the empty string switch off."""

    def checked(value: Any) -> T | None:
        return None if value is None or value == "" else check(value)

    metadata = {"doc": doc, "check": checked, "off": True}
    bound: T | None = field(default=default, metadata=metadata)
    return bound


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a non-empty string")
    return value


def _url(value: Any) -> str:
    text = _text(value)
    scheme, found, _ = text.partition("://")
    if scheme in ("valkey", "valkeys"):
        redis = scheme.replace("valkey", "redis")
        raise ValueError(f"must begin with {redis}://, for Valkey too: both speak one protocol")
    if not found or (text != "memory://" and scheme not in SCHEMES):
        raise ValueError(f"must be memory:// or one of {', '.join(SCHEMES)}")
    if text != "memory://":
        check_redis_url(text)
    return text


def check_redis_url(url: str) -> None:
    """Raises `ConfigError` for an address that is none, and for options that do not count.

    The text of the error has no part of the URL but the name of an option: passwords stand in it.
    """
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    netloc, _, path = place.partition("/")
    try:
        if scheme != "unix" and ("#" in rest or "@" in path + query):
            raise ValueError("a part of a password where none can be")
        for host in netloc.rpartition("@")[2].split(","):
            _ = urlsplit(f"//{host}").port
    except ValueError:
        raise ConfigError(
            "its port is no number, or its host is no address. Fix: in a user name or a password"
            " write %2F for /, %23 for #, %3F for ?, %40 for @ and %25 for %; put an IPv6 address"
            " into brackets"
        ) from None
    if scheme in ("redis", "rediss") and not re.fullmatch("[0-9]{0,9}", path):
        raise ConfigError("its path is no number of a database: redis://host:6379/0")
    allowed = URL_OPTIONS
    if scheme.startswith("rediss"):
        allowed |= TLS_OPTIONS
    if scheme.endswith("+sentinel"):
        allowed |= SENTINEL_OPTIONS
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in allowed:
            raise ConfigError(
                f"it has the option {name!r:.40}, which flask-hybrid sets itself, or which does not"
                f" count with {scheme}://. Fix: remove it, or set HYBRID_URL to a URL without it;"
                f" options that count here are {', '.join(sorted(allowed))}"
            )
        expected = {"db": "[0-9]{1,9}", "ssl_cert_reqs": "none|optional|required"}.get(name, ".*")
        if not re.fullmatch(expected, value, re.DOTALL):
            raise ConfigError(f"its option {name} has to be {expected}")


def _namespace(value: Any) -> str:
    text = _text(value)
    if not re.fullmatch("[A-Za-z0-9_.:-]{1,64}", text):
        raise ValueError("must have 1 to 64 characters of A-Z a-z 0-9 _ . : -")
    return text


def _secret(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) < 16:
        raise ValueError("must be a string of at least 16 characters")
    if not value.isprintable():
        raise ValueError("has a line break or another character that no header can carry")
    return value


def _prefix(value: Any) -> str:
    text = _text(value)
    if not text.startswith("/") or text.endswith("/"):
        raise ValueError("must start with / and not end with it")
    return text


def _webhook(value: Any) -> str | None:
    if value is None:
        return None
    if urlsplit(_text(value)).scheme not in ("http", "https"):
        raise ValueError("must be an http:// or https:// URL")
    return str(value)


def _mapping(value: Any) -> Mapping[str, Any] | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping):
        raise ValueError("must be a mapping, or one as JSON")
    return dict(value)


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
            raise ValueError(f"must be seconds from {low:g} to {high:.12g}")
        return number

    return check


RATE = re.compile(
    "[0-9]{1,9} *(/|per) *([0-9]{1,4} *)?(second|minute|hour|day|month|year)s?", re.IGNORECASE
)


def _rate(value: Any) -> str:
    text = _text(value)
    if not all(RATE.fullmatch(part.strip()) for part in re.split("[,;|]", text)):
        raise ValueError("must be in Flask-Limiter's notation, such as `5 per minute`")
    return text


def _origins(value: Any) -> tuple[str, ...]:
    given = value.split(",") if isinstance(value, str) else list(value)
    origins = tuple(origin.strip() for origin in given if origin != "")
    for origin in origins:
        # `*` and `null` are no origins: with credentials, either would let in every page there is.
        if not re.fullmatch("https?://[a-z0-9.:_\\[\\]-]+", origin):
            raise ValueError(f"{origin!r} is no origin, such as https://app.example")
    return origins


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Settings:
    """The settings of one application, checked. Read once, in `init_app`."""

    url: str = _setting("memory://", "where the log lives", _url)
    namespace: str = _setting(
        "hybrid", "prefix of every Redis key and channel; one log each", _namespace
    )
    outbox_events: int = _setting(
        1000, "events that one instance keeps while Redis is away", _whole(0, 1_000_000)
    )
    outbox_bytes: int = _setting(
        64 * 1024 * 1024,
        "bytes of memory that they take at most. An event counts about four times: as it is, and"
        " as it is sent by each transport",
        _whole(0, 8 * 1024**3),
    )
    probe_seconds: float = _setting(
        7.0, "seconds of silence after which the subscription is tried", _seconds(0.1, 600)
    )
    frugal: bool = _setting(
        False,
        "few commands at rest, where Redis is paid by the command: slower probes and leases, and"
        " each instance's monitor shows that instance alone. True with Upstash's variables",
        _flag,
    )
    publish_key: str | None = _setting(
        None, "what POST /publish wants as its bearer key; off without one", _secret
    )
    url_prefix: str = _setting("/api/realtime", "where the blueprint is mounted", _prefix)
    history_events: int = _setting(10_000, "events that the log keeps", _whole(1, 10_000_000))
    history_seconds: float = _setting(
        3600.0, "seconds that the log keeps them", _seconds(1, 30 * 86400)
    )
    history_bytes: int = _setting(
        64 * 1024 * 1024,
        "bytes of memory that the log takes at most, in each process. An event counts about four"
        " times: as it is, and as it is sent by each transport",
        _whole(1024 * 1024, 8 * 1024**3),
    )
    # Under 30: Heroku ends a connection after 55 s of silence, nginx and most load balancers
    # after 60, and one heartbeat may get lost.
    heartbeat_seconds: float = _setting(15.0, "seconds between signs of life", _seconds(0.1, 25))
    max_age_seconds: float = _setting(
        3600.0,
        "seconds after which a stream is moved on, +-20 %, so that new instances get their share;"
        " 0 is never",
        _seconds(0, 30 * 86400),
    )
    stall_seconds: float = _setting(
        30.0, "seconds after which a client that does not read is cut", _seconds(0.1, 3600)
    )
    max_connections: int = _setting(
        10_000, "streams and long polls that one instance holds", _whole(0, 1_000_000)
    )
    max_connections_per_user: int | None = _bound(
        20, "streams of one user, over all instances", _whole(1, 1_000_000)
    )
    max_connections_per_ip: int | None = _bound(
        100, "streams of one address, over all instances", _whole(1, 1_000_000)
    )
    limit_user_connections: str | None = _bound(
        "5 per minute", "streams that a user may begin without a cursor or ticket", _rate
    )
    limit_ip_connections: str | None = _bound(
        "10 per minute", "streams that an address may begin without a cursor or ticket", _rate
    )
    limit_user_returns: str | None = _bound(
        "60 per minute", "streams that a user may begin with a cursor or ticket", _rate
    )
    limit_ip_returns: str | None = _bound(
        "600 per minute", "streams that an address may begin with a cursor or ticket", _rate
    )
    limit_user_events: str | None = _bound(
        "100 per minute", "events that a user may send in", _rate
    )
    limit_ip_events: str | None = _bound(
        "200 per minute", "events that an address may send in", _rate
    )
    limit_polls: str | None = _bound(
        "300 per minute",
        "polls of a user, or of an address without one; as many requests of an address may"
        " `identify`, `authorize` and the like refuse",
        _rate,
    )
    limit_ip_requests: str | None = _bound(
        "30000 per minute",
        "requests of an address to one process, counted before `identify` is asked",
        _rate,
    )
    trusted_proxies: int = _setting(
        0, "proxies in front, whose X-Forwarded-For is believed", _whole(0, 10)
    )
    cors_origins: tuple[str, ...] = _setting(
        (), "origins whose pages may read streams and polls, with credentials", _origins
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
    monitor_seconds: float = _setting(
        5.0, "seconds between two records of an instance; 1 while somebody watches", _seconds(1, 10)
    )
    metrics_key: str | None = _setting(
        None, "a bearer key that opens GET /metrics, besides can_monitor", _secret
    )
    alert_webhook: str | None = _setting(
        None, "an http(s) URL to which alerts are posted as JSON", _webhook
    )
    alerts: Mapping[str, Any] | None = _setting(
        None, "rules with other thresholds, by name; null is off", _mapping
    )
    anonymous: bool = _setting(True, "whether visitors without an identity may connect", _flag)
    direct_writes: bool = _setting(
        True, "whether the pump may write to the server's sockets itself", _flag
    )

    def __repr__(self) -> str:
        """For tracebacks and debuggers, which are read by more people than may know secrets."""
        told = (
            f"{name}={'…' if name in SECRET and getattr(self, name) else repr(getattr(self, name))}"
            for name in self.__slots__
        )
        return f"Settings({', '.join(told)})"

    @classmethod
    def load(cls, config: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> "Settings":
        """The settings from `app.config` and, where that is silent, the environment.

        An empty variable is none, but where a setting is switched off by it; white space around a
        value is not part of it.
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
            source = ""
            raw = config.get(key, environ.get(key))
            if isinstance(raw, str):
                # A file that a secret is mounted from ends in a newline.
                raw = raw.strip()
            if raw == "" and key not in config and not setting.metadata["off"]:
                raw = None
            if raw is None and setting.name == "url":
                raw = url_from(environ)
                source = " (taken from HYBRID_REDIS_URL, REDIS_URL or Upstash's variables)"
            if raw is None and setting.name == "frugal":
                raw = values.get("url", "") == _upstash(environ)
            if raw is None and (key not in config or not setting.metadata["off"]):
                continue
            try:
                values[setting.name] = setting.metadata["check"](raw)
            except (TypeError, ValueError) as error:
                # A URL may carry a password, and errors end in logs and on screens.
                told = "cannot be used" if setting.name in SECRET else f"is {raw!r}"
                raise ConfigError(f"{key}{source} {told}: {error}") from None
        return cls(**values)


def url_from(environ: Mapping[str, str]) -> str | None:
    """The Redis that the environment names, if it does: what platforms set when one is added.

    Upstash gives an address and a token for its REST interface; the same host speaks the Redis
    protocol over TLS, with the token as the password.
    """
    for name in ("HYBRID_REDIS_URL", "REDIS_URL"):
        if url := environ.get(name, "").strip():
            return url
    return _upstash(environ)


def _upstash(environ: Mapping[str, str]) -> str | None:
    names = ("REST_URL", "REST_TOKEN", "PORT")
    rest, token, port = (environ.get(f"UPSTASH_REDIS_{name}", "").strip() for name in names)
    if rest and token:
        host = urlsplit(rest).hostname or rest
        return f"rediss://default:{quote(token, safe='')}@{host}:{port or 6379}"
    return None
