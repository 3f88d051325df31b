"""Faults of the process: what is said when it does not run, and how it ends."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from conftest import required
from servers import DEADLINE, PREFIX, ROOT, Server, free_port, gunicorn

pytestmark = pytest.mark.server


def test_a_process_that_did_not_run_says_so_and_blames_no_hook(tmp_path: Path) -> None:
    """Stopped for a while, as a blocked event loop is: a line, an alert at once, no stream ends."""
    log = tmp_path / "log"
    with gunicorn(log, "--timeout", "60", app="process_app:app", heartbeat_seconds=2) as server:
        streams = [server.stream(f"user=u{number}") for number in range(3)]
        for stream in streams:
            stream.hello()
        (worker,) = psutil.Process(server.process.pid).children()
        # While a look at who is connected is under way, of which each takes longer than this.
        server.until(lambda: server.call("GET", "/looking")[1]["looking"] > 0, "nobody is asked")
        worker.send_signal(signal.SIGSTOP)
        time.sleep(6)  # what is tested: longer than a look may take, and than what is an alert
        worker.send_signal(signal.SIGCONT)
        server.until(
            lambda: "alert blocked raised: " in log.read_text(), "nobody is told of the standstill"
        )
        rounds = server.call("GET", "/looking")[1]["rounds"]
        server.until(
            lambda: server.call("GET", "/looking")[1]["rounds"] > rounds + 1, "nobody is asked"
        )
        alerts = server.monitor()["alerts"]
        assert "blocked" in [alert["rule"] for alert in alerts]
        server.emit("tick")
        for stream in streams:
            stream.take(1)
            assert {block.type for block in stream.blocks} == {"hybrid.hello", "tick"}
        status, _ = server.call("GET", f"{PREFIX}/health/ready")
        assert status == 200
    text = log.read_text()
    assert "this process did not run for " in text
    assert "could not be asked again" not in text, "the hook was in time"


def test_a_line_of_the_log_says_when_and_which_process(tmp_path: Path) -> None:
    """Under the shipped gunicorn.conf.py, and two workers that say the same can be told apart."""
    log = tmp_path / "log"
    line = re.compile(
        r"^\[[0-9-]+ [0-9:]+ [+-][0-9]{4}\] \[([0-9]+)\] \[(ERROR|WARNING)\] hybrid: this server"
        r" has several processes and HYBRID_URL is memory://",
        re.MULTILINE,
    )
    with gunicorn(log, "-c", str(ROOT / "gunicorn.conf.py"), "-w", "2") as server:
        workers = {str(worker.pid) for worker in psutil.Process(server.process.pid).children()}

        def told() -> set[str]:
            server.call("GET", f"{PREFIX}/polling?ticket=abc")
            return {pid for pid, _level in line.findall(log.read_text())}

        server.until(lambda: told() == workers, f"not all of {workers}")
    assert "ticket=abc" not in log.read_text()
    assert len(line.findall(log.read_text())) == 2, "each once"
    assert '"GET ' not in log.read_text(), "the access log is as off as without it"


@pytest.mark.parametrize("more", [(), ("--preload",)])
def test_a_worker_with_threads_says_goodbye_without_a_hook(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    """Its requests have threads, in which no handler of SIGTERM can be set."""
    log = tmp_path / "log"
    grace = ("--threads", "8", "--graceful-timeout", "120")
    with gunicorn(log, *grace, *more, worker="gthread", max_connections=4) as server:
        streams = [server.stream() for _ in range(3)]
        for stream in streams:
            stream.hello()
        server.process.send_signal(signal.SIGTERM)
        for stream in streams:
            stream.take(1, "hybrid.bye")
            stream.rest()
        assert server.process.wait(DEADLINE) == 0, "it waits for the whole graceful_timeout"
    assert "SIGTERM is not seen here" not in log.read_text()


def test_the_first_process_of_a_container_ends(tmp_path: Path) -> None:
    """No signal ends process 1 that has no handler of its own: after the goodbyes it has to go."""
    port = free_port()
    log = tmp_path / "log"
    mine = ("--user", "--map-root-user") if os.geteuid() else ()
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(required("unshare", "util-linux"), *mine, "--pid", "--fork", "--kill-child"),
                *(sys.executable, "-m", "gevent.monkey", "first_app.py", str(port)),
            ],
            cwd=ROOT / "tests",
            env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
            stdout=output,
            stderr=output,
            text=True,
        )
    try:
        server = Server(process, port, log)
        server.until_up()
        (first,) = psutil.Process(process.pid).children()
        with server.stream() as stream:
            stream.hello()
            first.send_signal(signal.SIGTERM)
            stream.take(1, "hybrid.bye")
        assert process.wait(DEADLINE) == 128 + signal.SIGTERM, log.read_text()
    finally:
        process.kill()
        process.wait(DEADLINE)
