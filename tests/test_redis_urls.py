"""What a Redis URL may say: options, private CAs, IPv6, Sentinels over TLS; and what is refused."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from hybrid.bus.connect import OURS, TIMEOUT, connect
from hybrid.bus.diagnosis import diagnose
from hybrid.config import Settings
from hybrid.errors import ConfigError
from hybrid.monitor.snapshot import told
from redises import RedisServer, redis_server
from servers import free_port


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("option", OURS)
@pytest.mark.parametrize("start", ["redis://h:1/2", "redis+sentinel://h:1/main/2"])
def test_the_packages_own_options_win(start: str, option: str) -> None:
    """A URL that other programs use as well changes no bound: not how long, not how many."""
    client = connect(f"{start}?{option}=1", connections=7)
    options = client.connection_pool.connection_kwargs
    assert options["socket_timeout"] == options["socket_connect_timeout"] == TIMEOUT
    assert options["db"] == 2
    assert options["decode_responses"] is True
    assert client.connection_pool.max_connections >= 7


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://h:1/0?virtual_host=1", "no option 'virtual_host'"),
        ("redis://h:1/0?ssl_ca_certs=/ca.pem", "needs rediss://"),
        ("rediss://h:1/0?ssl_ca_certs=/no/such.pem", "names no file"),
        ("rediss://h:1/0?ssl_cert_reqs=maybe", "none, optional or required"),
        ("redis://h:1/zero", "is a number"),
        ("redis://h:1?db=zero", "is a number"),
        ("redis+sentinel://h:1/main/zero", "is a number"),
        ("redis://:sec#ret@h:1", "%23 for #"),
        ("redis://:sec/ret@h:1", "%2F for /"),
        ("redis://:sec?ret@h:1", "%3F for ?"),
        ("redis://::1:6379", "[address]:port for IPv6"),
        ("redis+sentinel://::1:26379/main", "[address]:port for IPv6"),
        ("redis+sentinel://h:99999/main", "host:port"),
        ("redis://h:99999", "host:port"),
        ("redis+sentinel://h:1", "names the service"),
    ],
)
def test_a_url_that_says_what_does_not_count_is_refused(url: str, why: str) -> None:
    """At the start, with the way out, and without a piece of a password."""
    with pytest.raises(ConfigError) as refused:
        connect(url)
    assert why in str(refused.value)
    assert "sec" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["valkey", "valkeys", "valkey+sentinel"])
def test_valkey_is_spelled_redis(scheme: str) -> None:
    with pytest.raises(ConfigError, match="redis:// for Valkey too"):
        Settings.load({"HYBRID_URL": f"{scheme}://h"}, {})


def test_passwords_are_percent_encoded(tmp_path: Path, stack: ExitStack) -> None:
    """Every character that would end it; also as an option."""
    server = stack.enter_context(redis_server(tmp_path / "redis"))
    password = "p@s/s#w:o?r%d"
    encoded = "p%40s%2Fs%23w%3Ao%3Fr%25d"
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "a@b", "on", f">{password}", "~*", "&*", "+@all")
        for url in (
            f"redis://a%40b:{encoded}@127.0.0.1:{server.port}/0",
            f"redis://127.0.0.1:{server.port}/0?username=a%40b&password={encoded}",
        ):
            with connect(url) as ours:
                assert ours.ping()
                ours.connection_pool.disconnect()


def test_what_is_shown_of_several_hosts_is_no_secret() -> None:
    url = "rediss+sentinel://user:secret@h:1,[::1]:2/main/3?sentinel_password=secret"
    assert told(url) == "rediss+sentinel://…@h:1,[::1]:2/main/3"


# -- real servers


def authority(folder: Path) -> tuple[str, str, str]:
    """A private CA, and a certificate that it has signed for this machine: CA, certificate, key."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for command in (
        (
            *("openssl", "req", "-x509", *key, "-days", "2", "-subj", "/CN=our own CA"),
            *("-keyout", "ca.key", "-out", "ca.pem"),
        ),
        (
            *("openssl", "req", *key, "-subj", "/CN=redis"),
            *("-keyout", "redis.key", "-out", "redis.csr"),
        ),
        (
            *("openssl", "x509", "-req", "-in", "redis.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-days", "2", "-extfile", "names", "-out", "redis.pem"),
        ),
    ):
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1")
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return str(folder / "ca.pem"), str(folder / "redis.pem"), str(folder / "redis.key")


def secure(port: int, files: tuple[str, str, str]) -> list[str]:
    ca, cert, key = files
    return [
        *("--tls-port", str(port), "--tls-cert-file", cert, "--tls-key-file", key),
        *("--tls-ca-cert-file", ca, "--tls-auth-clients", "no"),
    ]


def answers(url: str) -> Any:
    client = connect(url)
    try:
        return client.ping()
    finally:
        client.connection_pool.disconnect()


def sentinel(folder: Path, stack: ExitStack, *lines: str) -> RedisServer:
    server = RedisServer(folder / "sentinel")
    conf = folder / "sentinel" / "sentinel.conf"
    conf.write_text("\n".join(lines) + "\n")
    server.sentinel(conf)
    stack.callback(server.kill)
    return server


def test_a_private_ca_is_named_in_the_url(tmp_path: Path, stack: ExitStack) -> None:
    """Without it the server is not trusted, and the reason has the fix."""
    files, port = authority(tmp_path), free_port()
    stack.enter_context(redis_server(tmp_path / "redis", *secure(port, files)))
    assert answers(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={files[0]}")
    assert answers(f"rediss://localhost:{port}/0?ssl_cert_reqs=CERT_NONE")
    with pytest.raises(redis.ConnectionError) as refused:
        answers(f"rediss://127.0.0.1:{port}/0")
    assert "ssl_ca_certs" in diagnose(refused.value).fix


def test_sentinels_are_spoken_to_in_tls_and_trusted_by_the_same_ca(
    tmp_path: Path, stack: ExitStack
) -> None:
    """Sentinels and master over TLS alone, with a database in the options."""
    files, port, watch = authority(tmp_path), free_port(), free_port()
    ca, cert, key = files
    stack.enter_context(redis_server(tmp_path / "redis", *secure(port, files)))
    sentinel(
        tmp_path,
        stack,
        *(f"tls-port {watch}", f"tls-cert-file {cert}", f"tls-key-file {key}"),
        *(f"tls-ca-cert-file {ca}", "tls-auth-clients no", "tls-replication yes"),
        f"sentinel monitor main 127.0.0.1 {port} 1",
    )
    url = f"rediss+sentinel://127.0.0.1:{watch}/main?ssl_ca_certs={ca}&db=3"
    client = connect(url)
    client.set("where", "here")
    assert client.connection_pool.connection_kwargs["db"] == 3
    client.connection_pool.disconnect()
    with connect(f"rediss://127.0.0.1:{port}/3?ssl_ca_certs={ca}") as straight:
        assert straight.get("where") == "here"
        straight.connection_pool.disconnect()
    with pytest.raises(redis.RedisError):
        answers(f"rediss+sentinel://127.0.0.1:{watch}/main")


def test_sentinels_have_ipv6_addresses(tmp_path: Path, stack: ExitStack) -> None:
    """In brackets, alone or among others."""
    server = stack.enter_context(redis_server(tmp_path / "redis", "--bind", "127.0.0.1 ::1"))
    watch = sentinel(
        tmp_path, stack, "bind 127.0.0.1 ::1", f"sentinel monitor main ::1 {server.port} 1"
    )
    assert answers(f"redis+sentinel://[::1]:{watch.port}/main")
    assert answers(f"redis+sentinel://127.0.0.1:{free_port()},[::1]:{watch.port}/main/1")
    assert answers(f"redis://[::1]:{server.port}/0")
