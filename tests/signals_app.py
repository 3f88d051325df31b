"""The tests' application with a receiver that takes its time."""

import time
from typing import Any

from flask import Flask, jsonify
from flask.typing import ResponseReturnValue

from hybrid.signals import disconnected
from server_app import app

left: list[str] = []


@disconnected.connect_via(app)
def note(_app: Flask, reason: str, **_: Any) -> None:
    time.sleep(0.05)
    left.append(reason)


@app.get("/left")
def who_left() -> ResponseReturnValue:
    return jsonify(left)
