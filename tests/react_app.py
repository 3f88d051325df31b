"""The tests' application with a page in React, whose parts tests mount and look into."""

import os

from flask import Response, jsonify, render_template_string, send_file
from flask.typing import ResponseReturnValue

from server_app import app, realtime
from servers import ROOT

PAGE = """<!doctype html>
<title>React</title>
<link rel="icon" href="data:,">
{{ hybrid_importmap({"react": "/react.js", "react-dom/client": "/react.js"}) }}
<script type="module" src="/stage.js"></script>
<div id="root"></div>
"""

data: list[int] = []


@app.get("/page")
def page() -> str:
    return render_template_string(PAGE)


@app.get("/stage.js")
def stage() -> Response:
    return send_file(ROOT / "tests/js/stage.js", mimetype="text/javascript")


@app.get("/react.js")
def react() -> Response:
    """The development build: it alone mounts everything twice under StrictMode."""
    return send_file(os.environ["REACT"], mimetype="text/javascript")


@app.get("/data")
@realtime.snapshot
def numbers() -> Response:
    return jsonify(data)


@app.delete("/data")
def forget() -> ResponseReturnValue:
    """For a test that says what all of it is."""
    data.clear()
    return "", 204


@app.post("/data/<int:number>")
def add(number: int) -> ResponseReturnValue:
    data.append(number)
    realtime.emit("added", number)
    return "", 204
