"""The monitor's page in a real browser: what it shows, what it does, who can use it."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from servers import DEADLINE, PREFIX, ROOT, Server, gunicorn

pytestmark = [pytest.mark.browser, pytest.mark.server]
expect.set_options(timeout=DEADLINE * 1000)

EVIL = "<img src=x onerror=document.title='pwned'>"
STATIC = ROOT / "hybrid" / "static"


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core's source, of the version in tests/js/package-lock.json."""
    folder = ROOT / "tests" / "js"
    source = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        if shutil.which("npm") is None:
            assert not os.environ.get("CI"), "no npm; under CI nothing is skipped"
            pytest.skip("no npm here")
        subprocess.run(["npm", "ci", "--prefix", str(folder), "--no-audit"], check=True)
    return source.read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker, in memory."""
    log = tmp_path_factory.mktemp("server") / "log"
    with gunicorn(log, app="monitor_app:app", monitor_seconds=1) as server:
        yield server


class Monitor:
    """The page, with everything that the browser complained of."""

    def __init__(
        self, browser: Browser, server: Server, user: str = "boss", *, streams: bool = True,
        query: str = "", **options: Any
    ) -> None:  # fmt: skip
        # The server takes who one is from the query; a header would be the browser's to add.
        self.context = browser.new_context(locale="en-GB", **options)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.loads = 0
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("load", lambda _: setattr(self, "loads", self.loads + 1))

        def as_user(route: Route) -> None:
            url = route.request.url
            if not streams and "/monitor/sse" in url:
                route.abort()
                return
            route.continue_(url=f"{url}{'&' if '?' in url else '?'}user={user}")

        self.page.route(f"**{PREFIX}/monitor**", as_user)
        self.page.goto(f"http://127.0.0.1:{server.port}{PREFIX}/monitor{query}")
        self.loads = 0

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def tile(self, name: str) -> Locator:
        return self.page.locator(f"#tile-{name} .value")

    def rows(self, table: str) -> Locator:
        return self.page.locator(f"#{table} tbody tr")

    def shows(self, table: str, *texts: str) -> None:
        """There is a row with all these texts."""
        row = self.rows(table)
        for text in texts:
            row = row.filter(has_text=text)
        expect(row).to_have_count(1)


def test_every_panel_shows_what_happened(chromium: Browser, server: Server) -> None:
    """Tiles, charts, tables and the tail, against a script; hostile names are text."""
    streams = [server.stream(f"user={name}&topic=open.{name}") for name in ("ada", "ben")]
    streams.append(
        server.stream(f"user={EVIL.replace(' ', '%20')}&topic=open{EVIL}".replace(" ", "%20"))
    )
    streams.append(server.stream("user=old&since=nonsense"))
    for stream in streams:
        stream.hello()
    server.call("GET", f"{PREFIX}/polling?user=poller")
    server.emit("order.paid", data={"n": 1}, count=7)
    server.emit(EVIL, data={"html": EVIL}, users=["ada"], count=2)
    report = {"message": f"TypeError: {EVIL}", "place": "shop.js:17"}
    assert server.call("POST", f"{PREFIX}/report", report)[0] == 202
    server.emit("in.topic", topics=["open.ada", "silent"], count=6)
    for stream in streams:
        stream.take(7, "order.paid")
    with Monitor(chromium, server) as monitor:
        page = monitor.page
        expect(page.locator("#state-text")).to_have_text("All is well")
        expect(page.locator("#link")).to_have_text("live via SSE")
        expect(page.locator("#bus")).to_have_text("in memory, one process")
        expect(monitor.tile("clients")).to_have_text("5")
        expect(page.locator("#tile-clients .sub")).to_have_text("4 SSE · 1 polling")
        expect(monitor.tile("fallback")).to_have_text("20 %")
        expect(page.locator("#tile-events .sub")).to_have_text("15 emitted here so far")
        expect(monitor.tile("latency")).to_have_text(re.compile(r"^[0-9.]+ / [0-9.]+ m?s$"))
        expect(monitor.tile("resume")).to_have_text("0 %")
        expect(monitor.tile("reconnects")).to_have_text("1")
        expect(monitor.tile("errors")).to_have_text("0")
        expect(page.locator("#tile-errors .sub")).to_contain_text("1 by browsers")
        expect(page.locator("#chart-clients .legend")).to_contain_text("SSE 4")
        expect(page.locator(".plot canvas")).to_have_count(4)
        (worker,) = [row["pid"] for row in server.monitor()["instances"]]
        monitor.shows("instances", f":{worker}", "ok", "0.1.0")
        expect(monitor.rows("connections")).to_have_count(4)
        monitor.shows("connections", "ada", "SSE", "open.ada", "live", "127.0.0.1")
        monitor.shows("connections", EVIL, f"open{EVIL}")
        monitor.shows("topics", f"open{EVIL}", "1")
        monitor.shows("topics", "open.ada", "1", "0.1/s", "B/s")
        monitor.shows("topics", "silent", "0", "0.1/s")
        monitor.shows("types", "order.paid", "7")
        monitor.shows("types", EVIL, "2")
        monitor.shows("reasons", "gap", "invalid", "1")
        monitor.shows("errors", f"TypeError: {EVIL}", "shop.js:17", "browser", "error")
        expect(page.locator("#tail li")).to_have_count(15)
        evil = page.locator("#tail li").filter(has_text=EVIL).first
        expect(evil).to_contain_text("to ada")
        evil.get_by_role("button").click()
        expect(page.locator("#payload-text")).to_have_text(json.dumps({"html": EVIL}, indent=2))
        page.keyboard.press("Escape")
        for name in ("1 h", "24 h", "5 min"):
            page.get_by_role("button", name=name, exact=True).click()
            expect(page.get_by_role("button", name=name, exact=True)).to_have_attribute(
                "aria-pressed", "true"
            )
        page.locator("#chart-clients summary").click()
        expect(page.locator("#chart-clients tbody tr").first).to_contain_text("4")
        # without a load: a new client, a new event
        server.emit("late", count=3)
        with server.stream("user=new") as late:
            late.hello()
            expect(monitor.tile("clients")).to_have_text("6")
            monitor.shows("types", "late", "3")
            expect(page.locator("#tail li").first).to_contain_text("late")
        expect(monitor.tile("clients")).to_have_text("5")
        expect(page.locator("img")).to_have_count(0)
        assert "pwned" not in page.title()
        assert monitor.loads == 0
        assert monitor.complaints == []


def test_an_operator_finds_and_ends_a_connection_by_keyboard(
    chromium: Browser, server: Server
) -> None:
    """Search on the server, sort, a question, and its client is told."""
    with (
        server.stream("user=zoe") as zoe,
        server.stream("user=zoltan") as other,
        Monitor(chromium, server) as monitor,
    ):
        zoe.hello()
        other.hello()
        page = monitor.page
        page.get_by_label("Search").press_sequentially("zo")
        expect(monitor.rows("connections")).to_have_count(2)
        user = page.locator("#connections thead").get_by_role("button", name="User")
        user.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#connections th[data-sort=user]")).to_have_attribute(
            "aria-sort", "ascending"
        )
        expect(monitor.rows("connections").first).to_contain_text("zoe")
        page.keyboard.press("Enter")
        expect(monitor.rows("connections").first).to_contain_text("zoltan")
        page.get_by_role("button", name=re.compile("Disconnect zoe")).focus()
        page.keyboard.press("Enter")
        expect(page.locator("#confirm-whom")).to_contain_text("zoe")
        page.keyboard.press("Escape")
        expect(page.locator("#confirm")).to_be_hidden()
        expect(monitor.rows("connections")).to_have_count(2)
        page.get_by_role("button", name=re.compile("Disconnect zoe")).focus()
        page.keyboard.press("Enter")
        expect(page.locator("#confirm")).to_be_visible()
        page.locator("#confirm").get_by_role("button", name="Disconnect").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#trouble")).to_be_hidden()
        expect(page.locator("#status")).to_have_text("zoe was disconnected.")
        (bye,) = zoe.take(1, "hybrid.bye")
        assert json.loads(bye.data)["reason"] == "kicked"
        expect(monitor.rows("connections")).to_have_count(1)
        assert monitor.complaints == []
    assert "'boss' from 127.0.0.1: disconnect the connection" in server.log.read_text()


def test_an_operator_ends_all_that_a_search_finds(chromium: Browser, server: Server) -> None:
    """After typing how many they are; nobody else is ended."""
    with (
        server.stream("user=rob") as rob,
        server.stream("user=robin") as robin,
        server.stream("user=carol") as carol,
        Monitor(chromium, server) as monitor,
    ):
        for stream in (rob, robin, carol):
            stream.hello()
        page = monitor.page
        monitor.shows("connections", "carol")
        expect(page.locator("#end-found")).to_be_hidden()
        page.get_by_label("Search").press_sequentially("rob")
        page.get_by_role("button", name="Disconnect all 2").click()
        sure = page.locator("#confirm-found-yes")
        expect(sure).to_be_disabled()
        page.get_by_label("Type their number").press_sequentially("1")
        expect(sure).to_be_disabled()
        page.get_by_label("Type their number").fill("2")
        sure.click()
        expect(page.locator("#status")).to_have_text("2 were disconnected.")
        for stream in (rob, robin):
            (bye,) = stream.take(1, "hybrid.bye")
            assert json.loads(bye.data)["reason"] == "kicked"
        expect(monitor.rows("connections")).to_have_count(0)
        server.emit("on")
        carol.take(1, "on")
        assert monitor.complaints == []


def test_it_lives_over_polling_too(chromium: Browser, server: Server) -> None:
    """Where its stream is blocked; and it says how it lives."""
    with Monitor(chromium, server, streams=False) as monitor:
        expect(monitor.page.locator("#link")).to_have_text("live via polling")
        server.emit("over.polls", count=2)
        monitor.shows("types", "over.polls", "2")
        server.emit("over.polls", count=3)
        monitor.shows("types", "over.polls", "5")
        expect(monitor.page.locator("#tail li").first).to_contain_text("over.polls")
        assert monitor.loads == 0


def test_who_may_only_look_is_offered_nothing_to_do(chromium: Browser, server: Server) -> None:
    """No buttons that would be refused; the figures are the same. And the wall shows less."""
    with server.stream("user=ada") as ada, Monitor(chromium, server, "viewer") as monitor:
        ada.hello()
        server.emit("seen")
        expect(monitor.page.locator("#tail li").first).to_contain_text("seen")
        monitor.shows("connections", "ada", "live", ada.hello()["client"])
        expect(monitor.page.get_by_role("button", name="Disconnect")).to_have_count(0)
        expect(monitor.page.locator("#tail button")).to_have_count(0)
        assert monitor.complaints == []
    with Monitor(chromium, server, query="?wall=1") as wall:
        expect(wall.tile("clients")).to_be_visible()
        expect(wall.page.locator("#connections")).to_be_hidden()


@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)]
)
def test_axe_finds_nothing_serious(
    chromium: Browser, server: Server, axe: str, scheme: str, width: int
) -> None:
    """Light and dark, wide and on a phone, tables and definitions opened; nothing sideways."""
    options: Any = {"color_scheme": scheme, "viewport": {"width": width, "height": 900}}
    with (
        server.stream("user=ada&topic=open") as ada,
        Monitor(chromium, server, **options) as monitor,
    ):
        ada.hello()
        server.emit("something", topics=["open"])
        page = monitor.page
        monitor.shows("connections", ada.hello()["client"])
        expect(page.locator("#tail li").first).to_be_visible()
        for name in ("clients", "latency"):
            page.locator(f"#chart-{name} summary").click()
        page.locator("#tile-errors summary").click()
        expect(page.locator("#tile-errors details p")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.evaluate(axe)
        found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        serious = [
            (violation["id"], [node["html"][:200] for node in violation["nodes"][:3]])
            for violation in found["violations"]
            if violation["impact"] in ("serious", "critical")
        ]
        assert serious == []
        assert len(found["passes"]) > 20


def test_a_vendored_file_is_what_its_authors_published() -> None:
    """uPlot 1.6.32 from npm, byte by byte, with its licence."""
    sums = {
        "uplot-1.6.32.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
        "uplot-1.6.32.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
        "uplot-1.6.32.LICENSE.txt": (
            "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd"
        ),
    }
    for name, digest in sums.items():
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == digest, name


def test_who_was_refused_is_told_with_the_reason(chromium: Browser, server: Server) -> None:
    """In the table of endings: here a browser that reported too much."""
    report = {"message": "again", "place": "loop.js:1"}
    while server.call("POST", f"{PREFIX}/report", report)[0] != 429:
        pass
    with Monitor(chromium, server) as monitor:
        monitor.shows("reasons", "refused", "reports")


def test_the_page_is_small(tmp_path: Path) -> None:
    """All that it loads, compressed, is under 60 KB."""
    import gzip

    names = ["uplot-1.6.32.min.js", "uplot-1.6.32.min.css", "monitor.js", "monitor-charts.js"]
    names += ["monitor.css", "hybrid.js", "tabs.js"]
    sizes = {name: len(gzip.compress((STATIC / name).read_bytes(), 9)) for name in names}
    assert sum(sizes.values()) < 60_000, sizes
