"""The settings: every key, what it takes, what it refuses, and where it is read from."""

import warnings
from dataclasses import fields
from typing import Any

import pytest
from flask import Flask

from hybrid import ConfigError, Hybrid, HybridError
from hybrid.config import Settings, url_from

INF = float("inf")
NAN = float("nan")

RATES = ["5 per minute", "1/second", "5 per 2 minutes; 100/day", "2 PER HOUR"]

# key, what an application or the environment may say, what that means, what is refused
TABLE: list[tuple[str, list[tuple[Any, Any]], list[Any]]] = [
    (
        "URL",
        [
            (url, url)
            for url in (
                *("memory://", "redis://h:1/2", "rediss://h", "unix:///r.sock"),
                *("redis+sentinel://a:1,b:2/main", "rediss+sentinel://a:1,[::1]:2,c/main/3"),
                *("redis://u:%2Fp%40%3F@[::1]:1/2?db=3", "rediss://h?ssl_cert_reqs=none"),
                "rediss+sentinel://h/main?ssl_ca_certs=/ca.pem&sentinel_password=a%26b",
            )
        ],
        [
            *("", 5, b"memory://", ["memory://"], "redis", "memory:", "memory://x", "http://h"),
            *("valkey://h", "redis://h?max_connections=1", "redis://h?socket_timeout=5"),
            *(
                "redis://h?timeout=5",
                "redis://h?retry_on_timeout=1",
                "redis://h?ssl_cert_reqs=none",
            ),
            *("redis://h?sentinel_password=x", "rediss://h?ssl_cert_reqs=CERT_NONE"),
            *("redis://h/zero", "rediss://h/0/1"),
            *("redis://h?db=x", "redis://h?unknown", "redis://u:a/b@h", "redis://h:port"),
            *("redis+sentinel://::1:26379/main", "redis+sentinel://h:1?socket_timeout=5"),
        ],
    ),
    ("NAMESPACE", [("shop", "shop"), ("a.b:c-1_", "a.b:c-1_")], ["", "a b", "{x}", "x" * 65, 1]),
    ("OUTBOX_EVENTS", [(0, 0), ("50", 50)], [-1, 1_000_001, "some", 0.5]),
    ("OUTBOX_BYTES", [(0, 0), ("1048576", 1 << 20)], [-1, 8 * 1024**3 + 1, "some", 0.5]),
    ("PROBE_SECONDS", [(0.1, 0.1), ("7", 7.0)], [0, 601, "often", NAN]),
    ("FRUGAL", [(True, True), ("no", False)], ["", "some", 1]),
    (
        "PUBLISH_KEY",
        [("0123456789abcdef", "0123456789abcdef")],
        ["", "short", 5, b"x" * 16, "01234567\n89abcdef"],
    ),
    ("URL_PREFIX", [("/live", "/live"), ("/a/b", "/a/b")], ["", "live", "/live/", "/", 5]),
    (
        "HISTORY_EVENTS",
        [(1, 1), ("500", 500), (10_000_000, 10_000_000)],
        [0, -1, "", "many", "1.5", 1.5, True, [1], INF, NAN, 10_000_001, "9" * 30],
    ),
    (
        "HISTORY_SECONDS",
        [(1, 1.0), ("60.5", 60.5), (30 * 86400, 2_592_000.0)],
        [0, 0.99, "", "long", "nan", "inf", INF, NAN, True, 30 * 86400 + 1],
    ),
    (
        "HISTORY_BYTES",
        [(1 << 20, 1 << 20), ("64000000", 64_000_000), (8 << 30, 8 << 30)],
        [0, (1 << 20) - 1, (8 << 30) + 1, "", "64 MB", 2e6 + 0.5, True, INF, NAN],
    ),
    ("HEARTBEAT_SECONDS", [(0.1, 0.1), ("15", 15.0), (25, 25.0)], [0, 0.09, 25.1, "soon", NAN]),
    (
        "MAX_AGE_SECONDS",
        [(0, 0.0), ("3600", 3600.0), (2592000, 2592000.0)],
        [-1, 2592001, "never", INF],
    ),
    ("STALL_SECONDS", [(0.1, 0.1), ("30", 30.0), (3600, 3600.0)], [0, 3601, "never", INF]),
    ("MAX_CONNECTIONS", [(0, 0), ("5", 5), (1_000_000, 1_000_000)], [-1, 1_000_001, "all", INF]),
    ("MAX_CONNECTIONS_PER_USER", [(None, None), ("", None), ("5", 5)], [0, -1, "many", True]),
    ("MAX_CONNECTIONS_PER_IP", [(None, None), ("", None), (1, 1)], [0, -1, "many", 1.5]),
    *(
        (
            f"LIMIT_{name}",
            [(None, None), ("", None), *((text, text) for text in RATES)],
            ["5", "5 per", "5 per fortnight", "-1/minute", 5, ["5 per minute"], "x; 5/day"],
        )
        for name in (
            *("USER_CONNECTIONS", "IP_CONNECTIONS", "USER_RETURNS", "IP_RETURNS"),
            *("USER_EVENTS", "IP_EVENTS", "POLLS", "IP_REQUESTS"),
        )
    ),
    ("TRUSTED_PROXIES", [(0, 0), ("2", 2)], [-1, 11, "all", True]),
    (
        "CORS_ORIGINS",
        [
            ("", ()),
            ([], ()),
            ("https://a.example", ("https://a.example",)),
            ("https://a.example, http://b:8080", ("https://a.example", "http://b:8080")),
            (["https://a.example"], ("https://a.example",)),
        ],
        ["*", "null", "a.example", "https://a.example/", "https://*.example", ["null"], 5],
    ),
    ("MAX_EVENT_BYTES", [(1, 1), ("65536", 65536)], [0, 1 << 40, "64K", 0.5]),
    ("MAX_REPLAY_EVENTS", [(0, 0), ("7", 7)], [-1, 10_000_001, "x", INF]),
    ("NATIVE_ERRORS", [("status", "status"), ("event", "event")], ["", "Event", "none", 1, []]),
    ("MONITOR_SECONDS", [(1, 1.0), ("10", 10.0)], [0, 0.9, 11, "now", NAN]),
    ("METRICS_KEY", [("0123456789abcdef", "0123456789abcdef")], ["", "short", 5]),
    ("ALERT_WEBHOOK", [("https://h/x", "https://h/x")], ["", "h", "ftp://h", 5]),
    (
        "ALERTS",
        [({"full": None}, {"full": None}), ('{"lag":{"hold":1}}', {"lag": {"hold": 1}})],
        ["", "x", "[]", 5, ["full"]],
    ),
    (
        "ANONYMOUS",
        [(True, True), (False, False), ("0", False), ("False", False), ("YES", True), ("1", True)],
        ["", "maybe", 0, 1, 2, []],
    ),
    ("DIRECT_WRITES", [(True, True), ("no", False), ("true", True)], ["", "off?", 1, {}]),
]
GOOD = [(key, raw, value) for key, good, _ in TABLE for raw, value in good]
BAD = [(key, raw) for key, _, bad in TABLE for raw in bad]


def test_the_table_of_this_test_is_complete() -> None:
    """A new setting comes with what it takes and what it refuses."""
    assert [key for key, _, _ in TABLE] == [setting.name.upper() for setting in fields(Settings)]


@pytest.mark.parametrize(("key", "raw", "value"), GOOD)
def test_a_good_value_is_taken(key: str, raw: Any, value: Any) -> None:
    """From the application's config, with its own type or as text; nothing else changes."""
    settings = Settings.load({f"HYBRID_{key}": raw}, {})
    taken = getattr(settings, key.lower())
    assert taken == value
    assert type(taken) is type(value)
    defaults = Settings()
    for setting in fields(Settings):
        if setting.name != key.lower():
            assert getattr(settings, setting.name) == getattr(defaults, setting.name)


@pytest.mark.parametrize(("key", "raw"), BAD)
def test_a_bad_value_names_its_key(key: str, raw: Any) -> None:
    """The application does not start with a setting that means something else."""
    with pytest.raises(ConfigError, match=f"HYBRID_{key} "):
        Settings.load({f"HYBRID_{key}": raw}, {})


@pytest.mark.parametrize(
    ("key", "raw"), [(key, raw) for key, raw in BAD if isinstance(raw, str) and raw]
)
def test_a_bad_value_of_the_environment_names_its_key(key: str, raw: str) -> None:
    """The same for environment variables."""
    with pytest.raises(ConfigError, match=f"HYBRID_{key} "):
        Settings.load({}, {f"HYBRID_{key}": raw})


EMPTY = [key for key, good, _ in TABLE if "" not in [raw for raw, _ in good]]


@pytest.mark.parametrize("key", EMPTY)
@pytest.mark.parametrize("raw", ["", "\n"])
def test_an_empty_variable_is_none(key: str, raw: str) -> None:
    """A compose file with `HYBRID_PUBLISH_KEY=` sets it to nothing."""
    assert Settings.load({}, {f"HYBRID_{key}": raw}) == Settings()


def test_white_space_around_a_value_is_not_part_of_it() -> None:
    """A secret that is mounted from a file ends in a newline, and nobody's header could have it."""
    environ = {
        "HYBRID_PUBLISH_KEY": "0123456789abcdef\n",
        "HYBRID_METRICS_KEY": " 0123456789abcdef\r\n",
        "HYBRID_ALERT_WEBHOOK": "https://h/x\n",
        "HYBRID_URL": "redis://:secret@h/0\n",
        "HYBRID_TRUSTED_PROXIES": "1\n",
    }
    settings = Settings.load({}, environ)
    assert settings.publish_key == settings.metrics_key == "0123456789abcdef"
    assert settings.alert_webhook == "https://h/x"
    assert settings.url == "redis://:secret@h/0"
    assert settings.trusted_proxies == 1
    assert Settings.load(environ, {}) == settings
    assert url_from({"REDIS_URL": "redis://h/1\n"}) == "redis://h/1"
    upstash = {
        "UPSTASH_REDIS_REST_URL": "https://u.example\n",
        "UPSTASH_REDIS_REST_TOKEN": "token\n",
        "UPSTASH_REDIS_PORT": "",
    }
    assert url_from(upstash) == "rediss://default:token@u.example:6379"


def test_a_config_error_is_of_the_family() -> None:
    """`except HybridError` catches it, `except ValueError` too."""
    assert issubclass(ConfigError, HybridError)
    assert issubclass(ConfigError, ValueError)


def test_the_defaults_are_those_of_the_contract() -> None:
    """What the documentation promises to whoever sets nothing."""
    settings = Settings.load({}, {})
    assert settings == Settings()
    assert {setting.name: getattr(settings, setting.name) for setting in fields(Settings)} == {
        "url": "memory://",
        "namespace": "hybrid",
        "outbox_events": 1000,
        "outbox_bytes": 64 * 1024 * 1024,
        "probe_seconds": 7,
        "publish_key": None,
        "frugal": False,
        "url_prefix": "/api/realtime",
        "history_events": 10000,
        "history_seconds": 3600,
        "history_bytes": 64 * 1024 * 1024,
        "heartbeat_seconds": 15,
        "max_age_seconds": 3600,
        "stall_seconds": 30,
        "max_connections": 10000,
        "max_connections_per_user": 20,
        "max_connections_per_ip": 100,
        "limit_user_connections": "5 per minute",
        "limit_ip_connections": "10 per minute",
        "limit_user_returns": "60 per minute",
        "limit_ip_returns": "600 per minute",
        "limit_user_events": "100 per minute",
        "limit_ip_events": "200 per minute",
        "limit_polls": "300 per minute",
        "limit_ip_requests": "30000 per minute",
        "trusted_proxies": 0,
        "cors_origins": (),
        "max_event_bytes": 65536,
        "max_replay_events": 10000,
        "native_errors": "status",
        "monitor_seconds": 5,
        "metrics_key": None,
        "alert_webhook": None,
        "alerts": None,
        "anonymous": True,
        "direct_writes": True,
    }


def test_the_environment_is_used_and_the_application_wins() -> None:
    """An operator sets what the application leaves open."""
    environ = {"HYBRID_HISTORY_EVENTS": "5", "HYBRID_STALL_SECONDS": "7", "OTHER": "x"}
    settings = Settings.load({"HYBRID_STALL_SECONDS": 9}, environ)
    assert settings.history_events == 5
    assert settings.stall_seconds == 9


def test_a_value_of_the_application_hides_a_bad_one_of_the_environment() -> None:
    """What is not used is not judged."""
    assert Settings.load({"HYBRID_STALL_SECONDS": 9}, {"HYBRID_STALL_SECONDS": "x"})


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("HYBRID_HISTORY_EVENT", "HYBRID_HISTORY_EVENTS"),
        ("HYBRID_MAX_CONECTIONS", "HYBRID_MAX_CONNECTIONS"),
        ("HYBRID_HEARTBEAT", "HYBRID_HEARTBEAT_SECONDS"),
        ("HYBRID_PREFIX", "HYBRID_URL_PREFIX"),
    ],
)
def test_an_unknown_key_warns_with_the_nearest(key: str, near: str) -> None:
    """A typing error in a setting is not silence."""
    with pytest.warns(UserWarning, match=rf"{key}; did you mean {near}\?"):
        settings = Settings.load({key: "x"}, {})
    assert settings == Settings()


def test_an_unknown_key_with_no_neighbour_warns_too() -> None:
    """No hint is better than a wrong one."""
    with pytest.warns(UserWarning, match=r"no setting HYBRID_ZZZZZZZZZZZZZZZ$"):
        Settings.load({"HYBRID_ZZZZZZZZZZZZZZZ": 1}, {})


def test_other_extensions_keys_and_the_environment_are_nobodys_business() -> None:
    """Only the application's own HYBRID_ keys are looked at: others may have more."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Settings.load({"SECRET_KEY": "x", "HYBRIDS": 1}, {"HYBRID_UNKNOWN": "x"})


def test_an_application_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`init_app` refuses a setting that cannot be used, the environment's as well."""
    app = Flask(__name__)
    app.config["HYBRID_MAX_CONNECTIONS"] = "lots"
    with pytest.raises(ConfigError, match="HYBRID_MAX_CONNECTIONS"):
        Hybrid(app)
    assert "hybrid" not in app.extensions
    monkeypatch.setenv("HYBRID_MAX_CONNECTIONS", "7")
    del app.config["HYBRID_MAX_CONNECTIONS"]
    Hybrid(app)
    assert app.extensions["hybrid"].settings.max_connections == 7


def test_a_log_that_does_not_exist_is_refused_at_once() -> None:
    """A wrong HYBRID_URL stops the start, not the first request."""
    app = Flask(__name__)
    app.config["HYBRID_URL"] = "nonsense://somewhere"
    with pytest.raises(ConfigError, match="HYBRID_URL"):
        Hybrid(app)


def test_a_password_in_a_url_is_not_told() -> None:
    """Errors end in logs and on screens."""
    app = Flask(__name__)
    app.config["HYBRID_URL"] = "nonsense://user:hunter2@somewhere"
    with pytest.raises(ConfigError, match="HYBRID_URL") as caught:
        Hybrid(app)
    assert "hunter2" not in str(caught.value)


def test_upstash_is_paid_by_the_command() -> None:
    """So that its variables alone bring a quiet process; who sets the URL decides."""
    upstash = {"UPSTASH_REDIS_REST_URL": "https://x.upstash.io", "UPSTASH_REDIS_REST_TOKEN": "t"}
    settings = Settings.load({}, upstash)
    assert settings.url == "rediss://default:t@x.upstash.io:6379"
    assert settings.frugal
    assert not Settings.load({"HYBRID_FRUGAL": False}, upstash).frugal
    assert not Settings.load({"HYBRID_URL": "redis://h"}, upstash).frugal
    assert not Settings.load({}, upstash | {"REDIS_URL": "redis://h"}).frugal
    assert not Settings.load({}, {}).frugal
