"""bench_app with a switch for all counting, which only a benchmark may have, and a watch on it."""

import time
from collections.abc import Callable
from typing import Any

from flask import jsonify, request
from flask.typing import ResponseReturnValue

from benchmarks.bench_app import app
from hybrid.monitor.monitor import Monitor
from hybrid.pump import Pump

Method = Callable[..., Any]
IDLE = 1.0
spent = 0.0
"""Seconds of CPU that counting has taken; on memory:// nothing in it lets others run."""


def watched(method: Method) -> Method:
    def run(*arguments: Any) -> Any:
        global spent
        began = time.thread_time()
        try:
            return method(*arguments)
        finally:
            spent += time.thread_time() - began

    return run


def nothing(*_: Any) -> float:
    return IDLE


COUNTED: list[tuple[type, str, Method]] = [
    (Pump, "_tally", watched(Pump._tally)),
    (Monitor, "_tick", watched(Monitor._tick)),
    (Monitor, "_beat", watched(Monitor._beat)),
]


@app.post("/counting")
def counting() -> ResponseReturnValue:
    """Count from now on (`on=1`), or do not; what it has taken, and the process' CPU in all."""
    for owner, name, method in COUNTED:
        setattr(owner, name, method if request.args["on"] == "1" else nothing)
    return jsonify(spent=spent, cpu=time.process_time())


__all__ = ["app"]
