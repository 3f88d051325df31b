"""React as it is, under StrictMode, in a real browser against a real server."""

import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page

from engines import Engine, soon
from servers import DEADLINE, ROOT, Server, gunicorn

pytestmark = [pytest.mark.browser, pytest.mark.server]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not (ROOT / "tests/js/node_modules").exists():
        assert not os.environ.get("CI"), "npm ci has not run; under CI nothing is skipped"
        pytest.skip("React is not here (npm ci --prefix tests/js)")
    folder = tmp_path_factory.mktemp("react")
    build = """import("./tests/js/build.mjs")
        .then((build) => build.react("development")).then(console.log)"""
    made = subprocess.run(["node", "-e", build], cwd=ROOT, check=True, capture_output=True)
    (folder / "react.js").write_bytes(made.stdout)
    os.environ["REACT"] = str(folder / "react.js")
    with gunicorn(folder / "log", app="react_app:app", heartbeat_seconds=0.2) as server:
        yield server


class Stage:
    """A page with React in it; `run` takes the body of an async function."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.open(f"http://127.0.0.1:{server.port}/page")

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("warning", "error"):
            self.complaints.append(message.text)

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.until("window.stage")

    def run(self, code: str) -> Any:
        return self.page.evaluate(f"async () => {{{code}}}")

    def until(self, condition: str) -> None:
        self.page.wait_for_function(f"() => {condition}", timeout=DEADLINE * 1000)


@pytest.fixture
def stage(chromium: Browser, server: Server) -> Iterator[Stage]:
    context = chromium.new_context()
    stage = Stage(context.new_page(), server)
    yield stage
    context.close()
    assert stage.complaints == [], "neither React nor the browser has anything to say"
    server.until_open(0)


def test_42_strict_mode_with_three_hooks_opens_one_stream(engine: Engine, server: Server) -> None:
    """The last unmount closes it, a quick remount finds it open; in all three engines."""
    engine.fresh()
    tab = engine.tab()

    def until(condition: str) -> None:
        said = "return {...window.stage, root: null}"
        assert soon(tab, condition), (condition, tab.run(said))

    tab.open(f"http://127.0.0.1:{server.port}/page")
    until("window.stage")
    tab.run("stage.mount(3)")
    until("stage.live?.isConnected")
    assert tab.run("return stage.live.activeMethod") == "sse"
    server.until_open(1)
    assert tab.run("return stage.streams") == 1
    # In the middle of work that takes longer than frames do.
    busy = "for (const end = performance.now() + 200; performance.now() < end; );"
    tab.run(f"stage.unmount(); stage.mount(3); {busy}")
    until("stage.users === 3")  # React draws and runs effects later than it returns
    server.emit("tick", data=1)
    until("stage.events.length === 3")
    assert tab.run("return stage.streams") == 1
    tab.run("stage.unmount()")
    server.until_open(0)
    tab.run("stage.mount(1)")
    until("stage.live.isConnected && stage.streams === 2")
    server.until_open(1)
    tab.run("stage.unmount()")
    server.until_open(0)
    tab.close()


def test_43_events_are_rendered_once_a_frame_and_heard_each(stage: Stage, server: Server) -> None:
    """A burst is one picture; nobody who listens misses a part of it."""
    stage.run("stage.mount(1, { strict: false })")
    stage.until("stage.live?.isConnected")
    before = stage.run("return [stage.renders, performance.now()]")
    for first in range(0, 1000, 100):
        server.emit("tick", data=first, count=100)
    stage.until("stage.events.length === 1000 && stage.live.lastEvent?.data === 900")
    after = stage.run("return [stage.renders, performance.now()]")
    renders, ms = (now - then for now, then in zip(after, before, strict=True))
    print(f"{renders} renders in {ms:.0f} ms for 1000 events")
    assert renders <= ms / 16 + 1  # the browser's own frames are fewer when it is busy
    assert stage.run("return stage.events") == [n - n % 100 for n in range(1000)]
    stage.run("stage.unmount()")


def test_45_48_a_reload_shows_what_was_kept_and_then_what_is(stage: Stage, server: Server) -> None:
    """Kept live meanwhile, under StrictMode, and without a request for each of its two mounts."""
    server.call("DELETE", "/data")
    for number in (1, 2):
        server.call("POST", f"/data/{number}")
    stage.run("stage.mount(0, { data: true })")
    stage.until("document.querySelector('#numbers')?.textContent === '1 2'")
    server.call("POST", "/data/3")
    stage.until("document.querySelector('#numbers').textContent === '1 2 3'")
    stage.open(stage.page.url + "#hold")
    stage.page.reload()
    stage.until("window.stage")
    stage.run("stage.mount(0, { data: true })")
    stage.until("document.querySelector('#numbers')?.textContent === '1 2 3'")
    first, *_ = stage.run("return stage.shown")
    assert first == {"data": [1, 2, 3], "isStale": True, "isLoading": False, "error": None}
    server.call("POST", "/data/4")
    stage.run("stage.release()")
    stage.until("document.querySelector('#numbers').textContent === '1 2 3 4'")
    stage.until("!stage.shown.at(-1).isStale")
    stage.run("stage.unmount()")


def test_44_a_page_from_a_server_is_hydrated_before_what_was_kept_is_shown(
    stage: Stage, server: Server
) -> None:
    """The first rendering is the server's, which knows of nothing kept; React would complain."""
    server.call("POST", "/data/7")
    stage.run("stage.mount(0, { data: true })")
    stage.until("document.querySelector('#numbers')?.textContent.endsWith('7')")
    stage.open(stage.page.url + "#hold")
    stage.page.reload()
    stage.until("window.stage")
    stage.run("stage.mount(0, { data: true, hydrate: true })")
    stage.until("document.querySelector('#numbers').textContent.endsWith('7')")
    first, *_ = stage.run("return stage.shown")
    assert first["isLoading"]
    assert "data" not in first or first["data"] is None
    stage.run("stage.unmount()")


def test_two_tabs_of_one_person_keep_their_data_by_one_stream(stage: Stage, server: Server) -> None:
    """What the client shares between tabs is enough for the dashboard."""
    other = Stage(stage.page.context.new_page(), server)
    for tab in (stage, other):
        tab.run("stage.mount(0, { data: true, share: true })")
        tab.until("document.querySelector('#numbers') && !stage.shown.at(-1).isStale")
    server.call("POST", "/data/99")
    for tab in (stage, other):
        tab.until("document.querySelector('#numbers').textContent.endsWith('99')")
    assert stage.run("return stage.streams") + other.run("return stage.streams") == 1
    for tab in (other, stage):
        tab.run("stage.unmount()")
    other.page.close()
    assert other.complaints == []


def test_the_last_event_is_drawn_soon(stage: Stage, server: Server) -> None:
    """Once a frame means the next one, not some time."""
    stage.run("stage.mount(1)")
    stage.until("stage.live?.isConnected")
    began = time.perf_counter()
    server.emit("tick", data="now")
    stage.until("document.querySelector('#root').textContent === 'now'")
    print(f"drawn {time.perf_counter() - began:.3f} s after the emit")
    stage.run("stage.unmount()")


def test_the_demo_has_the_react_that_is_tested() -> None:
    """What is vendored and what npm installs for the tests are one version."""
    vendored = (ROOT / "static/vendor/react.js").read_text()[:100]
    lock = (ROOT / "tests/js/package.json").read_text()
    version = vendored.split("React DOM ")[1].split(",")[0]
    assert f'"react": "{version}"' in lock
