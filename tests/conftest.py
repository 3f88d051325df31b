"""What all tests share: hypothesis' profile and a guard against threads left behind."""

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from servers import DEADLINE
from sites import MakeSite, Site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

    from engines import Engine

settings.register_profile(
    "default",
    deadline=None,  # a shared machine stalls; no test here asserts a time
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("long", parent=settings.get_profile("default"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


SLOWEST = (
    *("engines", "redis", "workers", "drain", "monitor", "browser", "server", "pages", "chaos"),
    *("client_chaos", "versions", "monitor_page", "docs", "demo", "proxies", "doctor"),
    *("benchmarks", "keepalive", "process", "failover", "faults"),
)
"""The files that take longest, first: processes that share the tests then end at one time."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which pytest-xdist hands out the files."""
    rank = {f"test_{name}.py": place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of a random test: from SEED, else new; printed with every failure."""
    chosen = int(os.environ.get("SEED") or int.from_bytes(os.urandom(4), "big"))
    print(f"SEED={chosen}")  # pytest shows it when the test fails
    return chosen


@pytest.fixture
def make_site() -> Iterator[MakeSite]:
    """Makes sites whose heartbeat is long: what is to happen, the test does itself."""
    sites: list[Site] = []

    def make(**config: Any) -> Site:
        sites.append(Site(**{"HEARTBEAT_SECONDS": 25, **config}))
        return sites[-1]

    yield make
    for site in sites:
        site.app.extensions["hybrid"].forget()


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    return make_site()


def required(program: str, package: str) -> str:
    """Where a program is. Skips where there is none; never under CI."""
    found = shutil.which(program)
    if found is None:
        assert not os.environ.get("CI"), f"no {program}; under CI nothing is skipped"
        pytest.skip(f"no {program} here (on Debian: apt-get install {package})")
    return found


@pytest.fixture(scope="session")
def driver() -> Iterator["Playwright"]:
    """Playwright, of which there can be one in a thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="session")
def chromium(driver: "Playwright") -> Iterator["Browser"]:
    """Debian's Chromium, headless."""
    # Without a sandbox: as root Chromium has none, and it sees nothing but loopback here.
    browser = driver.chromium.launch(
        executable_path=required("chromium", "chromium"),
        args=["--no-sandbox"],
        # People have one, so tests do.
        ignore_default_args=["--disable-back-forward-cache"],
    )
    yield browser
    browser.close()


@pytest.fixture(scope="session", params=["chromium", "firefox", "webkit"])
def engine(request: pytest.FixtureRequest, driver: "Playwright") -> Iterator["Engine"]:
    """Each of the three engines in turn."""
    from engines import PlaywrightEngine, WebKit

    if request.param == "webkit":
        required("Xvfb", "xvfb")
        found: Engine = WebKit(required("WebKitWebDriver", "webkit2gtk-driver"))
    elif request.param == "firefox":
        program = required("firefox-esr", "firefox-esr")
        # Stock Firefox, over WebDriver BiDi.
        firefox = driver.firefox.launch(channel="moz-firefox", executable_path=program)
        found = PlaywrightEngine("firefox", firefox)
    else:
        found = PlaywrightEngine("chromium", request.getfixturevalue("chromium"))
    yield found
    found.close()
    if request.param == "firefox":
        firefox.close()


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """`redis.example` is this machine; whoever looks it up waits as long as this is clear."""
    found, original = threading.Event(), socket.getaddrinfo
    found.set()

    def look_up(host: Any, *rest: Any, **how: Any) -> Any:
        if host == "redis.example":
            found.wait(DEADLINE)
            host = "127.0.0.1"
        return original(host, *rest, **how)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return found


@pytest.fixture(autouse=True)
def _no_thread_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test leaves no thread behind but pumps and monitors, which are daemons that wait."""
    before = set(threading.enumerate())
    yield
    wait = ("hybrid-pump", "hybrid-signals", "hybrid-monitor", "hybrid-recheck", "hybrid-slots")
    left = [
        thread
        for thread in set(threading.enumerate()) - before
        if thread.is_alive() and thread.name not in wait
    ]
    for thread in left:
        thread.join(2)  # what was told to stop a moment ago is about to
    left = [thread for thread in left if thread.is_alive()]
    assert not left, f"threads left behind: {left}"
