"""Who is measured: how each is started, where its streams are, how it is told to emit.

Each sends about 230 bytes an event, does the same work, and has one core, its Redis with it if it
needs one. What is not installed is named as missing, and the others are measured.
"""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import IO

from benchmarks.load import Load, Round
from benchmarks.machine import HERE, ROOT, Missing, Pinned, compiled, free_port, raise_descriptors

PEERS = HERE / "peers"
PYTHON = PEERS / ".venv" / "bin" / "python"
NCHAN = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
Start = Callable[[int, set[int], Path], list[Pinned]]


@dataclass(frozen=True)
class Contestant:
    """`start(port, cores, directory)` starts it; raises `Missing`.

    `ready` is what a stream begins with; none if nothing comes before the first event. `needs`
    is what has to be there.
    """

    name: str
    start: Start
    path: str = "/stream"
    ready: str = "hello"
    health: str = "/health"
    websocket: bool = False
    pipelined: bool = False
    """Whether each event of a burst is a request of its own, all sent at once."""
    targeted: bool = False
    """Whether a target names it: then it is measured in every repetition, else in the first two."""
    most: int = 8000
    """Streams that it is tried with: more would take minutes."""

    @contextlib.contextmanager
    def running(self, on: set[int], directory: Path) -> Iterator["Running"]:
        port = free_port()
        programs = self.start(port, on, directory)
        try:
            _await(port, self.health, programs)
            yield Running(self, port, programs)
        finally:
            for program in programs:
                program.end()


@dataclass(frozen=True)
class Running:
    contestant: Contestant
    port: int
    programs: list[Pinned]

    def cpu_seconds(self) -> float:
        return sum(program.cpu_seconds() for program in self.programs)

    def memory(self) -> int:
        return sum(program.memory() for program in self.programs)

    def descriptors(self) -> int:
        return sum(program.descriptors() for program in self.programs)

    def open(self, load: Load, count: int) -> float:
        """Streams until there are `count`; the seconds it took."""
        it = self.contestant
        if it.websocket:
            return load.open_websockets(it.path, count)
        if not it.ready:
            # Nothing says when such a stream is open, so it is asked until it is.
            took = load.open(it.path, count)
            for _ in range(30):
                if self.emit(load, 1).seen >= count:
                    break
            return took
        return load.open(it.path, count, ready=it.ready)

    def emit(self, load: Load, burst: int, quiet: float = 3.0) -> Round:
        """One round: a burst to all streams."""
        expected = burst * load.open_now
        if self.contestant.pipelined:
            return load.round("/emit", expected, repeat=burst, quiet=quiet)
        return load.round(f"/emit?n={burst}", expected, quiet=quiet)


def _await(port: int, path: str, programs: list[Pinned]) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            connection.getresponse().read()
            connection.close()
            return
        except OSError:
            for program in programs:
                if program.process.poll() is not None:
                    raise RuntimeError(f"{program.process.args!r} ended") from None
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _peers_python() -> Path:
    if not PYTHON.exists():
        raise Missing("benchmarks/peers/.venv (make bench makes it)")
    return PYTHON


def _log(directory: Path) -> IO[str]:
    return (directory / "log").open("a")


def gunicorn(
    python: Path,
    app: str,
    port: int,
    on: set[int],
    directory: Path,
    *,
    workers: int = 1,
    **env: str,
) -> Pinned:
    """gunicorn with gevent workers, as one would deploy it."""
    return Pinned(
        [
            *(python, "-m", "gunicorn", "-k", "gevent", "-w", str(workers)),
            *("-b", f"127.0.0.1:{port}", "-c", "python:benchmarks.server_conf", app),
        ],
        on,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{PEERS}", **env},
        stderr=_log(directory),
    )


def redis_server(on: set[int], directory: Path) -> tuple[Pinned, str]:
    """A Redis in memory, and its URL."""
    program = shutil.which("redis-server")
    if program is None:
        raise Missing("redis-server")
    port = free_port()
    server = Pinned(
        [
            program,
            "--port",
            str(port),
            "--save",
            "",
            "--maxclients",
            str(raise_descriptors() - 100),
        ],
        on,
        cwd=directory,
        stdout=_log(directory),
    )
    return server, f"redis://127.0.0.1:{port}/0"


def hybrid(port: int, on: set[int], directory: Path) -> list[Pinned]:
    return [gunicorn(Path(sys.executable), "benchmarks.bench_app:app", port, on, directory)]


def hybrid_on_redis(workers: int) -> Start:
    def start(port: int, on: set[int], directory: Path) -> list[Pinned]:
        redis, url = redis_server(on, directory)
        app = "benchmarks.bench_app:app"
        python = Path(sys.executable)
        serving = gunicorn(python, app, port, on, directory, workers=workers, HYBRID_URL=url)
        return [serving, redis]

    return start


def queue_per_client(port: int, on: set[int], directory: Path) -> list[Pinned]:
    return [gunicorn(Path(sys.executable), "queue_app:app", port, on, directory)]


def flask_sse(port: int, on: set[int], directory: Path) -> list[Pinned]:
    python = _peers_python()
    redis, url = redis_server(on, directory)
    return [gunicorn(python, "flask_sse_app:app", port, on, directory, BENCH_REDIS_URL=url), redis]


def _uvicorn(app: str) -> Start:
    def start(port: int, on: set[int], directory: Path) -> list[Pinned]:
        program = _peers_python().with_name("uvicorn")
        if not program.exists():
            raise Missing("uvicorn in benchmarks/peers/.venv")
        arguments = ["--port", str(port), "--log-level", "critical", "--backlog", "4096"]
        return [Pinned([program, *arguments, app], on, cwd=PEERS, stderr=_log(directory))]

    return start


def socketio(port: int, on: set[int], directory: Path) -> list[Pinned]:
    program: list[str | Path] = [_peers_python(), PEERS / "socketio_app.py", str(port)]
    return [Pinned(program, on, cwd=PEERS, stderr=_log(directory), stdout=_log(directory))]


def better_sse(port: int, on: set[int], directory: Path) -> list[Pinned]:
    node = shutil.which("node")
    if node is None:
        raise Missing("node")
    if not (PEERS / "node_modules" / "better-sse").exists():
        raise Missing("benchmarks/peers/node_modules (make bench makes it)")
    return [Pinned([node, PEERS / "better_sse.mjs", str(port)], on, stderr=_log(directory))]


def nchan(port: int, on: set[int], directory: Path) -> list[Pinned]:
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None or not NCHAN.exists():
        raise Missing("Nchan (apt-get install libnginx-mod-nchan)")
    text = (PEERS / "nchan.conf.in").read_text()
    for name, value in {
        "MODULE": NCHAN,
        "DIR": directory,
        "PORT": port,
        "FILES": min(raise_descriptors(), 60_000),
    }.items():
        text = text.replace(f"@{name}@", str(value))
    conf = directory / "nginx.conf"
    conf.write_text(text)
    return [Pinned([nginx, "-c", conf, "-p", directory], on, stderr=_log(directory))]


def floor(port: int, on: set[int], directory: Path) -> list[Pinned]:
    return [Pinned([compiled(PEERS / "floor.c"), str(port), "240"], on)]


SSE = "/api/realtime/sse?user=u%d"
HYBRID = Contestant(
    "flask-hybrid",
    hybrid,
    SSE,
    "hybrid.hello",
    "/api/realtime/health/live",
    targeted=True,
    most=20_000,
)
NCHAN_NAME, BETTER_NAME, FLOOR_NAME = "Nchan", "better-sse", "C loop over send()"
CONTESTANTS = [
    HYBRID,
    Contestant(FLOOR_NAME, floor, targeted=True, most=20_000),
    Contestant(NCHAN_NAME, nchan, ready="200", pipelined=True, targeted=True, most=20_000),
    Contestant(BETTER_NAME, better_sse, ready="200", targeted=True),
    Contestant("queue per client (Flask)", queue_per_client, health="/json"),
    Contestant("sse-starlette", _uvicorn("starlette_app:app"), health="/none"),
    Contestant("django-eventstream", _uvicorn("django_app:app"), ready="stream-open", most=1000),
    Contestant(
        "Flask-SocketIO (WebSocket)",
        socketio,
        "/socket.io/?EIO=4&transport=websocket",
        websocket=True,
    ),
    Contestant("flask-sse (Redis)", flask_sse, ready="", most=1000),
]
