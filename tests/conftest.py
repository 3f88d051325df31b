"""What all tests share: hypothesis' profile and a guard against threads left behind."""

import os
import shutil
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

settings.register_profile(
    "default",
    deadline=None,  # a shared machine stalls; no test here asserts a time
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("long", parent=settings.get_profile("default"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of a random test: from SEED, else new; printed with every failure."""
    chosen = int(os.environ.get("SEED") or int.from_bytes(os.urandom(4), "big"))
    print(f"SEED={chosen}")  # pytest shows it when the test fails
    return chosen


@pytest.fixture(scope="session")
def chromium() -> Iterator["Browser"]:
    """Debian's Chromium, headless. Skips where there is none; never under CI."""
    found = shutil.which("chromium")
    if found is None:
        assert not os.environ.get("CI"), "no chromium; under CI nothing is skipped"
        pytest.skip("no chromium here (on Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without a sandbox: as root Chromium has none, and it sees nothing but loopback here.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def _no_thread_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test leaves no thread behind but the pumps, which are daemons that wait."""
    before = set(threading.enumerate())
    yield
    left = [
        thread
        for thread in set(threading.enumerate()) - before
        if thread.is_alive() and thread.name != "hybrid-pump"
    ]
    assert not left, f"threads left behind: {left}"
