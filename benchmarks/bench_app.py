"""The application that the benchmarks measure: the real package with its defaults."""

import time

from flask import Flask, request

from hybrid import Hybrid, Identity

app = Flask(__name__)
realtime = Hybrid()


@realtime.identify
def identify() -> Identity:
    return Identity(request.args.get("user"))


@realtime.can_monitor
def can_monitor(_identity: Identity) -> bool:
    return True


realtime.init_app(app)


@app.post("/emit")
def emit() -> str:
    """Emit `n` events of about 230 bytes on the wire, each with its time of birth.

    The tilde is in no other part of a frame: counting it counts events, however a read cuts
    them. CLOCK_MONOTONIC is the same in all processes of a machine.
    """
    for _ in range(int(request.args["n"])):
        realtime.emit("tick", {"t": time.monotonic_ns(), "mark": "~", "pad": "x" * 130})
    return ""
