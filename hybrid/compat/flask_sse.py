"""flask-sse's interface: `from hybrid.compat.flask_sse import sse` in place of its own.

    app.register_blueprint(sse, url_prefix="/stream")
    sse.publish({"message": "Hello!"}, type="greeting", channel="users.social")

Pages keep their `new EventSource("/stream?channel=users.social")`, and now resume: a reconnecting
browser gets what it missed. Different from flask-sse:

- Redis is optional; without one the log is in memory and of one process.
- `id` and `retry` are accepted and not sent: the id line is the cursor that the browser resumes
  from, and the server decides when it comes back.
- `publish` returns the event's id, not a number of subscribers.
- A refused stream (full, draining) is answered so that a native EventSource comes back later.

Who may read a channel is decided as before, in `@sse.before_request`; without that, every channel
is open to everyone. Channels are topics of their own, which `Hybrid.authorize` is not asked about.
"""

import logging
import os
from typing import Any

from flask import Blueprint, Flask, Response, current_app, request
from flask.sansio.blueprints import BlueprintSetupState

from hybrid.application import AppState
from hybrid.audience import MAX_NAME, is_name
from hybrid.extension import Hybrid
from hybrid.neighbours import keep_off
from hybrid.routes import answer_problems
from hybrid.routes.answers import Problem
from hybrid.routes.reading import answer_stream

logger = logging.getLogger("hybrid")

CHANNEL = "flask-sse:"
"""In front of a channel's name: the topics of the application stay what it authorizes."""
MAX_CHANNEL = MAX_NAME - len(CHANNEL)


class ServerSentEventsBlueprint(Blueprint):
    """A blueprint with a stream at its root. Brings a `Hybrid` to an app that has none.

    An app with a `Hybrid` of its own calls that one's `init_app` before it registers this.
    """

    def __init__(self, name: str, import_name: str, **options: Any) -> None:
        super().__init__(name, import_name, **options)
        self._warned = False
        self.record(_bring_hybrid)
        answer_problems(self)

    def publish(
        self,
        data: Any,
        type: str | None = None,
        id: Any = None,
        retry: int | None = None,
        channel: str = "sse",
    ) -> str:
        """Send `data` (a string as it is, anything else as JSON) to all who read the channel.

        Needs an app context. Returns the event's id; raises as `Hybrid.emit` does.
        """
        if (id is not None or retry is not None) and not self._warned:
            self._warned = True
            logger.warning("sse.publish: id and retry are not sent, since streams resume by cursor")
        body = {"text": data} if isinstance(data, str) else {"data": data}
        state: AppState = current_app.extensions["hybrid"]
        return state.hybrid.emit(type or "message", topics=[CHANNEL + channel], **body)

    def stream(self) -> Response:
        """GET /: the stream of `?channel=`, by default `sse`."""
        topic = CHANNEL + (request.args.get("channel") or "sse")
        if not is_name(topic):
            raise Problem(400, "Bad request", f"a channel has 1 to {MAX_CHANNEL} characters")
        return answer_stream(topics=frozenset({topic}), native=True)


def _bring_hybrid(setup: BlueprintSetupState) -> None:
    app = setup.app
    assert isinstance(app, Flask)
    assert isinstance(setup.blueprint, Blueprint)
    keep_off(app, setup.blueprint)
    if "hybrid" in app.extensions:
        return
    url = app.config.get("SSE_REDIS_URL") or app.config.get("REDIS_URL")
    if url and "HYBRID_URL" not in app.config and not os.environ.get("HYBRID_URL"):
        app.config["HYBRID_URL"] = url
    Hybrid(app)


sse = ServerSentEventsBlueprint("sse", __name__)
sse.add_url_rule("", endpoint="stream", view_func=sse.stream)
