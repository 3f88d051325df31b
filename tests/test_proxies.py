"""The client in Chromium behind real proxies from Debian, on loopback: every event once, in order.

The numbers are those of the requirements that each test shows.
"""

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from conftest import required
from servers import DEADLINE, PREFIX, Server, free_port, gunicorn

pytestmark = [pytest.mark.browser, pytest.mark.server]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The package as it is served, with a heartbeat each second."""
    log = tmp_path_factory.mktemp("gunicorn") / "log"
    with gunicorn(log, heartbeat_seconds=1) as server:
        yield server


def until_open(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    import socket

    end = time.monotonic() + DEADLINE
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)  # nothing listens yet: there is nobody to wait for


@contextlib.contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        until_open(port, process, log)
        yield
    finally:
        process.terminate()
        process.wait(DEADLINE)


@contextlib.contextmanager
def nginx(
    folder: Path, upstream: int, listen: str = "", location: str = "", more: str = ""
) -> Iterator[int]:
    """nginx as Debian ships it, but for what a test says; yields its port."""
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; {user} worker_processes 1;\n"
        "events { worker_connections 200; }\n"
        f"http {{ access_log off; gzip on; gzip_types *; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port} {listen}; {more}\n"
        f"location / {{ proxy_pass http://127.0.0.1:{upstream}; {location} }} }} }}\n"
    )
    program = required("nginx", "nginx-light")
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with running(command, port, folder / "log"):
        yield port


SCRIPT = """async (prefix) => {
    const { connect } = await import(`${prefix}/client/hybrid.js`);
    Object.assign(window, { heard: [], late: [], methods: [], errors: [], started: Date.now() });
    window.rt = connect(prefix);
    rt.on("*", (event) => { heard.push(event.data); late.push(Date.now() - event.at); });
    rt.on("gap", () => heard.push("gap"));
    rt.on("error", (error) => errors.push(error.message));
    rt.on("state", (state) => methods.push([state.activeMethod, Date.now() - started]));
}"""


class Client:
    """A page of the proxy's origin with the client in it."""

    def __init__(self, browser: Browser, origin: str) -> None:
        self.context = browser.new_context(ignore_https_errors=True)
        self.page: Page = self.context.new_page()
        # Any document of this origin will do.
        self.page.goto(f"{origin}{PREFIX}/client/package.json")
        self.page.evaluate(SCRIPT, PREFIX)

    def until(self, condition: str) -> None:
        self.page.wait_for_function(f"() => {condition}", timeout=DEADLINE * 1000)

    def get(self, expression: str) -> Any:
        return self.page.evaluate(f"() => {expression}")

    def hears(self, server: Server, count: int, pause: float = 0.02) -> None:
        """Emit so many, and see that they come, once and in order."""
        before = len(self.get("heard"))
        for number in range(count):
            server.emit(data=before + number)
            time.sleep(pause)  # one by one, as a proxy that collects would hold them back
        self.until(f"heard.length >= {before + count}")
        assert self.get("heard") == list(range(before + count)), self.get("errors")


@contextlib.contextmanager
def client(browser: Browser, origin: str) -> Iterator[Client]:
    found = Client(browser, origin)
    try:
        yield found
    finally:
        found.context.close()


def test_r97_nginx_as_it_comes(chromium: Browser, server: Server, tmp_path: Path) -> None:
    """Buffering on, gzip on, HTTP/1.0 to its upstream: the stream's own header is enough."""
    with (
        nginx(tmp_path, server.port) as port,
        client(chromium, f"http://127.0.0.1:{port}") as page,
    ):
        page.until('rt.state.activeMethod === "sse"')
        page.hears(server, 30)
        late = sorted(page.get("late"))
        print(f"behind nginx: median {late[15]} ms, longest {late[-1]} ms after the emit")
        assert page.get("errors") == []
        assert page.get("rt.state.activeMethod") == "sse"


def test_r97_nginx_with_http2_and_tls(chromium: Browser, server: Server, tmp_path: Path) -> None:
    """HTTP/2 in front, HTTP/1.1 behind, a certificate of its own."""
    subprocess.run(
        [
            *(required("openssl", "openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes"),
            *("-subj", "/CN=localhost", "-days", "2"),
            *("-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )
    more = f"ssl_certificate {tmp_path}/cert.pem; ssl_certificate_key {tmp_path}/key.pem;"
    location = "proxy_http_version 1.1; proxy_set_header Connection '';"
    with (
        nginx(tmp_path, server.port, "ssl http2", location, more) as port,
        client(chromium, f"https://127.0.0.1:{port}") as page,
    ):
        page.until('rt.state.activeMethod === "sse"')
        page.hears(server, 30)
        protocol = page.get(
            "performance.getEntriesByType('resource').map((each) => each.nextHopProtocol)"
        )
        assert "h2" in protocol
        assert page.get("errors") == []


def test_r99_a_proxy_that_buffers_all_the_same(
    chromium: Browser, server: Server, tmp_path: Path
) -> None:
    """It ignores what the stream asks for: within 8 s the client polls, and nothing is lost."""
    location = "proxy_ignore_headers X-Accel-Buffering; proxy_buffering on;"
    with (
        nginx(tmp_path, server.port, location=location) as port,
        client(chromium, f"http://127.0.0.1:{port}") as page,
    ):
        page.until('rt.state.activeMethod === "polling"')
        took = page.get('methods.find(([method]) => method === "polling")[1]')
        print(f"on polls after {took} ms")
        assert took <= 8_000
        page.hears(server, 20)
        print(f"first polled event {page.get('late[0]')} ms after its emit")
        assert page.get("rt.state.activeMethod") == "polling"


def test_r98_haproxy_with_a_short_patience(
    chromium: Browser, server: Server, tmp_path: Path
) -> None:
    """Scaled down: a proxy that ends what is silent for 3 s, heartbeats each second (instead of
    20 s and 15 s), a channel without events for 10 s (instead of 10 min): no disconnect."""
    port = free_port()
    (tmp_path / "haproxy.cfg").write_text(
        "defaults\n mode http\n timeout connect 2s\n timeout client 3s\n timeout server 3s\n"
        f"frontend front\n bind 127.0.0.1:{port}\n default_backend back\n"
        f"backend back\n server one 127.0.0.1:{server.port}\n"
    )
    program = shutil.which("haproxy") or required("/usr/sbin/haproxy", "haproxy")
    command = [program, "-db", "-f", str(tmp_path / "haproxy.cfg")]
    with (
        running(command, port, tmp_path / "log"),
        client(chromium, f"http://127.0.0.1:{port}") as page,
    ):
        page.until('rt.state.activeMethod === "sse"')
        page.hears(server, 10)
        page.page.wait_for_timeout(10_000)  # the silence is what is tested
        page.hears(server, 10)
        assert page.get("errors") == []
        methods = json.dumps(page.get("methods"))
        assert page.get("rt.state.isConnected"), methods
