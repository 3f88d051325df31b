"""Real proxies on a loopback port: nginx as it is shipped or as it should not be, haproxy."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import DEADLINE, ROOT, free_port

SHIPPED = ROOT / "deploy/nginx.conf"


def require(tool: str, package: str) -> str:
    """Where a program is; skips without it, never under CI."""
    found = shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        assert not os.environ.get("CI"), f"no {tool}; under CI nothing is skipped"
        pytest.skip(f"no {tool} here (on Debian: apt-get install {package})")
    return found


def certificate(folder: Path) -> None:
    """A certificate for localhost and its key, in `fullchain.pem` and `privkey.pem`."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(folder / "privkey.pem"), "-out", str(folder / "fullchain.pem")),
        ],
        check=True,
        capture_output=True,
    )


def shipped(*upstreams: int, port: int, folder: Path, tls: int | None = None) -> str:
    """The shipped configuration, with the tests' ports and paths in place of its own."""
    text = SHIPPED.read_text()
    servers = [f"server 127.0.0.1:{upstream};" for upstream in upstreams]
    changes = {
        "server web1:8000 max_fails=2 fail_timeout=5s;": servers[0],
        "server web2:8000 max_fails=2 fail_timeout=5s;": "".join(servers[1:]),
        "listen 80;": f"listen 127.0.0.1:{port};",
        "include mime.types;": "include /etc/nginx/mime.types;",
        "worker_processes auto;": "worker_processes 1;",
    }
    if tls:
        changes |= {
            "#   listen 443 ssl http2;": f"listen 127.0.0.1:{tls} ssl http2;",
            "#   ssl_certificate     /etc/nginx/tls": f"ssl_certificate {folder}",
            "#   ssl_certificate_key /etc/nginx/tls": f"ssl_certificate_key {folder}",
        }
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def nginx(folder: Path, text: str, port: int) -> Iterator[None]:
    """nginx with this configuration; up when it listens, gone afterwards."""
    binary = require("nginx", "nginx-light")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
        (folder / name).mkdir(exist_ok=True)
    temporary = "\n".join(
        f"{name}_temp_path {folder / folder_name};"
        for name, folder_name in (
            *(("client_body", "body"), ("proxy", "proxy"), ("fastcgi", "fastcgi")),
            *(("uwsgi", "uwsgi"), ("scgi", "scgi")),
        )
    )
    conf = folder / "nginx.conf"
    conf.write_text(
        f"pid {folder}/pid;\ndaemon off;\nerror_log {folder}/error.log;\n"
        + text.replace("http {", f"http {{\naccess_log off;\n{temporary}\n", 1)
    )
    command = [binary, "-p", str(folder), "-c", str(conf), "-e", str(folder / "error.log")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    with _running(command, folder / "error.log", port):
        yield


@contextlib.contextmanager
def haproxy(folder: Path, text: str, port: int) -> Iterator[None]:
    """haproxy with this configuration; up when it listens, gone afterwards."""
    binary = require("haproxy", "haproxy")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "haproxy.cfg").write_text(text)
    with _running([binary, "-db", "-f", str(folder / "haproxy.cfg")], folder / "log", port):
        yield


@contextlib.contextmanager
def _running(command: list[str], log: Path, port: int) -> Iterator[None]:
    with log.open("a") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        end = time.monotonic() + DEADLINE
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(0.02)  # nothing listens yet: there is nobody to wait for
        yield
    finally:
        process.terminate()
        process.wait(DEADLINE)


BUFFERING = """
events {{ worker_connections 200; }}
http {{
    proxy_ignore_headers X-Accel-Buffering;
    {more}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            {directives}
        }}
    }}
}}
"""


@contextlib.contextmanager
def plain_nginx(folder: Path, upstream: int, directives: str = "", more: str = "") -> Iterator[int]:
    """An nginx as somebody might have it, with its port: it ignores what our answers ask for."""
    port = free_port()
    text = BUFFERING.format(port=port, upstream=upstream, directives=directives, more=more)
    with nginx(folder, text, port):
        yield port
