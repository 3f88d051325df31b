"""sse-starlette on uvicorn: a queue per client, as in its examples."""

import asyncio
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

queues: "set[asyncio.Queue[str]]" = set()


async def frames() -> AsyncIterator[ServerSentEvent]:
    queue: asyncio.Queue[str] = asyncio.Queue()
    queues.add(queue)
    try:
        yield ServerSentEvent(comment="hello")
        while True:
            yield ServerSentEvent(event="tick", data=await queue.get())
    finally:
        queues.discard(queue)


async def stream(_request: Request) -> Response:
    return EventSourceResponse(frames())


async def emit(request: Request) -> Response:
    for _ in range(int(request.query_params["n"])):
        data = '{"mark":"~","pad":"' + "x" * 185 + '"}'
        for queue in list(queues):
            queue.put_nowait(data)
    return Response()


app = Starlette(
    routes=[Route("/stream", stream), Route("/emit", emit, methods=["POST"])],
)
