"""The demo in a real browser: two people, two ways of delivery, a server that dies."""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from servers import DEADLINE, Server, free_port, gunicorn

pytestmark = [pytest.mark.browser, pytest.mark.server]
expect.set_options(timeout=DEADLINE * 1000)


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demo keeps its reports; new for each test, the same over a restart."""
    path = tmp_path / "reports.sqlite3"
    monkeypatch.setenv("FLASK_DATABASE", str(path))
    monkeypatch.setenv("SECRET_KEY", "of the test")
    return path


@pytest.fixture
def demo(tmp_path: Path, database: Path) -> Iterator[Server]:
    """The demo, served as in production."""
    with gunicorn(tmp_path / "log", app="wsgi:app", probe="/login") as server:
        yield server


class Dashboard:
    """One person's dashboard, with everything that the browser complained of."""

    def __init__(self, browser: Browser, server: Server, user: str, **options: str) -> None:
        self.context = browser.new_context(locale="en-GB", **options)  # type: ignore[arg-type]
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.goto(f"http://127.0.0.1:{server.port}/")
        self.page.get_by_test_id(f"login-{user}").click()
        self.shows("method", "SSE")
        self.page.evaluate("window.same = true")

    def never_loaded_again(self) -> bool:
        return bool(self.page.evaluate("window.same"))

    def close(self) -> None:
        self.context.close()

    def get(self, testid: str) -> Locator:
        return self.page.get_by_test_id(testid)

    def shows(self, testid: str, text: str | re.Pattern[str]) -> None:
        expect(self.get(testid)).to_have_text(text)

    def row(self, title: str) -> Locator:
        return self.get("report-row").filter(has_text=title)

    def submit(self, title: str, amount: str = "12.50") -> None:
        form = self.get("new-report-form")
        form.get_by_label("Title").fill(title)
        form.get_by_label("Amount").fill(amount)
        form.get_by_role("button").click()

    def activity(self) -> list[str]:
        """What happened, oldest first, each with the way on which it came."""
        items = self.get("activity").get_by_role("listitem").all_inner_texts()
        return [re.sub(r"\s*\n.*(via \w+)", r" \1", item) for item in reversed(items)]

    def block_streams(self, on: bool) -> None:
        self.get("block-sse").set_checked(on, force=True)
        self.shows("method", "Polling" if on else "SSE")


@pytest.fixture
def people(chromium: Browser, demo: Server) -> Iterator[tuple[Dashboard, Dashboard]]:
    """Ada, who submits, and Mara, who decides."""
    with ExitStack() as stack:
        ada, mara = (Dashboard(chromium, demo, user) for user in ("ada", "mara"))
        stack.callback(ada.close)
        stack.callback(mara.close)
        yield ada, mara


def test_an_approval_is_seen_by_the_other_over_both_ways_and_back(
    people: tuple[Dashboard, Dashboard],
) -> None:
    """Over a stream; over polls while streams are blocked; over a stream again. Each event
    once and in order, on pages that are never loaded again."""
    ada, mara = people
    told = []
    for step, (blocked, way) in enumerate([(False, "SSE"), (True, "polling"), (False, "SSE")]):
        if step:
            for person in people:
                person.block_streams(blocked)
        title = f"Report {step}"
        ada.submit(title)
        mara.row(title).get_by_test_id("approve").click()
        began = time.perf_counter()
        expect(ada.row(title)).to_have_attribute("data-status", "approved")
        print(f"over {way}: seen {time.perf_counter() - began:.3f} s after the click")
        told += [f"Ada submitted “{title}” via {way}", f"Mara approved “{title}” via {way}"]
        for person in people:
            person.shows("received", str(len(told)))
    for person in people:
        assert person.activity() == told
        assert person.never_loaded_again()
        assert person.complaints == []
        expect(person.get("gap-notice")).to_be_hidden()


def test_only_who_may_see_a_report_is_told_of_it(
    chromium: Browser, demo: Server, people: tuple[Dashboard, Dashboard]
) -> None:
    """Ben hears nothing of Ada's report, and hears of his own, which comes later."""
    ada, mara = people
    with ExitStack() as stack:
        ben = Dashboard(chromium, demo, "ben")
        stack.callback(ben.close)
        ada.submit("Secret of Ada")
        expect(mara.row("Secret of Ada")).to_be_visible()
        mara.row("Train to Hamburg").get_by_test_id("reject").click()
        expect(ben.row("Train to Hamburg")).to_have_attribute("data-status", "rejected")
        assert ben.activity() == ["Mara rejected “Train to Hamburg, client workshop” via SSE"]
        expect(ben.row("Secret of Ada")).to_have_count(0)


def test_what_happens_while_streams_are_being_blocked_is_not_lost(
    people: tuple[Dashboard, Dashboard],
) -> None:
    """Events in the middle of the fall and of the return, each once and in order."""
    ada, mara = people
    titles: list[str] = []
    for blocked in (True, False, True, False):
        mara.get("block-sse").set_checked(blocked, force=True)
        for _ in range(3):
            titles.append(f"Number {len(titles)}")
            ada.submit(titles[-1])
            expect(ada.row(titles[-1])).to_be_visible()
        mara.shows("method", "Polling" if blocked else "SSE")
    mara.shows("received", str(len(titles)))
    assert [re.findall("“(.+)”", line)[0] for line in mara.activity()] == titles
    expect(mara.get("gap-notice")).to_be_hidden()


def test_a_server_that_dies_and_returns_is_survived_and_told_of(
    chromium: Browser, database: Path, tmp_path: Path
) -> None:
    """Killed without a word and started again: the page recovers by itself, says that it missed
    something, and shows what happened while it was away."""
    port = free_port()
    with ExitStack() as stack:
        with gunicorn(tmp_path / "log", app="wsgi:app", port=port, probe="/login") as server:
            ada = Dashboard(chromium, server, "ada")
            stack.callback(ada.close)
            server.kill()
        expect(ada.get("method")).to_have_text("Connecting…")
        with gunicorn(tmp_path / "log", app="wsgi:app", port=port, probe="/login") as server:
            mara = Dashboard(chromium, server, "mara")
            stack.callback(mara.close)
            mara.row("Usability lab").get_by_test_id("approve").click()
            expect(ada.row("Usability lab")).to_have_attribute("data-status", "approved")
            expect(ada.get("gap-notice")).to_contain_text("The server was restarted")
            ada.shows("method", "SSE")
            ada.submit("After the restart")
            mara.row("After the restart").get_by_test_id("approve").click()
            expect(ada.row("After the restart")).to_have_attribute("data-status", "approved")
            assert ada.never_loaded_again()
            assert not [text for text in ada.complaints if "net::ERR" not in text]


def test_who_logs_out_loses_the_stream_everywhere(
    chromium: Browser, demo: Server, people: tuple[Dashboard, Dashboard]
) -> None:
    """A second tab of the same person goes back to the login page by itself."""
    ada, _ = people
    tab = ada.context.new_page()
    tab.goto(f"http://127.0.0.1:{demo.port}/")
    expect(tab.get_by_test_id("method")).to_have_text("SSE")
    ada.page.get_by_role("button", name="Log out").click()
    expect(ada.page).to_have_url(re.compile("/login$"))
    expect(tab).to_have_url(re.compile("/login$"))


def test_a_phone_shows_everything_without_scrolling_sideways(
    chromium: Browser, demo: Server
) -> None:
    """375 pixels, the narrowest that is common."""
    with ExitStack() as stack:
        ole = Dashboard(chromium, demo, "ole", viewport={"width": 375, "height": 700})  # type: ignore[arg-type]
        stack.callback(ole.close)
        widths = ole.page.locator("html").evaluate("page => [page.scrollWidth, page.clientWidth]")
        assert widths[0] <= widths[1]
        expect(ole.get("remove").first).to_be_visible()
