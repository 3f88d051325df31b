"""The health checks."""

from flask import Response

from hybrid.routes.answers import (
    DRAINING_RETRY_AFTER,
    FULL_RETRY_AFTER,
    Problem,
    app_state,
    json_answer,
)
from hybrid.routes.server import notice_processes
from hybrid.wire import to_json


def live() -> Response:
    """GET /health/live: the process answers."""
    return json_answer('{"status":"ok"}')


def ready() -> Response:
    """GET /health/ready: it can take new clients."""
    instance = app_state().instance()
    hub = instance.hub
    notice_processes(instance)
    if instance.bus.deaf:
        raise Problem(503, "Deaf", instance.bus.headline, retry_after=FULL_RETRY_AFTER)
    if hub.draining:
        raise Problem(
            503, "Draining", "this instance is being stopped", retry_after=DRAINING_RETRY_AFTER
        )
    if hub.held() >= hub.max_connections:
        raise Problem(503, "Full", "no connection is free", retry_after=FULL_RETRY_AFTER)
    return json_answer(to_json({"status": "ok", "alerts": instance.alerts()}))
