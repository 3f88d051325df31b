"""flask-sse as its documentation has it: every stream subscribes to Redis by itself."""

import os

from flask import Flask, request
from flask_sse import sse

app = Flask(__name__)
app.config["REDIS_URL"] = os.environ["BENCH_REDIS_URL"]
app.register_blueprint(sse, url_prefix="/stream")


@app.post("/emit")
def emit() -> str:
    for _ in range(int(request.args["n"])):
        sse.publish({"mark": "~", "pad": "x" * 185}, type="tick")
    return ""


@app.get("/health")
def health() -> str:
    return ""
