"""What a Redis URL says is what is done: addresses, databases, TLS with a private CA, bounds."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from conftest import required
from hybrid import ConfigError, Publisher
from hybrid.bus.connect import TIMEOUT, connect, disconnect
from hybrid.config import Settings
from hybrid.monitor.snapshot import told
from redises import RedisServer
from servers import DEADLINE

PASSWORD = "/p@ss?#%&:"
ENCODED = "%2Fp%40ss%3F%23%25%26%3A"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA of our own and a certificate of this machine that it has signed."""
    folder = tmp_path_factory.mktemp("ca")

    def openssl(*arguments: str) -> None:
        program = required("openssl", "openssl")
        subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(
        *("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2"),
        *("-subj", "/CN=A CA of our own"),
    )
    openssl("req", *key, "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=localhost")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\n")
    openssl(
        *("x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key"),
        *("-CAcreateserial", "-out", "cert.pem", "-days", "2", "-extfile", "names"),
    )
    return folder


class TlsServer(RedisServer):
    """A redis-server, or a Sentinel, that speaks TLS alone, on ::1 alone."""

    def __init__(self, folder: Path, ca: Path) -> None:
        super().__init__(folder)
        self.ca = f"{ca}/ca.pem"
        settings = {
            "port": 0,
            "tls-port": self.port,
            "bind": "::1",
            "tls-cert-file": f"{ca}/cert.pem",
            "tls-key-file": f"{ca}/key.pem",
            "tls-ca-cert-file": self.ca,
            "tls-auth-clients": "no",
            "tls-replication": "yes",
        }
        self.conf = folder / "redis.conf"
        self.conf.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))

    def run(self, *arguments: str, lines: str = "") -> None:
        """Start it with these lines of configuration more, and wait until it answers."""
        self.conf.write_text(self.conf.read_text() + lines)
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, str(self.conf), "--dir", str(self.folder), *arguments],
                stdout=log,
                stderr=log,
            )
        self._until_it_answers()

    def client(self) -> "redis.Redis":
        return redis.Redis(
            *("::1", self.port, 0, PASSWORD), ssl=True, ssl_ca_certs=self.ca, decode_responses=True
        )


@pytest.fixture
def secured(tmp_path: Path, ca: Path) -> Iterator[tuple[TlsServer, TlsServer]]:
    """A server with a password, and the Sentinel that watches it as `main`."""
    server, sentinel = (TlsServer(tmp_path / name, ca) for name in ("server", "sentinel"))
    try:
        server.run(lines=f'save ""\nuser default on ">{PASSWORD}" ~* &* +@all\n')
        sentinel.run(
            "--sentinel",
            lines=f"sentinel monitor main ::1 {server.port} 1\n"
            f'sentinel auth-pass main "{PASSWORD}"\n'
            f'user default on ">{PASSWORD}" ~* &* +@all\n',
        )
        yield server, sentinel
    finally:
        server.kill()
        sentinel.kill()


@contextlib.contextmanager
def connected(url: str) -> Iterator["redis.Redis"]:
    client = connect(Settings.load({"HYBRID_URL": url}).url)
    try:
        yield client
    finally:
        disconnect(client)


def test_tls_by_a_ca_of_ones_own(secured: tuple[TlsServer, TlsServer], ca: Path) -> None:
    """It is believed where the URL names it; and nothing is believed where that says so."""
    place = f"rediss://default:{ENCODED}@[::1]:{secured[0].port}"
    for options in (f"?ssl_ca_certs={ca}/ca.pem", "?ssl_cert_reqs=none"):
        with connected(f"{place}/3{options}") as client:
            assert client.ping()
            assert client.client_info()["db"] == 3
    with connected(place) as client, pytest.raises(redis.ConnectionError, match="CERTIFICATE"):
        client.ping()


def test_sentinels_are_asked_over_tls_as_well(
    secured: tuple[TlsServer, TlsServer], ca: Path
) -> None:
    """On an IPv6 address, with passwords of all characters, for a database of one's own."""
    server, sentinel = secured
    hosts = f"localhost:1,[::1]:{sentinel.port}"
    options = f"db=5&sentinel_username=default&sentinel_password={ENCODED}&ssl_ca_certs={ca}/ca.pem"
    with connected(f"rediss+sentinel://:{ENCODED}@{hosts}/main?{options}") as client:
        assert client.ping()
        info = client.client_info()
        assert info["db"] == 5
        assert info["laddr"] == f"[::1]:{server.port}"
    url = f"rediss+sentinel://:{ENCODED}@{hosts}/main/4?{options.replace('db=5&', '')}"
    with connected(url) as client:
        assert client.client_info()["db"] == 4


def test_a_publisher_takes_the_same_urls(secured: tuple[TlsServer, TlsServer], ca: Path) -> None:
    server, _ = secured
    place = f"rediss://:{ENCODED}@[::1]:{server.port}?ssl_ca_certs={ca}/ca.pem"
    publisher = Publisher(place, namespace="app", budget=DEADLINE)
    publisher.emit("tick")
    publisher.close()
    with connected(place) as client:
        assert client.xlen("{app}:log") == 1
    with pytest.raises(ConfigError, match="socket_timeout"):
        Publisher(f"{place}&socket_timeout=30")


@pytest.mark.parametrize("place", ["redis://h", "redis+sentinel://h/main"])
def test_nothing_in_a_url_loosens_the_bounds(place: str) -> None:
    """Nor leaves so few connections that nobody gets one."""
    with connected(place) as client:
        made = client.connection_pool.connection_kwargs
        assert made["socket_timeout"] == made["socket_connect_timeout"] == TIMEOUT
        assert client.connection_pool.max_connections > 1


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://u:{ENCODED}@[::1]:1/2?password=x", "redis://…@[::1]:1/2"),
        (f"redis+sentinel://:{ENCODED}@a:1,[::1]:2/main", "redis+sentinel://…@a:1,[::1]:2/main"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("memory://", "memory://"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert told(url) == shown


def test_a_wrong_url_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigError, match="%2F") as refused:
        Settings.load({"HYBRID_URL": f"redis://u:{PASSWORD}@h"})
    assert "p@ss" not in str(refused.value)
    with pytest.raises(ConfigError, match="redis://"):
        Settings.load({"HYBRID_URL": "valkey://h"})
    with pytest.raises(ConfigError, match=r"taken from .*REDIS_URL"):
        Settings.load({}, {"REDIS_URL": "valkey://h"})
    with pytest.raises(ConfigError, match="rediss://"):
        Settings.load({"HYBRID_URL": "valkeys://h"})
