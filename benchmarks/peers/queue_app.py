"""A queue per client and a generator that waits on it: what most tutorials build with Flask."""

from flask import Flask, Response, request
from gevent.queue import Queue

app = Flask(__name__)
queues: "set[Queue[str]]" = set()


@app.get("/stream")
def stream() -> Response:
    queue: Queue[str] = Queue()
    queues.add(queue)

    def frames():
        try:
            yield ": hello\n\n"
            while True:
                yield queue.get()
        finally:
            queues.discard(queue)

    return Response(frames(), content_type="text/event-stream")


@app.post("/emit")
def emit() -> str:
    for _ in range(int(request.args["n"])):
        frame = 'event: tick\ndata: {"mark":"~","pad":"' + "x" * 185 + '"}\n\n'
        for queue in list(queues):
            queue.put(frame)
    return ""


@app.get("/json")
def bare() -> dict[str, int]:
    """A bare view that returns JSON, for comparison with an empty poll."""
    return {"answer": 42}
