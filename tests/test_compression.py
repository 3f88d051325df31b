"""An application that compresses what it answers, event streams too."""

from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from servers import DEADLINE, PREFIX, Server, gunicorn

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log: Path = tmp_path_factory.mktemp("compressed") / "log"
    with gunicorn(log, app="compressed_app:app") as server:
        yield server


@pytest.mark.parametrize("algorithm", ["gzip", "br", "zstd", "deflate"])
def test_r100_events_come_one_by_one_whatever_compresses_answers(
    server: Server, algorithm: str
) -> None:
    """Flask-Compress, told to compress event streams: each event is there before the next is
    emitted, as it was sent. Other answers of the application are still compressed."""
    headers = {"Accept-Encoding": algorithm, "Accept": "text/event-stream"}
    connection = HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
    connection.request("GET", "/large", headers={"Accept-Encoding": algorithm})
    large = connection.getresponse()
    assert large.headers["Content-Encoding"] == algorithm
    large.read()
    connection.request("GET", f"{PREFIX}/sse", headers=headers)
    stream = connection.getresponse()
    assert stream.status == 200
    assert "Content-Encoding" not in stream.headers
    while stream.readline() != b"event: hybrid.hello\n":
        pass
    for number in range(5):
        server.emit("tick", data=number)
        while not (line := stream.readline()).startswith(b"data: %d" % number):
            assert line, "the stream has ended"
    connection.close()
