"""flask hybrid doctor against set-ups that are good, and deliberately broken ones."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from hybrid import Hybrid
from hybrid.auth import application_mark
from hybrid.doctor import Visit, lines, look, public, summary
from hybrid.doctor.finding import Finding
from hybrid.doctor.server import look_at_server
from hybrid.doctor.shared import COMMANDS, look_at_log, skewed
from proxies import certificate, nginx, plain_nginx, shipped
from redises import RedisServer, redis_server
from servers import PREFIX, ROOT, Server, free_port, gunicorn
from sites import Site
from transcript import blocks

KEY = "the key of the tests"


def by_subject(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


def verdicts(findings: dict[str, Finding]) -> dict[str, str]:
    return {subject: finding.verdict for subject, finding in findings.items()}


def app_with(**settings: Any) -> Flask:
    app = Flask("patient")
    app.config["SECRET_KEY"] = "not to be guessed at all"
    app.config.update({f"HYBRID_{name}": value for name, value in settings.items()})
    Hybrid(app)
    return app


# -- the application and gunicorn


@pytest.mark.parametrize(
    ("config", "debug", "subject", "verdict"),
    [
        ({}, False, "secret key", "ok"),
        ({"SECRET_KEY": None}, False, "secret key", "ok"),
        ({"SECRET_KEY": "dev"}, False, "secret key", "fail"),
        ({"SECRET_KEY": "dev"}, True, "secret key", "look"),
        ({}, True, "debug mode", "look"),
        ({}, True, "monitor access", "look"),
        ({}, False, "monitor access", "ok"),
    ],
)
def test_the_applications_settings(
    config: dict[str, Any], debug: bool, subject: str, verdict: str
) -> None:
    """The secret, debug mode, who reads the monitor."""
    app = app_with()
    app.config.update(config)
    app.debug = debug
    assert by_subject(look(Visit(app)))[subject].verdict == verdict


@pytest.mark.parametrize(
    ("arguments", "subject", "verdict", "fix"),
    [
        ("-k gevent", "worker class", "ok", ""),
        ("-k sync", "worker class", "fail", "gevent"),
        ("--threads 8", "worker class", "look", "gevent"),
        ("-k gevent", "monkey patching", "ok", ""),
        ("-k gevent --preload", "monkey patching", "fail", "patch_all"),
        ("-k gevent --worker-connections 1000", "worker_connections", "fail", "1250"),
        ("-k gevent --worker-connections 1001", "worker_connections", "look", "1250"),
        ("-k gevent --worker-connections 1250", "worker_connections", "ok", ""),
        ("-k gevent --timeout 5", "timeout", "look", "60"),
        ("-k gevent --graceful-timeout 1", "graceful_timeout", "look", "10"),
        ("-k gevent --max-requests 1000", "max_requests", "fail", "post_worker_init"),
        ("-k gevent -w 2", "workers", "fail", "redis://"),
        ("-k gevent --reuse-port", "reuse_port", "look", "off"),
        ("-k gevent --http-protocols h2,h1", "HTTP/2 in gunicorn", "fail", "proxy"),
        ("-k gevent", "control socket", "look", "control_socket_disable"),
        ("-k nothing-like-this -c missing.py", "gunicorn", "fail", ""),
    ],
)
def test_gunicorns_settings(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    subject: str,
    verdict: str,
    fix: str,
) -> None:
    """Read as gunicorn reads them; whatever hurts has its fix beside it."""
    monkeypatch.chdir(tmp_path)
    settings = app_with(MAX_CONNECTIONS=1000).extensions["hybrid"].settings
    finding = by_subject(look_at_server(settings, arguments))[subject]
    assert finding.verdict == verdict, finding
    assert fix in finding.fix


def test_too_few_descriptors_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all connections of a worker, which is gunicorn's bound and ours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hybrid.doctor.server.resource.getrlimit", lambda _which: (1024, 1 << 20))
    settings = app_with(MAX_CONNECTIONS=1000).extensions["hybrid"].settings
    arguments = "-k gevent --worker-connections 1250"
    finding = by_subject(look_at_server(settings, arguments))["open files"]
    assert finding.verdict == "look"
    assert "ulimit -n 1100" in finding.fix


def test_the_shipped_configuration_is_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """gunicorn.conf.py, found in the working directory as gunicorn finds it."""
    monkeypatch.chdir(ROOT)
    findings = by_subject(look_at_server(app_with().extensions["hybrid"].settings, None))
    assert set(verdicts(findings).values()) == {"ok"}, findings
    assert "worker class" in findings


def test_a_configuration_that_patches_may_preload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is run in a process of its own: this one stays as it is."""
    from gevent import monkey

    monkeypatch.chdir(tmp_path)
    conf = "from gevent import monkey\nmonkey.patch_all()\npreload_app = True\n"
    (tmp_path / "gunicorn.conf.py").write_text(f"{conf}worker_class = 'gevent'\n")
    findings = by_subject(look_at_server(app_with().extensions["hybrid"].settings, None))
    assert findings["monkey patching"].verdict == "ok"
    assert findings["preload and fork"].verdict == "ok"
    assert not monkey.is_module_patched("socket")


def test_without_gunicorn_nothing_is_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file and no arguments: said, not guessed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GUNICORN_CMD_ARGS", raising=False)
    findings = by_subject(look_at_server(app_with().extensions["hybrid"].settings, None))
    assert verdicts(findings) == {"gunicorn": "skip"}


# -- Redis


def ask_redis(url: str) -> dict[str, Finding]:
    return by_subject(look_at_log(app_with(URL=url).extensions["hybrid"].settings))


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    folder = tmp_path_factory.mktemp("redis")
    with redis_server(folder, "--appendonly", "yes") as server:
        yield server


def test_a_good_redis_is_in_order(redis: RedisServer) -> None:
    """Reachable, new enough, kept, on time; an event goes through it and nobody sees it."""
    findings = ask_redis(redis.url)
    assert set(verdicts(findings).values()) == {"ok"}, findings
    assert "stored and heard" in findings["Redis round trip"].says


def test_two_applications_in_one_namespace_are_found(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """With different SECRET_KEYs they are not one deployment: the doctor of either says so, and the
    log of the keeper, once. The same key, or none, is no stranger."""
    sites = [Site(URL=redis.url, NAMESPACE="mixed") for _ in range(3)]
    sites[1].app.secret_key = "another"
    sites[2].app.secret_key = None
    states = [site.app.extensions["hybrid"] for site in sites]

    def found(secret: str) -> bool:
        settings = states[0].settings
        return "namespace" in {
            one.subject for one in look_at_log(settings, application_mark(secret))
        }

    try:
        for state in (states[0], states[2]):
            state.monitor()._write()
        assert not found("for tests")
        states[1].monitor()._write()
        assert found("for tests")
        assert found("another")
        assert not found("")
        counts = []
        for _ in range(2):
            for state in states:
                state.monitor()._read()
            counts.append(sum("another application" in each for each in caplog.messages))
        assert counts[0] >= 1
        assert counts[0] == counts[1], "it is said once"
    finally:
        for state in states:
            state.forget()


def with_config(redis: RedisServer, name: str, value: str) -> dict[str, Finding]:
    with redis.client() as client:
        (before,) = client.config_get(name).values()
        client.config_set(name, value)
        try:
            return ask_redis(redis.url)
        finally:
            client.config_set(name, before)


def test_a_redis_that_throws_the_log_away_is_found(redis: RedisServer) -> None:
    """An allkeys policy may evict the log itself; one for volatile keys may not."""
    wrong = with_config(redis, "maxmemory-policy", "allkeys-lru")
    assert wrong["Redis maxmemory"].verdict == "fail"
    assert "noeviction" in wrong["Redis maxmemory"].fix
    right = with_config(redis, "maxmemory-policy", "volatile-lru")
    assert right["Redis maxmemory"].verdict == "ok"


def test_a_redis_that_forgets_is_found(redis: RedisServer) -> None:
    """Without an append-only file a restart is a gap for everybody."""
    assert with_config(redis, "appendonly", "no")["Redis persistence"].verdict == "look"


def test_a_redis_that_is_not_there_is_found() -> None:
    """The first question of all."""
    findings = ask_redis(f"redis://127.0.0.1:{free_port()}")
    assert verdicts(findings) == {"Redis": "fail"}


def test_a_user_of_redis_needs_rights(redis: RedisServer) -> None:
    """Exactly those that the fix names are enough; the wrong password is told apart."""
    allowed = " ".join(f"+{command}" for command in COMMANDS.split())
    users = {
        "whole": f"on >pw ~{{hybrid}}:* &{{hybrid}}:* {allowed}",
        "reader": "on >pw ~* &* +@read +ping +hello +client|setname",
        "elsewhere": f"on >pw ~other:* &* {allowed}",
        "deaf": f"on >pw ~{{hybrid}}:* resetchannels {allowed}",
    }
    found = {}
    with redis.client() as client:
        for name, rules in users.items():
            client.execute_command("ACL", "SETUSER", name, *rules.split())
            found[name] = ask_redis(f"redis://{name}:pw@127.0.0.1:{redis.port}/0")
            client.execute_command("ACL", "DELUSER", name)
    assert set(verdicts(found["whole"]).values()) == {"ok"}, found["whole"]
    for name in ("reader", "elsewhere", "deaf"):
        assert found[name]["Redis ACL"].verdict == "fail", name
        assert "ACL SETUSER" in found[name]["Redis ACL"].fix
    # a user who may store and not announce has not broken the log for the others
    assert set(verdicts(ask_redis(redis.url)).values()) == {"ok"}
    wrong = ask_redis(f"redis://whole:wrong@127.0.0.1:{redis.port}/0")
    assert "refuses the login" in wrong["Redis"].says


def test_a_replica_is_not_the_primary(redis: RedisServer, tmp_path: Path) -> None:
    """It can be read, and takes no events."""
    with redis_server(tmp_path / "replica", "--replicaof", f"127.0.0.1 {redis.port}") as replica:
        findings = ask_redis(replica.url)
    assert findings["Redis role"].verdict == "fail"


@pytest.mark.parametrize(
    ("seconds", "verdict"), [(0.5, "ok"), (-1.9, "ok"), (5, "look"), (-5, "look")]
)
def test_a_clock_that_is_off_is_found(seconds: float, verdict: str) -> None:
    """Behind and ahead."""
    assert skewed(seconds, "Redis").verdict == verdict


def test_flask_login_cannot_do_without_a_secret() -> None:
    """Its first login would fail."""
    app = app_with()
    app.secret_key = None
    app.login_manager = object()  # type: ignore[attr-defined]
    assert by_subject(look(Visit(app)))["secret key"].verdict == "fail"


def test_the_first_run_on_the_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is what the page shows: nothing to fix, and nothing that looks unfinished."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GUNICORN_CMD_ARGS", raising=False)
    page = blocks(ROOT / "docs/quickstart.md")
    (source,) = [block.text for block in page if block.file == "app.py"]
    (shown,) = [block.text for block in page if "hybrid doctor\n" in block.text]
    made: dict[str, Any] = {"__name__": "app"}
    exec(source, made)
    findings = list(look(Visit(made["app"])))
    said = [*(line for finding in findings for line in lines(finding)), summary(findings)]
    assert shown.splitlines()[1:] == said


# -- the public URL


def visit(
    port: int, *, scheme: str = "http", app: Flask | None = None, **more: Any
) -> dict[str, Finding]:
    app = app or app_with(PUBLISH_KEY=KEY)
    # What is held back is held back for ever here: it need not be waited for so long.
    public.FIRST_BYTE = public.ARRIVAL = 2.0
    found = by_subject(look(Visit(app, f"{scheme}://127.0.0.1:{port}", **more)))
    for subject in ("secret key", "debug mode", "monitor access", "gunicorn", "log"):
        found.pop(subject, None)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with gunicorn(log, heartbeat_seconds=1, publish_key=KEY, trusted_proxies=1) as server:
        yield server


@pytest.mark.server
def test_a_good_site_is_in_order(server: Server, tmp_path: Path, monkeypatch: Any) -> None:
    """Through the shipped nginx, by TLS and HTTP/2."""
    monkeypatch.chdir(tmp_path)
    certificate(tmp_path)
    port, tls = free_port(), free_port()
    text = shipped(server.port, server.port, port=port, folder=tmp_path, tls=tls)
    with nginx(tmp_path / "nginx", text, tls):
        findings = visit(tls, scheme="https", verify=False)
        wrong = visit(tls, scheme="https")
    # the tests' application lets everybody read the monitor
    assert findings.pop("monitor from outside").verdict == "fail"
    assert set(verdicts(findings).values()) == {"ok"}, findings
    assert "HTTP/2" in findings["HTTP version"].says
    assert {"first byte", "test events", "idle timeout", "compression", "one log"} <= set(findings)
    assert wrong["public URL"].verdict == "fail", "the certificate is nobody's"


@pytest.mark.server
def test_clients_that_share_one_address_are_found(tmp_path: Path) -> None:
    """Also of a worker that nobody has asked for anything before."""
    with gunicorn(tmp_path / "log", heartbeat_seconds=1, publish_key=KEY) as fresh:
        forwarded = "proxy_set_header X-Forwarded-For $remote_addr;"
        with plain_nginx(tmp_path, fresh.port, forwarded) as port:
            findings = visit(port, idle=False)
    assert findings["alert"].verdict == "look"
    assert "HYBRID_TRUSTED_PROXIES" in findings["alert"].says


@pytest.mark.server
def test_a_proxy_that_buffers_is_found(server: Server, tmp_path: Path) -> None:
    """nginx as it is by default, told to ignore what our answers ask of it."""
    with plain_nginx(tmp_path, server.port) as port:
        findings = visit(port)
    assert findings["first byte"].verdict == "fail"
    assert "proxy_buffering off" in findings["first byte"].fix
    assert findings["one log"].verdict == "ok"


@pytest.mark.server
def test_a_proxy_that_compresses_is_found(server: Server, tmp_path: Path) -> None:
    """gzip of event streams, which holds events until there are enough of them."""
    gzip = "gzip on; gzip_types text/event-stream; gzip_min_length 0; gzip_proxied any;"
    with plain_nginx(
        tmp_path, server.port, "proxy_http_version 1.1; proxy_buffering off;", gzip
    ) as port:
        findings = visit(port)
    assert findings["compression"].verdict == "fail", findings
    assert "gzip_types" in findings["compression"].fix


@pytest.mark.server
def test_a_proxy_that_is_impatient_is_found(server: Server, tmp_path: Path) -> None:
    """It cuts the stream between two heartbeats."""
    impatient = "proxy_buffering off; proxy_read_timeout 300ms;"
    with plain_nginx(tmp_path, server.port, impatient) as port:
        findings = visit(port)
    cut = findings.get("idle timeout") or findings["test events"]  # whichever came first
    assert cut.verdict == "fail"
    assert "cut" in cut.says


@pytest.mark.server
def test_workers_without_a_bus_are_found(tmp_path: Path) -> None:
    """Several logs answer at one address."""
    with gunicorn(tmp_path / "log", "-w", "3") as server:
        # One that is still loading the application answers nobody yet.
        pids: set[int] = set()

        def all_answered() -> bool:
            pids.add(server.monitor()["instance"]["pid"])
            return len(pids) == 3

        server.until(all_answered, "some worker never answers")
        findings = visit(server.port, idle=False)
    assert findings["one log"].verdict == "fail"
    assert "redis://" in findings["one log"].fix


@pytest.mark.server
def test_a_server_that_cannot_stream_is_found(tmp_path: Path) -> None:
    """A sync worker, asked from outside."""
    with gunicorn(tmp_path / "log", worker="sync") as server:
        findings = visit(server.port, idle=False)
    assert findings["stream"].verdict == "fail"
    assert "gevent" in findings["stream"].fix


@pytest.mark.server
def test_another_redis_than_the_servers_is_found(
    redis: RedisServer, server: Server, tmp_path: Path
) -> None:
    """The event is stored here and does not exist there: not the proxy's fault."""
    findings = visit(server.port, app=app_with(URL=redis.url), idle=False)
    assert findings["test events"].verdict == "fail", findings["test events"]
    assert "HYBRID_URL" in findings["test events"].fix


@pytest.mark.server
def test_nothing_there_is_found() -> None:
    """No server, and no URL."""
    assert visit(free_port())["public URL"].verdict == "fail"
    assert by_subject(look(Visit(app_with(), "ftp://x")))["public URL"].verdict == "fail"


def flask(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "way", [("-m", "flask", "--app", "wsgi", "hybrid"), ("-m", "hybrid", "--app", "wsgi")]
)
def test_the_command_ends_with_its_verdict(way: tuple[str, ...], tmp_path: Path) -> None:
    """0 when nothing is to be fixed, 1 otherwise; as lines and as JSON."""
    place = {"FLASK_DATABASE": str(tmp_path / "db"), "SECRET_KEY": "not to be guessed at all"}
    good = flask(*way, "doctor", **place)
    assert good.returncode == 0, good.stdout + good.stderr
    assert "0 to fix" in good.stdout
    bad = flask(*way, "doctor", "--gunicorn", "-k sync", "--json", **place)
    assert bad.returncode == 1
    findings = [json.loads(line) for line in bad.stdout.splitlines()]
    assert [f["fix"] for f in findings if f["subject"] == "worker class"] == ["gunicorn -k gevent"]
    listed = flask(*way, "--help", **place)
    assert listed.stdout.count("doctor") == 1, listed.stdout + listed.stderr


def test_the_commands_of_an_app_without_a_hybrid_say_so(tmp_path: Path) -> None:
    """Installed, they are there for every app."""
    (tmp_path / "bare.py").write_text("import flask\napp = flask.Flask('bare')\n")
    done = flask("-m", "hybrid", "--app", str(tmp_path / "bare.py"), "doctor")
    assert done.returncode == 1
    assert "no Hybrid" in done.stderr
    assert PREFIX not in done.stderr
