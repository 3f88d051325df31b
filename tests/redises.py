"""Real Redis servers on loopback ports, and a proxy that can cut, hold and swallow."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from servers import DEADLINE, free_port

PROGRAM = os.environ.get("REDIS_SERVER", "redis-server")
"""What is started: other versions are tested by naming them."""


class RedisServer:
    """A redis-server of the test's own, in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        program: str | Path = PROGRAM,
        environ: dict[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port() if port is None else port
        self.options = options
        self.program = str(program)
        self.environ = os.environ | (environ or {})
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        """Start it and wait until it answers."""
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(self.program, "--port", str(self.port), "--bind", "127.0.0.1"),
                    *("--dir", str(self.folder), "--save", "", "--daemonize", "no"),
                    *self.options,
                    *options,
                ],
                env=self.environ,
                stdout=log,
                stderr=log,
            )
        self._until_it_answers()

    def sentinel(self, conf: Path) -> None:
        """Run it as a Sentinel with this configuration."""
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.program, str(conf), "--sentinel", "--port", str(self.port)],
                stdout=log,
                stderr=log,
            )
        self._until_it_answers()

    def _until_it_answers(self) -> None:
        assert self.process is not None
        end = time.monotonic() + DEADLINE
        while True:
            assert self.process.poll() is None, (self.folder / "redis.log").read_text()
            assert time.monotonic() < end, (self.folder / "redis.log").read_text()
            try:
                with self.client() as client:
                    client.ping()
                return
            except redis.RedisError:
                time.sleep(0.02)  # nothing listens yet, or it is loading

    def client(self) -> "redis.Redis":
        return redis.Redis(port=self.port, socket_timeout=DEADLINE, decode_responses=True)

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(DEADLINE)
            self.process = None

    def stop(self) -> None:
        """SIGSTOP: it accepts connections and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def redis_server(folder: Path, *options: str, **how: Any) -> Iterator[RedisServer]:
    """A running redis-server; skips where there is none, never under CI."""
    if shutil.which(PROGRAM) is None:
        assert not os.environ.get("CI"), "no redis-server; under CI nothing is skipped"
        pytest.skip("no redis-server here (on Debian: apt-get install redis-server)")
    server = RedisServer(folder, *options, **how)
    server.start()
    try:
        yield server
    finally:
        if server.process is not None:
            server.go_on()
        server.kill()


class Proxy:
    """A TCP proxy in front of a Redis that loses things on command."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.swallow = False
        """Whether answers get lost while the connection looks healthy."""
        self.delay = 0.0
        """Seconds by which answers come later: how far away Redis is."""
        self.refuse = False
        self.deafen = False
        """Whether subscribers hear nothing any more, while commands are answered."""
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._subscribers: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._spawn(self._accept)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def cut(self) -> None:
        """Break every connection."""
        for pair in list(self._pairs):
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def retarget(self, port: int) -> None:
        """Lead to another server from now on."""
        self._target = port
        self.cut()

    def repoint(self, port: int) -> None:
        """Lead new connections to another server, as a name does; leave the open ones alone."""
        self._target = port

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(DEADLINE)

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refuse:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            pair = (client, server)
            self._pairs.add(pair)
            self._spawn(self._pump, client, server, pair, False)
            self._spawn(self._pump, server, client, pair, True)

    def _silent(self, pair: tuple[socket.socket, socket.socket]) -> bool:
        return self.swallow or (self.deafen and pair in self._subscribers)

    def _pump(
        self,
        source: socket.socket,
        sink: socket.socket,
        pair: tuple[socket.socket, socket.socket],
        answers: bool,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not answers and b"SUBSCRIBE" in data:
                    self._subscribers.add(pair)
                if answers:
                    time.sleep(self.delay)
                if not (answers and self._silent(pair)):
                    sink.sendall(data)
        for sock in pair:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with self._lock:
            # The second of the two directions to end closes both.
            if pair in self._pairs:
                self._pairs.discard(pair)
                return
        for sock in pair:
            sock.close()
