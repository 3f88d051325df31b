"""The tests' application with two rights for its monitor, and with what goes wrong on command."""

from flask import request
from flask.typing import ResponseReturnValue
from gevent.monkey import get_original

from hybrid import Identity
from server_app import app, realtime


@realtime.can_monitor
def can_monitor(identity: Identity) -> bool:
    return identity.user != "guest"


@realtime.can_operate
def can_operate(identity: Identity) -> bool:
    return identity.user == "boss"


@app.post("/block")
def block() -> ResponseReturnValue:
    """Block this worker's event loop for so many seconds."""
    get_original("time", "sleep")(float(request.args["seconds"]))
    return ""
