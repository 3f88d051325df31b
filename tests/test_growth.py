"""Every reader of untrusted text takes time linear in its length."""

import io
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from growth import LIMIT, growth
from hybrid.audience import EVERYONE, Audience
from hybrid.auth import scrub, scrub_logs
from hybrid.bus.store import decode
from hybrid.events import Cursor, Event, make_event
from hybrid.eventsource import Parser
from hybrid.log import Log
from hybrid.monitor.errors import Errors, listen
from hybrid.wire import event_frame, poll_item, to_json
from servers import DEADLINE, gunicorn

SCRUBBED = ["a", "=", "a=", "ticket", "ticket=", "ticket=a&", "%74", "%3D", "t%", "%26ticket", " "]
"""What a text that is as bad as can be may be made of."""


def quadratic(text: str) -> int:
    return sum(text.count("b", place) for place in range(0, len(text), 16))


def test_the_measure_tells_quadratic_work() -> None:
    assert growth(lambda size: "a" * size, quadratic, 20_000) > LIMIT
    assert growth(lambda size: "a" * size, list, 20_000) < LIMIT


def _bad(piece: str, size: int) -> str:
    """A text of pieces, and of signs without which most texts are not searched at all."""
    return "%= " + (piece * size)[:size]


@pytest.mark.parametrize("piece", SCRUBBED)
def test_scrubbing_a_text(piece: str) -> None:
    assert growth(lambda size: _bad(piece, size), scrub, 4_000) < LIMIT


@pytest.mark.parametrize("piece", SCRUBBED)
def test_a_log_line_with_a_traceback(piece: str) -> None:
    """Of an access log, an error log and an application's own: all have this filter."""
    scrub_logs("growth")
    logger = logging.getLogger("growth")
    logger.propagate = False
    handler = logging.StreamHandler(io.StringIO())
    logger.addHandler(handler)

    def log(text: str) -> None:
        try:
            raise ValueError(text)
        except ValueError:
            logger.exception("%s", text)

    assert growth(lambda size: _bad(piece, size), log, 4_000) < LIMIT
    logger.removeHandler(handler)


def test_a_log_line_is_scrubbed_whatever_it_is_made_of(caplog: pytest.LogCaptureFixture) -> None:
    """Arguments that do not fit are the handler's to report; the caller goes on."""
    scrub_logs("growth.odd")
    logger = logging.getLogger("growth.odd")

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    logging.raiseExceptions, before = False, logging.raiseExceptions
    try:
        logger.warning("%d", "ticket=a")
    finally:
        logging.raiseExceptions = before
    try:
        raise Mute
    except Mute:
        logger.exception("ticket=%s", "s3cret")
    assert "s3cret" not in caplog.text
    assert "ticket=…" in caplog.text


def test_an_error_that_has_no_text_is_counted_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    errors = Errors(lambda: 0)
    listen(errors)
    try:
        raise Mute
    except Mute:
        logging.getLogger("hybrid").exception("a hook raised")
    (group,) = errors.groups()
    assert group["message"].startswith("Mute: <")


def test_what_a_browser_reports() -> None:
    errors = Errors(lambda: 0)

    def report(text: str) -> None:
        errors.note("browser", "error", text[:1], text, text)

    assert growth(lambda size: "%a=" * size, report, 4_000) < LIMIT


def _cut(text: bytes, piece: int) -> list[bytes]:
    return [text[at : at + piece] for at in range(0, len(text), piece)]


@pytest.mark.parametrize(
    "make",
    [
        lambda size: _cut(b"data: " + b"a" * size, 16),  # one line that never ends
        lambda size: _cut(b"data: a\n" * size, 16),  # one block that never ends
        lambda size: _cut(b"\r" * size, 1),
        lambda size: _cut(b":\n" * size, 3),
    ],
    ids=["line", "block", "ends", "comments"],
)
def test_reading_a_stream(make: Callable[[int], list[bytes]]) -> None:
    def read(pieces: list[bytes]) -> None:
        parser = Parser()
        for piece in pieces:
            parser.feed(piece)

    assert growth(make, read, 8_000) < LIMIT


@pytest.mark.parametrize("piece", ["\r", "\n", "\r\n", "a", "\u2028", "\U0001f600", '"', "\\"])
def test_an_event_and_its_frames(piece: str) -> None:
    def frame(text: str) -> None:
        for data, chars in ((text, None), (None, text)):
            event = make_event(
                "a", data, EVERYONE, text=chars, at=0, max_bytes=2**26, encode=to_json
            )
            event_frame(event)
            poll_item(event)

    assert growth(lambda size: (piece * size)[:size], frame, 4_000) < LIMIT


@pytest.mark.parametrize("piece", ["[", "{", '"a":', "1", "a", '"', "\\u00e9", ",", "[1],"])
def test_an_event_that_another_program_stored(piece: str) -> None:
    """Whatever it says; what is no event becomes one that nobody sees."""

    def read(text: str) -> None:
        decode("id", text, 0)
        decode("id", f'{{"type":"a","data":[{text}]}}', 0)
        decode("id", f'{{"type":{to_json(text)},"users":[{to_json(text)}]}}', 0)

    assert growth(lambda size: (piece * size)[:size], read, 4_000) < LIMIT


def test_an_event_for_many() -> None:
    def address(names: list[str]) -> None:
        Audience.of(names, names, names)

    assert growth(lambda size: [f"user-{n}" for n in range(size)], address, 1_000) < LIMIT


@pytest.mark.parametrize("piece", ["0", "9", "a", ".", "a.1.", "~", " "])
def test_a_cursor(piece: str) -> None:
    log = Log("epoch", max_events=10, max_seconds=60)

    def resolve(text: str) -> None:
        Cursor.parse(text)
        log.resolve(text)

    assert growth(lambda size: (piece * size)[:size], resolve, 20_000) < LIMIT


def test_the_log_takes_and_drops_each_event_once() -> None:
    def run(ids: list[str]) -> None:
        log = Log("epoch", max_events=100, max_seconds=60)
        for id in ids:
            log.append(Event(id, "a", "1", 0, EVERYONE), 0)

    assert growth(lambda size: [f"e{n}" for n in range(size)], run, 500) < LIMIT


@pytest.mark.server
def test_long_requests_are_logged_and_the_worker_goes_on(tmp_path: Path) -> None:
    """By the access log, by gunicorn's error log, and by Flask's with the text in a traceback.

    Where a filter of these logs takes quadratic time, the loop of the worker stands still for
    longer than its timeout, and the worker is killed.
    """
    log = tmp_path / "log"
    arguments = ("--access-logfile", "-", "--timeout", "10")
    with gunicorn(log, *arguments) as server:
        with server.stream() as stream:
            stream.hello()
            text, line = "a" * 60_000, "a" * 8_000  # as long as gunicorn takes a line
            long = {"User-Agent": "%" + line, "Referer": line}
            assert server.call("GET", "/nothing?x=1", headers=long)[0] == 404
            # An argument that emit does not have, whose name is in the traceback.
            assert server.call("POST", "/emit", {"type": "tick", "%" + text: 1})[0] == 500
            with socket.create_connection(("127.0.0.1", server.port), DEADLINE) as sock:
                sock.sendall(f"GET / HTTP/1.1\r\n%{line}=\r\n\r\n".encode())
                assert sock.recv(65_536).startswith(b"HTTP/1.1 400 ")
            server.emit()
            stream.take(1)
        assert text in log.read_text()
