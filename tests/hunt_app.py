"""The application of the leak hunt: rights that change while everybody is connected."""

import time
from typing import Any

from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue

from hybrid import Hybrid, Identity

app = Flask(__name__)
realtime = Hybrid()
rights: dict[str, Any] = {}


@realtime.identify
def identify() -> Identity | None:
    user = request.headers.get("X-User")
    time.sleep(rights.get(user or "", {}).get("slow", 0))
    return Identity(user, rights[user]["roles"]) if user in rights else None


@realtime.authorize
def authorize(identity: Identity, topic: str) -> bool:
    return topic in rights[identity.user or ""]["topics"]


@realtime.can_monitor
def can_monitor(_identity: Identity) -> bool:
    return True


realtime.init_app(app)


@app.post("/rights")
def set_rights() -> ResponseReturnValue:
    """From now on everybody's rights are these."""
    rights.clear()
    rights.update(request.get_json())
    return jsonify(rounds=app.extensions["hybrid"].instance().recheck.rounds)


@app.get("/rounds")
def rounds() -> ResponseReturnValue:
    return jsonify(rounds=app.extensions["hybrid"].instance().recheck.rounds)


@app.post("/emit")
def emit() -> ResponseReturnValue:
    wish = request.get_json()
    return jsonify([realtime.emit(wish.pop("type"), **wish)])
