"""What the server below us can do, and what is said where it cannot."""

import logging
import sys

from flask import Response, current_app, request

from hybrid.config import Settings
from hybrid.instance import Instance
from hybrid.routes.answers import Problem, StreamResponse, app_state
from hybrid.wire import control_frame, retry_frame

logger = logging.getLogger("hybrid")

ONE_AT_A_TIME = (
    "this server handles one request at a time, and a stream would block everybody else",
    "gunicorn -k gevent",
)
FEW_THREADS = (
    "each stream would keep one of this server's few threads",
    "gunicorn -k gevent, or HYBRID_MAX_CONNECTIONS well below the threads of a worker",
)
ADAPTED = (
    "an ASGI adapter (asgiref) runs all requests of this application in one thread, and a stream"
    " would block everybody else",
    "gunicorn -k gevent, beside the ASGI server",
)
DEFAULT_MAX_CONNECTIONS = Settings().max_connections
HTTP2_INSIDE = (
    "HTTP/2 is spoken by gunicorn itself, which serves the streams of a connection one by one",
    "HTTP/2 at the proxy, HTTP/1.1 between it and gunicorn -k gevent",
)


def is_adapted() -> bool:
    """Whether asgiref's adapter calls: it says many threads, and has one.

    No server has a name there.
    """
    return "asgiref.wsgi" in sys.modules and "SERVER_SOFTWARE" not in request.environ


def can_hold() -> bool:
    """Whether a request may be held open without blocking the whole worker."""
    environ = request.environ
    if environ.get("HTTP_VERSION") == "2":
        return False  # gunicorn serves the streams of an HTTP/2 connection one after the other
    monkey = sys.modules.get("gevent.monkey")
    if (monkey is not None and monkey.is_module_patched("socket")) or current_app.testing:
        return True
    if not environ.get("wsgi.multithread") or is_adapted():
        return False
    # Werkzeug makes a thread for each request. Others have a few, and nobody says how many: once
    # streams hold all of them, not even a health check is answered.
    own_bound = app_state().settings.max_connections != DEFAULT_MAX_CONNECTIONS
    return own_bound or str(environ.get("SERVER_SOFTWARE", "")).startswith("Werkzeug")


def require_streaming() -> None:
    if can_hold() or request.method == "HEAD":
        return
    http2 = request.environ.get("HTTP_VERSION") == "2"
    threads = bool(request.environ.get("wsgi.multithread"))
    why, fix = FEW_THREADS if threads else ONE_AT_A_TIME
    if http2 or is_adapted():
        why, fix = HTTP2_INSIDE if http2 else ADAPTED
    instance = app_state().instance()
    instance.refused["no_streaming"] += 1
    if not instance.no_streams:
        instance.no_streams = f"a stream was refused, since {why}; clients poll. Fix: {fix}"
        logger.warning("%s", instance.no_streams)
    raise Problem(503, "No streaming here", f"{why}; poll instead", retry_after=600)


def notice_processes(instance: Instance) -> None:
    """Say it loudly when several processes serve without a bus between them."""
    if instance.settings.url != "memory://" or not instance.alone:
        return
    if request.environ.get("wsgi.multiprocess"):
        instance.alone = False
        logger.error(
            "this server has several processes and HYBRID_URL is memory://: each has a log of its"
            " own, and an event reaches only the clients of the process that emitted it. Fix: set"
            " HYBRID_URL=redis://…, or run one worker"
        )


def only_takes_events() -> bool:
    """Whether the caller is a native EventSource and is to be spared an error status.

    It gives up for good on anything but 200. Its Accept header is text/event-stream alone,
    while a client that handles statuses names application/problem+json as well.
    """
    return (
        app_state().settings.native_errors == "event"
        and "application/problem+json" not in request.headers.get("Accept", "")
    )


def refuse_by_event(problem: Problem) -> Response:
    assert problem.code is not None
    app_state().instance().problems[problem.code] += 1
    after = int(problem.headers["Retry-After"]) * 1000
    bye = control_frame("bye", {"reason": "full", "after": after})
    return StreamResponse((retry_frame(after) + bye,))
