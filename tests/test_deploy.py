"""What deploy/ ships: started for real where the tools are at hand, else checked by linters."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import compose_spec
import httpx
import pytest
import yaml

from hybrid.eventsource import Parser
from proxies import SHIPPED, certificate, nginx, require, shipped
from redises import redis_server
from servers import DEADLINE, PREFIX, ROOT, RawStream, Server, free_port, gunicorn

DEPLOY = ROOT / "deploy"


def gunicorn_setting(name: str) -> int:
    found = re.search(rf"^{name} = ([0-9_]+)$", (ROOT / "gunicorn.conf.py").read_text(), re.M)
    assert found
    return int(found[1])


GRACE = gunicorn_setting("graceful_timeout")


# -- nginx


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """What compose.yaml starts, without Docker: two servers on one Redis."""
    folder = tmp_path_factory.mktemp("deploy")
    with (
        redis_server(folder / "redis") as redis,
        gunicorn(folder / "1", redis_url=redis.url, heartbeat_seconds=1) as first,
        gunicorn(folder / "2", redis_url=redis.url, heartbeat_seconds=1) as second,
    ):
        yield [first, second]


@pytest.mark.server
def test_nginx_passes_live_events_from_two_servers(
    two_workers: list[Server], tmp_path: Path
) -> None:
    """HTTP/1.1 without a wait; any server answers any request with any cursor."""
    port = free_port()
    text = shipped(*(server.port for server in two_workers), port=port, folder=tmp_path)
    with nginx(tmp_path / "nginx", text, port):
        streams = [RawStream(port) for _ in range(6)]
        try:
            for stream in streams:
                stream.hello()
                assert "content-encoding" not in stream.headers
            held = [server.internals()["held"] for server in two_workers]
            assert sorted(held) == [3, 3]
            two_workers[0].emit(data=1)
            for stream in streams:
                stream.take(1)
            cursor = streams[0].parser.last_event_id
            two_workers[1].emit(data=2)
            for _ in range(4):
                polled = httpx.get(f"http://127.0.0.1:{port}{PREFIX}/polling?since={cursor}").json()
                assert [event["data"] for event in polled["events"]] == [2]
        finally:
            for stream in streams:
                stream.close()


@pytest.mark.server
def test_nginx_speaks_http2_and_streams_do_not_block_each_other(
    two_workers: list[Server], tmp_path: Path
) -> None:
    """Ten streams and a poll in one connection of a browser: why HTTP/2 is at the proxy."""
    certificate(tmp_path)
    port, tls = free_port(), free_port()
    text = shipped(*(s.port for s in two_workers), port=port, folder=tmp_path, tls=tls)
    site = f"https://127.0.0.1:{tls}{PREFIX}"
    with (
        nginx(tmp_path / "nginx", text, tls),
        httpx.Client(http1=False, http2=True, verify=False, timeout=DEADLINE) as client,
    ):
        answers = []
        for _ in range(10):
            request = client.build_request("GET", f"{site}/sse")
            answer = client.send(request, stream=True)
            assert (answer.http_version, answer.status_code) == ("HTTP/2", 200)
            answers.append(answer)
        assert client.get(f"{site}/polling").json()["gap"] is None
        two_workers[0].emit(data="all")
        for answer in answers:
            parser = Parser()
            for piece in answer.iter_raw():
                if any(message.text == '"all"' for message in parser.feed(piece)):
                    break
            answer.close()


def test_nginx_waits_longer_than_two_heartbeats() -> None:
    """The figures of different files agree."""
    found = re.search(r"proxy_read_timeout (\d+)s", SHIPPED.read_text())
    assert found
    assert int(found[1]) > 2 * 25, "HYBRID_HEARTBEAT_SECONDS may be 25"


# -- systemd


def test_the_systemd_unit_is_valid(tmp_path: Path) -> None:
    """systemd itself reads it; what it starts exists here as there."""
    analyze = require("systemd-analyze", "systemd")
    text = (DEPLOY / "flask-hybrid.service").read_text()
    unit = tmp_path / "flask-hybrid.service"
    assert text.count("/srv/flask-hybrid/.venv/bin/gunicorn") == 1
    unit.write_text(
        text.replace("/srv/flask-hybrid/.venv/bin/gunicorn", sys.executable).replace(
            "/srv/flask-hybrid", str(tmp_path)
        )
    )
    done = subprocess.run(
        [analyze, "verify", str(unit)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if "flask-hybrid" in line]
    assert not complaints
    assert done.returncode == 0, done.stderr
    stop = re.search(r"TimeoutStopSec=(\d+)", text)
    assert stop
    assert int(stop[1]) > GRACE


# -- Procfile


@pytest.mark.server
def test_the_procfiles_lines_run(tmp_path: Path) -> None:
    """By a shell, with the PORT and REDIS_URL of a platform; SIGTERM ends it."""
    lines = dict(line.split(": ", 1) for line in (DEPLOY / "Procfile").read_text().splitlines())
    bin = Path(sys.executable).parent
    port = free_port()
    with redis_server(tmp_path / "redis", "--appendonly", "yes") as redis:
        environ = os.environ | {
            "PATH": f"{bin}:{os.environ['PATH']}",
            "PORT": str(port),
            "REDIS_URL": redis.url,
            "WEB_CONCURRENCY": "2",
            "FLASK_DATABASE": str(tmp_path / "db"),
            "SECRET_KEY": "not to be guessed at all",
        }
        released = subprocess.run(
            lines["release"],
            shell=True,
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert released.returncode == 0, released.stdout + released.stderr
        assert "2 on redis://" in released.stdout
        log = tmp_path / "log"
        with log.open("w") as output:
            # exec: what a platform signals is gunicorn and no shell in front of it
            variable, *command = shlex.split(lines["web"])
            process = subprocess.Popen(
                ["sh", "-c", f"{variable} exec {shlex.join(command)}"],
                cwd=ROOT,
                env=environ,
                stdout=output,
                stderr=output,
                text=True,
            )
        try:
            server = Server(process, port, log)
            server.until_up()
            assert server.call("GET", f"{PREFIX}/health/ready")[0] == 200
            assert "0.0.0.0" in log.read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE) == 0


# -- Docker and Kubernetes


def test_the_dockerfile_is_sound() -> None:
    """hadolint finds nothing; what is copied exists, and everything of the demo is copied."""
    hadolint = str(Path(sys.executable).with_name("hadolint"))
    done = subprocess.run(
        [hadolint, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [shlex.split(line)[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    sources = {source for line in copied for source in line}
    assert all((ROOT / source).exists() for source in sources)
    assert {"hybrid", "static", "templates", "app.py", "wsgi.py", "gunicorn.conf.py"} <= sources
    assert json.loads(text.splitlines()[-1].removeprefix("CMD ")) == ["gunicorn", "wsgi:app"]
    user = re.search(r"^USER (\d+)$", text, re.M)
    assert user
    assert f"runAsUser: {user[1]}" in (DEPLOY / "k8s.yaml").read_text()
    assert f"{PREFIX}/health/live" in text


def test_compose_has_what_it_says() -> None:
    """Valid by the Compose specification: two web, Redis that keeps the log, nginx in front."""
    text = (DEPLOY / "compose.yaml").read_text()
    compose_spec.PyCompose.from_yaml(text).validate()
    services = yaml.safe_load(text)["services"]
    assert set(services) == {"web1", "web2", "redis", "nginx"}
    assert {"--appendonly", "noeviction"} <= set(services["redis"]["command"])
    assert int(services["web1"]["stop_grace_period"].rstrip("s")) > GRACE
    upstreams = set(re.findall(r"server (\w+):8000", SHIPPED.read_text()))
    assert upstreams == set(services["nginx"]["depends_on"])
    assert (DEPLOY / services["web1"]["build"]["context"] / "deploy/Dockerfile").exists()


def test_the_kubernetes_manifests_are_valid() -> None:
    """By the API's own schema, unknown fields refused; the times fit together."""
    manifests = DEPLOY / "k8s.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "kubernetes_validate", "--strict", str(manifests)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = {part["kind"]: part for part in yaml.safe_load_all(manifests.read_text())}
    assert set(parts) == {"Deployment", "Service", "PodDisruptionBudget", "Ingress"}
    pod = parts["Deployment"]["spec"]["template"]["spec"]
    (web,) = pod["containers"]
    pause = int(web["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + GRACE
    assert web["readinessProbe"]["httpGet"]["path"] == f"{PREFIX}/health/ready"
    assert web["livenessProbe"]["httpGet"]["path"] == f"{PREFIX}/health/live"
    assert parts["Service"]["spec"].get("sessionAffinity", "None") == "None"
