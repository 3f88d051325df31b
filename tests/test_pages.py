"""The demo's other pages in Chromium: React, htmx and a plain EventSource, under one policy."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from servers import DEADLINE, Server, free_port, gunicorn

pytestmark = [pytest.mark.browser, pytest.mark.server]
expect.set_options(timeout=DEADLINE * 1000)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo, served as in production, with reports that the tests of this file share."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLASK_DATABASE", str(folder / "reports.sqlite3"))
        patch.setenv("SECRET_KEY", "of the test")
        with gunicorn(folder / "log", app="wsgi:app", probe="/login") as server:
            yield server


class Person:
    """Somebody who is logged in, with everything that the browser complained of."""

    def __init__(self, browser: Browser, server: Server, user: str) -> None:
        self.context = browser.new_context(locale="en-GB")
        self.page: Page = self.context.new_page()
        self.base = f"http://127.0.0.1:{server.port}"
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.goto(self.base)
        self.page.get_by_test_id(f"login-{user}").click()
        expect(self.get("method")).to_have_text("SSE")

    def visit(self, path: str) -> None:
        self.page.goto(self.base + path)

    def get(self, testid: str) -> Locator:
        return self.page.get_by_test_id(testid)

    def row(self, title: str) -> Locator:
        return self.get("report-row").filter(has_text=title)

    def submit(self, title: str) -> None:
        """Submit a report, from whatever page this is."""
        status = self.page.evaluate(
            """async (title) => (await fetch("/reports", {
                method: "POST",
                headers: { "Content-Type": "application/json" },
                body: JSON.stringify({ title, amount: "12.50" }),
            })).status""",
            title,
        )
        assert status == 201


def log_in(chromium: Browser, demo: Server, user: str) -> Iterator[Person]:
    person = Person(chromium, demo, user)
    yield person
    person.context.close()
    assert person.complaints == []


@pytest.fixture
def ada(chromium: Browser, demo: Server) -> Iterator[Person]:
    """Who submits. The browser has nothing to complain of."""
    yield from log_in(chromium, demo, "ada")


@pytest.fixture
def mara(chromium: Browser, demo: Server) -> Iterator[Person]:
    """Who decides. The browser has nothing to complain of."""
    yield from log_in(chromium, demo, "mara")


def test_an_approval_in_react_is_seen_in_react_and_without(ada: Person, mara: Person) -> None:
    """Over a stream, over polls and back, each event once; a form, buttons, totals, activity."""
    mara.visit("/react")
    ada.visit("/react")
    for person in (ada, mara):
        expect(person.get("method")).to_have_text("SSE")
    form = ada.get("new-report-form")
    form.get_by_label("Title").fill("A chair")
    form.get_by_label("Amount").fill("249.90")
    form.get_by_role("button").click()
    expect(form.get_by_label("Title")).to_have_value("")
    expect(mara.row("A chair")).to_be_visible()
    waiting = int(mara.get("count-waiting").inner_text())
    mara.row("A chair").get_by_test_id("approve").click()
    expect(ada.row("A chair")).to_have_attribute("data-status", "approved")
    expect(mara.get("count-waiting")).to_have_text(str(waiting - 1))
    mara.get("block-sse").set_checked(True, force=True)
    expect(mara.get("method")).to_have_text("Polling")
    ada.submit("A lamp")
    expect(mara.row("A lamp")).to_be_visible()
    mara.get("block-sse").set_checked(False, force=True)
    expect(mara.get("method")).to_have_text("SSE")
    mara.row("A lamp").get_by_test_id("reject").click()
    expect(ada.row("A lamp")).to_have_attribute("data-status", "rejected")
    told = mara.get("activity").get_by_role("listitem").all_inner_texts()
    assert [re.sub(r"\s*\n.*via", " via", text) for text in reversed(told)] == [
        "Ada submitted “A chair” via SSE",
        "Mara approved “A chair” via SSE",
        "Ada submitted “A lamp” via polling",
        "Mara rejected “A lamp” via SSE",
    ]
    expect(mara.get("received")).to_have_text("4")


HOLD = """
const [{ type }] = performance.getEntriesByType("navigation");
const { fetch } = window;
const held = new Promise((resolve) => (window.answer = resolve));
window.fetch = async (url, init) => {
  if (type === "reload" && /reports$/.test(url)) await held;
  return fetch(url, init);
};
"""
"""In a page that is loaded again the network does not answer for the reports until it is told."""


@pytest.mark.parametrize("path", ["/", "/react"])
def test_48_a_reload_shows_the_reports_before_the_network_answers(ada: Person, path: str) -> None:
    """And what another person finds in the same tab is nothing of it."""
    ada.visit(path)
    expect(ada.row("Usability lab")).to_be_visible()
    ada.page.add_init_script(HOLD)
    ada.page.reload()
    expect(ada.row("Usability lab")).to_be_visible()
    ada.page.evaluate("answer()")
    expect(ada.page.locator(".rows")).not_to_have_attribute("data-stale", "true")
    ada.page.get_by_role("button", name="Log out").click()
    ada.page.get_by_test_id("login-ben").click()
    expect(ada.row("Train to Hamburg")).to_be_visible()
    kept = ada.page.evaluate("JSON.stringify(sessionStorage)")
    assert "Usability lab" not in kept


def test_the_tabs_of_a_person_share_one_stream(ada: Person) -> None:
    """A second tab, with or without React, opens none, and the switch is for both."""
    opened: list[str] = []
    ada.context.on("request", lambda request: opened.append(request.url))
    second = ada.context.new_page()
    second.goto(f"{ada.base}/react")
    expect(second.get_by_test_id("method")).to_have_text("SSE")
    expect(second.get_by_test_id("report-row").first).to_be_visible()
    assert f"{ada.base}/reports" in opened
    assert not any("/sse" in url for url in opened)
    second.get_by_test_id("block-sse").set_checked(True, force=True)
    for page in (ada.page, second):
        expect(page.get_by_test_id("method")).to_have_text("Polling")
        expect(page.get_by_test_id("block-sse")).to_be_checked()
    ada.get("block-sse").set_checked(False, force=True)
    for page in (ada.page, second):
        expect(page.get_by_test_id("method")).to_have_text("SSE")
        expect(page.get_by_test_id("block-sse")).not_to_be_checked()


def test_htmx_swaps_what_is_emitted_as_html(ada: Person, mara: Person) -> None:
    """Its own SSE extension, one topic, no script of ours; only what one may see."""
    ada.visit("/examples/htmx")
    mara.visit("/examples/htmx")
    ada.submit("Via <b>htmx</b>")
    mara.row("Via <b>htmx</b>").get_by_test_id("approve").click()
    expect(ada.row("Via <b>htmx</b>")).to_have_attribute("data-status", "approved")
    items = ada.get("activity").get_by_role("listitem")
    expect(items).to_have_text(
        [re.compile("Mara approved “Via <b>htmx</b>”"), re.compile("Ada submitted")]
    )
    mara.row("Train to Hamburg").get_by_test_id("reject").click()
    expect(mara.row("Train to Hamburg")).to_have_attribute("data-status", "rejected")
    expect(mara.get("activity").get_by_role("listitem")).to_have_count(3)
    expect(items).to_have_count(2)


def test_who_may_not_see_all_is_refused_the_topic(ada: Person) -> None:
    """Mara's topic is not Ada's, whatever her page asks for."""
    status = ada.page.evaluate(
        """async () => (await fetch("/api/realtime/polling?topic=html:all")).status"""
    )
    assert status == 403
    ada.complaints.clear()  # the browser's own line about the 403


def test_a_plain_eventsource_gets_everything_and_comes_back(
    chromium: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The browser reconnects with Last-Event-ID; after a restart it is told of the gap."""
    monkeypatch.setenv("FLASK_DATABASE", str(tmp_path / "reports.sqlite3"))
    monkeypatch.setenv("SECRET_KEY", "of the test")
    port = free_port()
    with ExitStack() as stack:
        with gunicorn(tmp_path / "log", app="wsgi:app", port=port, probe="/login") as server:
            ada = Person(chromium, server, "ada")
            stack.callback(ada.context.close)
            ada.visit("/examples/eventsource")
            expect(ada.get("method")).to_have_text("EventSource")
            ada.submit("Seen plainly")
            first = ada.get("frames").get_by_role("row").first
            expect(first).to_contain_text("report.submitted")
            expect(first).to_contain_text("Seen plainly")
            server.kill()
        with gunicorn(tmp_path / "log", app="wsgi:app", port=port, probe="/login"):
            # The page loads itself again at the gap, and then has a new stream.
            expect(ada.get("frames").get_by_role("row")).to_have_count(1)
            expect(ada.get("method")).to_have_text("EventSource")
            ada.submit("After the restart")
            expect(ada.get("frames").get_by_role("row").first).to_contain_text("After the restart")


@pytest.mark.parametrize("path", ["/", "/react", "/examples/htmx", "/examples/eventsource"])
def test_every_page_is_narrow_enough_and_strictly_policed(mara: Person, path: str) -> None:
    """375 pixels without scrolling sideways; scripts of this site alone, none inline without its
    nonce, no style inline, no eval."""
    mara.page.set_viewport_size({"width": 375, "height": 700})
    with mara.page.expect_response(mara.base + path) as answered:
        mara.visit(path)
    policy = answered.value.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    expect(mara.get("report-row").or_(mara.get("frames")).first).to_be_attached()
    widths = mara.page.locator("html").evaluate("page => [page.scrollWidth, page.clientWidth]")
    assert widths[0] <= widths[1]


def test_what_is_vendored_says_its_licence(demo: Server) -> None:
    """Nothing comes from elsewhere, and what comes from here may."""
    for name in ("react", "htmx", "htmx-sse"):
        address = f"http://127.0.0.1:{demo.port}/static/vendor/{name}"
        for file in (f"{address}.js", f"{address}.LICENSE"):
            with urlopen(file, timeout=DEADLINE) as answer:
                assert answer.status == 200
                assert len(answer.read()) > 500
