"""Signals: what happens, told to whoever wants to know, app by app, from where it may be told."""

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app

from hybrid import Hybrid, signals
from hybrid.testing import SSEClient, faults
from servers import DEADLINE, gunicorn, tracebacks

ALL = {
    name: getattr(signals, name)
    for name in ("connected", "disconnected", "emitted", "gap", "alert")
}
Heard = queue.Queue[tuple[str, Flask, dict[str, Any]]]


@pytest.fixture
def app() -> Iterator[Flask]:
    app = Flask("signals")
    Hybrid(app)
    yield app
    app.extensions["hybrid"].forget()


@pytest.fixture
def heard(app: Flask) -> Iterator[Heard]:
    """All signals that the app sends, in order."""
    found: Heard = queue.Queue()

    def hear(name: str) -> Any:
        def receive(sender: Flask, **about: Any) -> None:
            assert current_app.name == sender.name, "an app context"
            found.put((name, sender, about))

        return receive

    receivers = {name: hear(name) for name in ALL}
    for name, receiver in receivers.items():
        ALL[name].connect(receiver, sender=app)
    yield found
    for name, receiver in receivers.items():
        ALL[name].disconnect(receiver, sender=app)


def test_a_streams_life_is_told(app: Flask, heard: Heard) -> None:
    """Connected, emitted, a gap, disconnected with its reason; the sender is the app."""
    other = Flask("other")
    Hybrid(other)
    with app.app_context(), faults(app) as fault, SSEClient(app.test_client(), since="x") as stream:
        stream.next("hybrid.gap")
        with SSEClient(other.test_client()) as elsewhere:
            elsewhere.next("hybrid.hello")
        app.extensions["hybrid"].hybrid.emit("tick", 1)
        fault.drop()
        stream.wait_until_ended()
        told = [heard.get(timeout=DEADLINE) for _ in range(4)]
    assert heard.empty()
    assert {sender for _, sender, _ in told} == {app}
    by_name = {name: about for name, _, about in told}
    assert set(by_name) == {"connected", "emitted", "gap", "disconnected"}
    assert by_name["emitted"]["event"].data == 1
    assert by_name["emitted"]["stored"] == "log"
    assert by_name["gap"]["reason"] == "invalid"
    assert by_name["disconnected"]["reason"] == "dropped"
    connections = {by_name[name]["connection"].id for name in ("connected", "gap", "disconnected")}
    assert len(connections) == 1
    other.extensions["hybrid"].forget()


def test_a_polls_gap_is_told(app: Flask, heard: Heard) -> None:
    """There is no stream that it belongs to."""
    app.test_client().get("/api/realtime/polling?since=elsewhere.1.x")
    name, _, about = heard.get(timeout=DEADLINE)
    assert (name, about["connection"], about["reason"]) == ("gap", None, "epoch")


def test_a_receiver_that_raises_stops_nobody(
    app: Flask, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged; the next signal is told all the same."""

    called: queue.Queue[int] = queue.Queue()

    def broken(_app: Flask, **_: Any) -> None:
        called.put(1)
        raise ZeroDivisionError

    with signals.gap.connected_to(broken, sender=app):
        for _ in range(2):
            app.test_client().get("/api/realtime/polling?since=elsewhere.1.x")
            called.get(timeout=DEADLINE)
    with app.extensions["hybrid"]._teller._busy:  # until it is through
        assert caplog.text.count("a receiver of the signal hybrid.gap raised") == 2


def test_nobody_listening_costs_no_thread(app: Flask) -> None:
    """Not one is started, and no sender of signals made."""
    before = threading.active_count()
    with SSEClient(app.test_client(), since="x") as stream:
        stream.next("hybrid.gap")
    assert app.extensions["hybrid"]._teller is None
    assert threading.active_count() - before <= 5  # the instance's own


@pytest.mark.server
def test_signals_from_the_loop_of_a_real_server_may_wait(tmp_path: Path) -> None:
    """Under gevent a receiver sleeps, as one that writes to a database does, and nobody hangs."""
    with gunicorn(tmp_path / "log", app="signals_app:app") as server:
        for _ in range(3):
            with server.stream() as stream:
                stream.hello()
        server.until(lambda: server.call("GET", "/left")[1] == ["client"] * 3, "they were not told")
    assert tracebacks(tmp_path / "log") == []
