"""The documentation is true: its code runs, its links lead somewhere, its tables are the code's."""

import re
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import APIResponse, Browser, Page, Route, expect

import hybrid
from hybrid.config import PREFIX, Settings
from redises import redis_server
from servers import DEADLINE, ROOT
from transcript import Terminal, followed, shows

DOCS = ROOT / "docs"
expect.set_options(timeout=1000 * DEADLINE)
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# -- the site


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """Every page is in a table of contents, every reference leads somewhere, all code is read."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"),
            *("-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "html")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    reference = (tmp_path / "html/python.html").read_text()
    for public in (*hybrid.__all__, "Hybrid.emit_on_commit", "testing.SSEClient", "signals.gap"):
        assert f'id="hybrid.{public}"' in reference


def anchors(page: Path) -> set[str]:
    """The targets that a forge gives a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_between_files_leads_somewhere(page: Path) -> None:
    """Pages are also read where they lie: links are to files, and to headings that exist."""
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match("https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name(page)} links to {target}"
        assert not anchor or anchor in anchors(file), f"{name(page)}: no heading for {target}"


def test_the_links_that_are_checked_are_found() -> None:
    """Else the test above would pass on anything."""
    assert "3-python" in anchors(DOCS / "protocol.md")
    assert "what-happens-when-redis-dies" in anchors(DOCS / "redis.md")


# -- what the code says


@pytest.mark.parametrize("page", ["configuration.md", "cli.md"])
def test_the_generated_parts_are_what_the_code_says(page: str) -> None:
    """Else run `python docs/generate.py`."""
    made: str = runpy.run_path(str(DOCS / "generate.py"))["page"](page)
    assert (DOCS / page).read_text() == made, "run: python docs/generate.py"


def test_the_configuration_page_names_every_setting() -> None:
    """With its default and what it may be."""
    rows = [
        line for line in (DOCS / "configuration.md").read_text().splitlines() if "| `HY" in line
    ]
    assert [row.split("`")[1] for row in rows] == [
        PREFIX + setting.name.upper() for setting in fields(Settings)
    ]
    assert all(len(row.strip("| ").split(" | ")) == 3 for row in rows)


def test_the_readmes_figures_are_measured_ones() -> None:
    """Each is on the page that says how it was measured."""
    section = (ROOT / "README.md").read_text().partition("## How fast")[2].partition("\n## ")[0]
    measured = (DOCS / "performance.md").read_text()
    rates = re.findall(r"(\d+,\d{3}(?:,\d{3})*) \(([\d.]+) µs\)", section)
    assert len(rates) == 12
    for figure in [part for rate in rates for part in rate]:
        assert re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d.,]*\d)", measured), figure


# -- the code of the pages


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Any]:
    """Follow a page to its end."""
    opened = []

    def go(page: str, **how: Any) -> Terminal:
        (folder := tmp_path / "here").mkdir()
        context = followed(ROOT / page, folder, **how)
        opened.append(context)
        return context.__enter__()

    yield go
    for context in opened:
        context.__exit__(None, None, None)


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Page]:
    """A tab in which a script's error fails the test."""
    page = chromium.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors


@pytest.mark.parametrize(
    ("page", "why"),
    [
        ("```console\n$ echo one\ntwo\n```\n", "has to print"),
        ("```console\n$ echo one; echo two\ntwo\none\n```\n", "has to print"),
        ("```console\n$ false\n```\n", "ended with 1"),
        ("```python\nprint(1)\n```\n", "nothing runs"),
        ("<!-- not run: no -->\n```python\nprint(1)\n```\n", "says why"),
    ],
)
def test_a_page_that_is_not_true_is_found(tmp_path: Path, page: str, why: str) -> None:
    """Else the tests below would pass on anything."""
    (tmp_path / "page.md").write_text(page)
    with pytest.raises(AssertionError, match=why), followed(tmp_path / "page.md", tmp_path):
        pass


def test_numbers_and_ids_may_be_others() -> None:
    """Everything else of a line may not, and lines come in their order."""
    assert shows("id: Xr1vB0aJ8cXkQ2mN.7.origin\nx\n[13]", ["id: Zr1vB0aJ8cXkQ2mN.0.origin", "[1]"])
    assert shows('{"events":[],"cursor":"x"}', ['{"events":[],…}'])
    assert not shows('{"events":[1]}', ['{"events":[],…}'])
    assert not shows("one\ntwo", ["two", "one"])


class Moment:
    """A page that fetches anew after a gap, held between what the server read and what it shows.

    As a context: entered, the answer of `path` is read and on its way; left, the page has it.
    """

    COUNT = """
        const { json } = Response.prototype;
        window.taken = 0; // bodies that the page has read, and done with them what it does at once
        Response.prototype.json = async function () {
          const value = await json.call(this);
          setTimeout(() => (window.taken += 1));
          return value;
        };
        void 0;"""

    def __init__(self, page: Page, path: str) -> None:
        self.page = page
        self.path = f"**{path}"
        page.evaluate(self.COUNT)

    def _hold(self, route: Route) -> None:
        self.held.append((route, route.fetch()))

    def __enter__(self) -> None:
        self.held: list[tuple[Route, APIResponse]] = []
        self.page.route(self.path, self._hold)
        lost = re.compile(r"since=[^&]*")  # a log that is not this one: the page is told of a gap
        self.page.route(
            "**/sse?*",
            lambda route: route.continue_(url=lost.sub("since=x.1.y", route.request.url)),
        )
        for event in ("offline", "online"):
            self.page.evaluate(f"() => void dispatchEvent(new Event('{event}'))")
        end = time.monotonic() + DEADLINE
        while not self.held:
            assert time.monotonic() < end, "the page was told of a gap and fetched nothing"
            self.page.wait_for_timeout(20)  # the route's handler runs in here

    def __exit__(self, *failure: object) -> None:
        for route, answer in self.held:
            route.fulfill(response=answer)
        self.page.wait_for_function(f"taken === {len(self.held)}")
        self.page.unroute("**/sse?*")
        self.page.unroute(self.path)


VENDOR = ROOT / "static/vendor"


def elsewhere(page: Page, address: str, script: str) -> None:
    """Stand in for a script from another site, which no test may need."""
    headers = {"Access-Control-Allow-Origin": "*"}
    page.route(
        address,
        lambda route: route.fulfill(body=script, content_type="text/javascript", headers=headers),
    )


@pytest.mark.server
@pytest.mark.browser
def test_the_readme(follow: Any, browser: Page) -> None:
    """Both snippets, both commands, and the transcript."""
    terminal = follow("README.md")
    with browser.expect_response(lambda response: "/sse" in response.url):
        browser.goto(terminal.url)
    terminal.type("curl -X POST localhost:8000/orders/3/ship", [])
    expect(browser.locator("body")).to_contain_text("order 3 is on its way")


@pytest.mark.server
@pytest.mark.browser
def test_the_quickstart(follow: Any, browser: Page) -> None:
    """The page says that it is live, and shows an order as it is shipped."""
    terminal = follow("docs/quickstart.md")
    browser.goto(terminal.url)
    expect(browser.locator("#state")).to_have_text("live by sse")
    terminal.type("curl -X POST localhost:8000/orders/3/ship", [])
    expect(browser.locator("#orders")).to_have_text("order 3 is on its way")


@pytest.mark.server
@pytest.mark.parametrize(
    "page", ["recipes/flask-login", "recipes/jwt", "recipes/sqlalchemy", "migration"]
)
def test_what_the_page_shows(follow: Any, page: str) -> None:
    """Its transcript shows what it promises."""
    follow(f"docs/{page}.md")


@pytest.mark.server
def test_the_recipe_for_celery(follow: Any, tmp_path: Path) -> None:
    """A real worker, a real Redis, two workers of gunicorn."""
    with redis_server(tmp_path / "redis") as redis:
        follow("docs/recipes/celery.md", redis_port=redis.port).close()


@pytest.mark.server
@pytest.mark.browser
def test_the_recipe_for_htmx(follow: Any, browser: Page) -> None:
    """The page has htmx from elsewhere; here it is what the demo ships."""
    terminal = follow("docs/recipes/htmx.md")
    elsewhere(browser, "https://unpkg.com/htmx.org@2", (VENDOR / "htmx.js").read_text())
    elsewhere(browser, "https://unpkg.com/htmx-ext-sse@2", (VENDOR / "htmx-sse.js").read_text())
    with browser.expect_response(lambda response: "/sse" in response.url):
        browser.goto(terminal.url)
    browser.fill("input", "Bread & milk")
    browser.click("button")
    expect(browser.locator("li")).to_have_text("Bread & milk")


@pytest.mark.server
@pytest.mark.browser
def test_the_recipe_for_react(follow: Any, browser: Page) -> None:
    """The hooks show the data, and then the event; React is what the demo ships."""
    terminal = follow("docs/recipes/react.md")
    dom = 'export { createRoot } from "https://esm.sh/react@19";'  # what we ship is both in one
    elsewhere(browser, "https://esm.sh/react@19", (VENDOR / "react.js").read_text())
    elsewhere(browser, "https://esm.sh/react-dom@19/client", dom)
    browser.goto(terminal.url)
    expect(browser.locator("#state")).to_have_text("live by sse")
    expect(browser.locator("li")).to_have_text(["2 apples", "5 pears"])
    terminal.type("curl -X POST localhost:8000/stock/pears/sell", [])
    expect(browser.locator("li")).to_have_text(["2 apples", "4 pears"])
    with Moment(browser, "/stock"):
        terminal.type("curl -X POST localhost:8000/stock/apples/sell", [])
        expect(browser.locator("li")).to_have_text(["1 apples", "4 pears"])
    terminal.type("curl -X POST localhost:8000/stock/pears/sell", [])
    expect(browser.locator("li")).to_have_text(["1 apples", "3 pears"])


@pytest.mark.server
@pytest.mark.browser
def test_the_recipe_for_a_progress_bar(follow: Any, browser: Page) -> None:
    """From the first step to the last."""
    terminal = follow("docs/recipes/progress-bar.md")
    browser.goto(terminal.url)
    browser.click("button")
    expect(browser.locator("output")).to_have_text("done")
    expect(browser.locator("progress")).to_have_attribute("value", "100")


@pytest.mark.server
@pytest.mark.browser
def test_the_recipe_for_notifications(follow: Any, browser: Page) -> None:
    """What came before the login, what comes while she looks, and reading it all."""
    terminal = follow("docs/recipes/notifications.md")
    browser.goto(terminal.url)
    browser.click("button")
    expect(browser.locator("#count")).to_have_text("1")
    terminal.type("curl -X POST localhost:8000/greet/alice", [])
    expect(browser.locator("#count")).to_have_text("2")
    browser.click("#bell")
    expect(browser.locator("#count")).to_have_text("0")
    with Moment(browser, "/notes"):
        terminal.type("curl -X POST localhost:8000/greet/alice", [])
        expect(browser.locator("#count")).to_have_text("1")
    terminal.type("curl -X POST localhost:8000/greet/alice", [])
    expect(browser.locator("#count")).to_have_text("2")


@pytest.mark.server
@pytest.mark.browser
def test_the_tutorial(tmp_path: Path, browser: Page) -> None:
    """Page after page in one folder, and a browser that looks at the board in between."""
    pages = sorted((DOCS / "tutorial").glob("[0-9]*.md"))
    assert len(pages) == 6
    (folder := tmp_path / "here").mkdir()
    with redis_server(tmp_path / "redis") as redis:
        for page in pages:
            with followed(page, folder, redis_port=redis.port) as terminal:
                if page.stem == "2-live":
                    browser.goto(terminal.url)
                    expect(browser.locator("#state")).to_have_text("live by sse")
                    expect(browser.locator("li")).to_have_text(["1 soup: ready", "2 cake"])
                elif page.stem == "5-two-workers":
                    browser.goto(terminal.url)
                    browser.fill("input", "kitchen")
                    browser.click("button")
                    expect(browser.locator("#state")).to_have_text("live by sse")
                    terminal.type("curl -b kitchen -X POST localhost:8000/orders/1/ready", [])
                    expect(browser.locator("li")).to_have_text(["1 soup: ready", "2 tea"])
                    with Moment(browser, "/orders"):
                        terminal.type("curl -b kitchen -d what=pie localhost:8000/orders", [])
                        expect(browser.locator("li")).to_have_count(3)
                    terminal.type("curl -b kitchen -X POST localhost:8000/orders/2/ready", [])
                    expect(browser.locator("li")).to_have_text(
                        ["1 soup: ready", "2 tea: ready", "3 pie"]
                    )
