"""An application whose look at who is connected takes its time."""

import time

from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue

from hybrid import Hybrid, Identity, recheck

recheck.LEAST_PATIENCE = 4.0  # of a busy machine: far above what a look takes here
app = Flask(__name__)
app.secret_key = "for tests"
realtime = Hybrid()
looking = 0


@realtime.identify
def identify() -> Identity:
    global looking
    looking += 1
    try:
        time.sleep(0.3)
        return Identity(request.args.get("user"))
    finally:
        looking -= 1


@realtime.can_monitor
def can_monitor(_identity: Identity) -> bool:
    return True


realtime.init_app(app)


@app.post("/emit")
def emit() -> ResponseReturnValue:
    return jsonify([realtime.emit(request.get_json()["type"])])


@app.get("/looking")
def look() -> ResponseReturnValue:
    rounds = app.extensions["hybrid"].instance().recheck.rounds
    return jsonify(looking=looking, rounds=rounds)
