"""The application that the benchmarks measure: the real package, its limits on but out of the way.

The tilde is in no other part of a frame: counting it counts events, however a read cuts them.
"""

import itertools
import os
import threading
import time

from flask import Flask, request

from hybrid import Hybrid, Identity

# Counted as everywhere, but all come from one address here.
for name in ("CONNECTIONS", "CONNECTIONS_PER_USER", "CONNECTIONS_PER_IP"):
    os.environ.setdefault(f"HYBRID_MAX_{name}", "100000")
for name in (
    *("USER_CONNECTIONS", "IP_CONNECTIONS", "USER_RETURNS", "IP_RETURNS"),
    *("POLLS", "IP_REQUESTS"),
):
    os.environ.setdefault(f"HYBRID_LIMIT_{name}", "1000000 per minute")

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
    """Emit `n` events with `pad` bytes of padding, to everyone or to `user`."""
    pad = "x" * int(request.args.get("pad", 130))
    user = request.args.get("user")
    users = None if user is None else [user]
    for _ in range(int(request.args["n"])):
        stamp = {"t": time.monotonic_ns()} if "stamped" in request.args else {}
        realtime.emit("tick", stamp | {"mark": "~", "pad": pad}, users=users)
    return ""


numbers = itertools.count()


@app.post("/numbered")
def numbered() -> str:
    """Emit `n` events with a number each, one after the other, for who looks after order."""
    for _ in range(int(request.args["n"])):
        realtime.emit("tick", next(numbers))
    return ""


@app.post("/emit_in_process")
def emit_in_process() -> dict[str, float]:
    """How fast `n` events to one user leave `emit`, nothing else running."""
    count, user = int(request.args["n"]), request.args["user"]
    began = time.perf_counter()
    for _ in range(count):
        realtime.emit("tick", {"mark": "~"}, users=[user])
    return {"per_second": count / (time.perf_counter() - began)}


@app.post("/emit_together")
def emit_together() -> dict[str, float]:
    """How fast `tasks` greenlets emit for `seconds`, each one event after the other."""
    end = time.monotonic() + float(request.args["seconds"])
    counts = []

    def work() -> None:
        count = 0
        while time.monotonic() < end:
            realtime.emit("tick", {"mark": "~", "pad": "x" * 130})
            count += 1
        counts.append(count)

    began = time.monotonic()
    tasks = [threading.Thread(target=work) for _ in range(int(request.args["tasks"]))]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    return {"per_second": sum(counts) / (time.monotonic() - began)}


@app.get("/json")
def bare() -> dict[str, object]:
    """A bare view with JSON of an empty poll's size, for comparison."""
    return {"events": [], "cursor": "x" * 40, "more": False, "gap": None, "wait": 5000, "bus": "ok"}
