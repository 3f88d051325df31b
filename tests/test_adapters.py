"""Under an ASGI adapter: asgiref's own, which runs all requests in one thread."""

import asyncio
import json
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import SyncToAsync

from servers import DEADLINE, PREFIX
from sites import MakeSite


async def ask(application: Any, path: str, query: str = "") -> tuple[int, Any]:
    """One GET as an ASGI server makes it: the status and the JSON."""
    sent: list[dict[str, Any]] = []
    received = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if received:
            return received.pop()
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": f"{PREFIX}{path}",
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost"), (b"accept", b"application/problem+json")],
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 5),
        "scheme": "http",
    }
    await asyncio.wait_for(application(scope, receive, send), DEADLINE)
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body)


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """asgiref's, whose one thread ends with the test."""
    from asgiref.wsgi import WsgiToAsgi

    with ThreadPoolExecutor(max_workers=1) as one:
        monkeypatch.setattr(SyncToAsync, "single_thread_executor", one)
        yield WsgiToAsgi
    # For other tests of this process nobody has imported it.
    del sys.modules["asgiref.wsgi"]


def test_no_stream_blocks_the_application_under_an_adapter(
    make_site: MakeSite, adapter: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused in spite of HYBRID_MAX_CONNECTIONS: "wsgi.multithread" is not true there."""
    site = make_site(MAX_CONNECTIONS=4)
    site.app.testing = False
    application = adapter(site.app)

    async def visit() -> None:
        for _ in range(2):
            status, problem = await ask(application, "/sse")
            assert (status, problem["title"]) == (503, "No streaming here")
            assert "one thread" in problem["detail"]
        status, first = await ask(application, "/polling")
        assert status == 200
        cursor = first["cursor"]
        status, answer = await ask(application, "/polling", f"since={cursor}&wait=25")
        assert (status, answer["events"]) == (200, []), "a long poll would block as well"
        _, health = await ask(application, "/health/ready")
        assert any("ASGI" in alert for alert in health["alerts"])

    # In a thread of its own: another test's browser may have a loop in this one.
    with caplog.at_level(logging.WARNING, "hybrid"), ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, visit()).result(DEADLINE)
    assert sum("a stream was refused" in record.message for record in caplog.records) == 1
