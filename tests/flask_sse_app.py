"""An application as flask-sse's own documentation has it, but for the import."""

from flask import Flask, abort, request
from flask.typing import ResponseReturnValue

from hybrid.compat.flask_sse import sse

PAGE = """<!doctype html><title>SSE</title><ul></ul><script>
  var said = document.querySelector("ul");
  function say(what) { said.innerHTML += "<li>" + what + "</li>"; }
  var source = new EventSource("/stream?channel=users.social");
  source.addEventListener("greeting", function (event) {
    say("greeting " + JSON.parse(event.data).message);
  });
  source.onmessage = function (event) { say("message " + event.data); };
  source.onopen = function () { say("open"); };
</script>"""

app = Flask(__name__)


@sse.before_request
def check_access() -> None:
    if request.args.get("channel") == "analytics" and not request.args.get("admin"):
        abort(403)


app.register_blueprint(sse, url_prefix="/stream")


@app.get("/")
def index() -> str:
    return PAGE


@app.post("/hello")
def hello() -> ResponseReturnValue:
    wish = request.get_json()
    sse.publish(**wish)
    return "", 204
