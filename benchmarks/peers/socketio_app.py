"""Flask-SocketIO over its own transport, WebSocket, with gevent as its documentation has it."""

import os
import sys

from gevent import monkey

monkey.patch_all()

from flask import Flask, request  # noqa: E402 - after the patching
from flask_socketio import SocketIO  # noqa: E402

app = Flask(__name__)
# A ping after each 25 s would need answers from the load client, which has better things to do.
socketio = SocketIO(app, async_mode="gevent", ping_interval=3600, cors_allowed_origins="*")


@app.post("/emit")
def emit() -> str:
    for _ in range(int(request.args["n"])):
        socketio.emit("tick", {"mark": "~", "pad": "x" * 195})
    return ""


@app.get("/health")
def health() -> str:
    return ""


if __name__ == "__main__":
    os.environ.pop("WERKZEUG_RUN_MAIN", None)
    socketio.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_output=False)
