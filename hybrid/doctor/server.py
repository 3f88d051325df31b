"""What gunicorn's settings say, read as gunicorn reads them."""

import json
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybrid.config import Settings
from hybrid.doctor.finding import Finding

HEADROOM = 1.1
SPARE_FILES = 100
"""Descriptors of a worker that are no client's: log files, Redis, the listener, databases."""

# In a process of its own: a configuration file is a program, and may patch what we use.
PROBE = """
import json, sys
from gunicorn.app.wsgiapp import WSGIApplication
config = WSGIApplication().cfg
names = ("workers", "threads", "worker_connections", "timeout", "graceful_timeout", "keepalive",
         "max_requests", "preload_app", "reuse_port", "control_socket_disable", "http_protocols")
facts = {name: getattr(config, name, None) for name in names}
facts["worker_class"] = config.settings["worker_class"].value
hook = getattr(config.post_worker_init, "__code__", None)
facts["hooked"] = hook is not None and "hybrid.drain" in hook.co_names
monkey = sys.modules.get("gevent.monkey")
facts["patched"] = bool(monkey and monkey.is_module_patched("socket"))
print("facts", json.dumps(facts, default=str))
"""


def look_at_server(settings: Settings, arguments: str | None) -> Iterator[Finding]:
    """`arguments` are those of gunicorn's command line; its file is read by itself."""
    told = arguments is not None or os.environ.get("GUNICORN_CMD_ARGS")
    if not told and not Path("gunicorn.conf.py").exists():
        yield Finding(
            "skip",
            "gunicorn",
            "no gunicorn.conf.py here; give the arguments: --gunicorn '-k gevent'",
        )
        return
    try:
        facts = read_facts(shlex.split(arguments or ""))
    except (RuntimeError, ValueError) as error:
        yield Finding("fail", "gunicorn", f"its settings cannot be read: {error}")
        return
    yield _worker_class(facts)
    yield from _patching(facts)
    yield from _capacity(facts, settings)
    yield from _times(facts, settings)
    yield from _workers(facts, settings)
    yield from _doors(facts)


def read_facts(arguments: list[str]) -> dict[str, Any]:
    """gunicorn's settings with these arguments in this directory. Raises `RuntimeError`."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments, "hybrid:none"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    for line in done.stdout.splitlines():
        if line.startswith("facts "):
            facts: dict[str, Any] = json.loads(line.removeprefix("facts "))
            return facts
    complaint = (done.stderr.strip() or "it said nothing").splitlines()[-1]
    raise RuntimeError(complaint)


def _worker_class(facts: dict[str, Any]) -> Finding:
    name = str(facts["worker_class"])
    if name == "sync" and int(facts["threads"] or 1) > 1:
        name = "gthread"  # as gunicorn does
    if "gevent" in name:
        return Finding("ok", "worker class", name)
    if name == "gthread":
        streams = int(facts["threads"] or 1)
        return Finding(
            "look",
            "worker class",
            f"gthread: each stream takes one of {streams} threads of a worker for as long as it is",
            "gunicorn -k gevent",
        )
    if "uvicorn" in name.lower() or name.lower() in ("asgi", "hypercorn"):
        return Finding(
            "fail",
            "worker class",
            f"{name}: a Flask application needs an adapter there, which has one thread or few:"
            " streams are refused and clients poll, and no goodbye is said",
            "gunicorn -k gevent, beside the ASGI server",
        )
    return Finding(
        "fail",
        "worker class",
        f"{name}: it cannot hold streams; they are refused and clients poll",
        "gunicorn -k gevent",
    )


def _patching(facts: dict[str, Any]) -> Iterator[Finding]:
    gevent = "gevent" in str(facts["worker_class"])
    if facts["preload_app"] and gevent and not facts["patched"]:
        yield Finding(
            "fail",
            "monkey patching",
            "preload_app imports the application before gevent patches: its locks block everybody",
            "leave preload_app off, or begin gunicorn.conf.py with"
            " `from gevent import monkey; monkey.patch_all()`",
        )
    elif gevent:
        when = "in gunicorn.conf.py" if facts["patched"] else "by the worker, before the app"
        yield Finding("ok", "monkey patching", when)
    elif facts["patched"]:
        yield Finding(
            "look",
            "monkey patching",
            "patched, but no gevent worker runs the event loop",
            "gunicorn -k gevent",
        )
    if facts["preload_app"]:
        yield Finding("ok", "preload and fork", "nothing is started before the fork")


def _capacity(facts: dict[str, Any], settings: Settings) -> Iterator[Finding]:
    most, room = settings.max_connections, int(facts["worker_connections"])
    if "gevent" in str(facts["worker_class"]):
        if room <= most:
            yield Finding(
                "fail",
                "worker_connections",
                f"{room}, and HYBRID_MAX_CONNECTIONS is {most}: when streams fill a worker, new"
                " clients and health checks hang instead of being refused",
                f"worker_connections = {most + most // 4 or 1}, or a lower HYBRID_MAX_CONNECTIONS",
            )
        elif room < most * HEADROOM:
            yield Finding(
                "look",
                "worker_connections",
                f"{room} leaves little beside {most} streams for pages, polls and health checks",
                f"worker_connections = {most + most // 4}",
            )
        else:
            yield Finding("ok", "worker_connections", f"{room} for {most} streams and the rest")
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = min(most, room) + SPARE_FILES
    if files != resource.RLIM_INFINITY and files < needed:
        yield Finding(
            "look",
            "open files",
            f"{files} here, and {needed} are needed for all connections of a worker",
            f"ulimit -n {needed}, or LimitNOFILE={needed} in systemd",
        )
    else:
        yield Finding("ok", "open files", f"{files}")


def _times(facts: dict[str, Any], settings: Settings) -> Iterator[Finding]:
    timeout, graceful = int(facts["timeout"]), int(facts["graceful_timeout"])
    if 0 < timeout < 30:
        yield Finding(
            "look",
            "timeout",
            f"{timeout} s: a worker that is busy for so long is killed with all its streams",
            "timeout = 60",
        )
    else:
        yield Finding("ok", "timeout", f"{timeout} s")
    if graceful < 5:
        yield Finding(
            "look",
            "graceful_timeout",
            f"{graceful} s: goodbyes are said in about 2, ordinary requests may need more",
            "graceful_timeout = 10",
        )
    else:
        yield Finding("ok", "graceful_timeout", f"{graceful} s")
    if int(facts["max_requests"]) > 0:
        hooked = bool(facts["hooked"])
        yield Finding(
            "look" if hooked else "fail",
            "max_requests",
            f"{facts['max_requests']}: "
            + (
                "clients are moved each time a worker is replaced"
                if hooked
                else "a worker that reaches it accepts nobody, and waits for long polls: an outage"
            ),
            "max_requests = 0, or at least the hook post_worker_init of our gunicorn.conf.py",
        )
    else:
        yield Finding("ok", "max_requests", "0")


def _workers(facts: dict[str, Any], settings: Settings) -> Iterator[Finding]:
    workers = int(facts["workers"])
    if workers > 1 and settings.url == "memory://":
        yield Finding(
            "fail",
            "workers",
            f"{workers}, each with a log of its own: an event reaches only the clients of one",
            "HYBRID_URL=redis://…, or workers = 1",
        )
    else:
        yield Finding("ok", "workers", f"{workers} on {settings.url.partition('://')[0]}://")


def _doors(facts: dict[str, Any]) -> Iterator[Finding]:
    if facts["reuse_port"]:
        yield Finding(
            "look",
            "reuse_port",
            "streams are spread unevenly, and clients of a stopping worker are refused",
            "leave reuse_port off",
        )
    protocols = facts["http_protocols"]
    if protocols and "h2" in str(protocols):
        yield Finding(
            "fail",
            "HTTP/2 in gunicorn",
            "it serves the streams of a connection one after the other: one stream blocks the rest",
            "terminate HTTP/2 at the proxy and speak HTTP/1.1 to gunicorn",
        )
    if facts["control_socket_disable"] is False:
        yield Finding(
            "look",
            "control socket",
            "open: every process of this user can shut gunicorn down",
            "control_socket_disable = True",
        )
