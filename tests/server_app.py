"""The application that the tests serve by real servers. Who one is, the query says."""

import gc
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import greenlet
from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue

from hybrid import Hybrid, Identity

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

app = Flask(__name__)
app.secret_key = "for tests"
realtime = Hybrid()


@realtime.identify
def identify() -> Identity:
    return Identity(request.args.get("user"), request.args.getlist("role"))


@realtime.authorize
def authorize(_identity: Identity, topic: str) -> bool:
    return topic.startswith("open")


@realtime.can_monitor
def can_monitor(_identity: Identity) -> bool:
    return True


realtime.init_app(app)


@app.post("/emit")
def emit() -> ResponseReturnValue:
    """Emit what the body says, `count` times; answers the ids."""
    wish = request.get_json()
    count = wish.pop("count", 1)
    type = wish.pop("type")
    return jsonify([realtime.emit(type, **wish) for _ in range(count)])


@app.get("/internals")
def internals() -> ResponseReturnValue:
    """What must come back to its old value when all clients are gone."""
    gc.collect()
    hub = app.extensions["hybrid"].instance().hub
    return jsonify(
        greenlets=sum(
            isinstance(thing, greenlet.greenlet) and bool(thing) for thing in gc.get_objects()
        ),
        descriptors=len(os.listdir("/proc/self/fd")),
        held=hub.held(),
        live=len(hub.readers._live.known),
        wheel=len(hub.wheel),
        watched=len(hub.sockets._watched),
        early=len(hub.readers._live.early),
        keys=len(hub.readers._live.known._keys),
    )


class Censored:
    """A WSGI middleware that changes response bodies."""

    def __call__(self, environ: "WSGIEnvironment", start: "StartResponse") -> Iterator[bytes]:
        body = app(environ, start)
        try:
            for piece in body:
                yield piece.replace(b"secret", b"......")
        finally:
            if hasattr(body, "close"):
                body.close()


censored = Censored()


def measured(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
    """The application behind a middleware that sees every head, as tracing does."""

    def start_measured(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        return start(status, [*headers, ("X-Measured", "1")], *rest)

    return app(environ, start_measured)


@app.post("/disconnect")
def disconnect() -> ResponseReturnValue:
    return jsonify(told=realtime.disconnect(user=request.args["user"]))


@app.post("/ticket")
def ticket() -> ResponseReturnValue:
    return jsonify(ticket=realtime.ticket(Identity(request.args["user"])))


@app.post("/revoke")
def revoke() -> ResponseReturnValue:
    return jsonify(told=realtime.revoke(user=request.args["user"]))
