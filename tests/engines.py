"""Three real engines behind one small interface: Debian's Chromium, Firefox ESR and WebKitGTK.

`run(code)` evaluates the body of an async function in the page; its result goes through JSON.
"""

import contextlib
import json
import os
import subprocess
import warnings
from typing import Any, Protocol

from playwright.sync_api import Browser, BrowserContext, Error, Page

from servers import DEADLINE


def soon(tab: "Tab", condition: str) -> bool:
    """Whether the condition comes to hold in the page, which may still be loading. Waits in the
    page, by a clock that no test turns, and not for ever: a driver's own patience is minutes."""
    answer: bool = tab.run(
        f"for (const end = performance.now() + {DEADLINE * 1000}; !({condition}); ) {{"
        " if (performance.now() > end) return false;"
        " await new Promise((resolve) => setTimeout(resolve, 5)); } return true"
    )
    return answer


class Tab(Protocol):
    """One page of an engine. Tabs of one `Engine.fresh()` share storage, locks and channels."""

    def open(self, url: str) -> None: ...
    def run(self, code: str) -> Any: ...
    def back(self) -> None: ...
    def close(self) -> None: ...


class Engine(Protocol):
    name: str

    def tab(self) -> Tab: ...
    def fresh(self) -> None: ...
    def close(self) -> None: ...


class PlaywrightTab:
    def __init__(self, page: Page) -> None:
        self.page = page

    def open(self, url: str) -> None:
        self.page.goto(url)

    def run(self, code: str) -> Any:
        text = self.page.evaluate(
            f"async () => JSON.stringify((await (async () => {{{code}}})()) ?? null)"
        )
        return json.loads(text)

    def back(self) -> None:
        # Not by the driver, which waits for a load that a page out of the cache never does.
        left = self.run("setTimeout(() => history.back()); return location.href")
        for _ in range(int(DEADLINE * 50)):
            with contextlib.suppress(Error):  # between two pages nobody answers
                if self.run("return location.href") != left:
                    return
            self.page.wait_for_timeout(20)
        raise AssertionError("it did not go back")

    def close(self) -> None:
        self.page.close()


class PlaywrightEngine:
    """Chromium; Firefox as it comes, over WebDriver BiDi."""

    def __init__(self, name: str, browser: Browser) -> None:
        self.name = name
        self.browser = browser
        self.context: BrowserContext = browser.new_context()

    def fresh(self) -> None:
        self.context.close()
        self.context = self.browser.new_context()

    def tab(self) -> PlaywrightTab:
        return PlaywrightTab(self.context.new_page())

    def close(self) -> None:
        self.context.close()


class WebKitTab:
    def __init__(self, engine: "WebKit", handle: str) -> None:
        self.engine = engine
        self.handle = handle

    def _here(self) -> Any:
        driver = self.engine.driver
        if self.engine.current != self.handle:
            driver.switch_to.window(self.handle)
            self.engine.current = self.handle
        return driver

    def open(self, url: str) -> None:
        self._here().get(url)

    def run(self, code: str) -> Any:
        answer = json.loads(
            self._here().execute_async_script(
                f"const done = arguments[0]; (async () => {{{code}}})().then("
                "value => done(JSON.stringify({value: value ?? null})),"
                "error => done(JSON.stringify({error: String(error)})))"
            )
        )
        assert "error" not in answer, answer
        return answer["value"]

    def back(self) -> None:
        self._here().back()

    def close(self) -> None:
        self._here().close()
        self.engine.handles.remove(self.handle)
        self.engine.go_home()  # without a window the driver does nothing


class WebKit:
    """WebKitGTK's MiniBrowser over WebDriver, on a display of its own."""

    name = "webkit"

    def __init__(self, program: str) -> None:
        from selenium import webdriver
        from selenium.webdriver.webkitgtk.options import Options
        from selenium.webdriver.webkitgtk.service import Service

        self.display = start_display()
        listed = subprocess.run(
            ["dpkg", "-L", "libwebkit2gtk-4.1-0"], capture_output=True, text=True
        )
        options = Options()
        options.binary_location = next(
            line for line in listed.stdout.split() if line.endswith("/MiniBrowser")
        )
        options.add_argument("--automation")
        environ = os.environ | {"DISPLAY": self.display[1]}
        service = Service(program, env=environ)
        with warnings.catch_warnings():
            # selenium sets its own address in a way of which it disapproves
            warnings.simplefilter("ignore", DeprecationWarning)
            self.driver = webdriver.WebKitGTK(options=options, service=service)
        self.driver.set_script_timeout(120)
        self.home = self.current = self.driver.current_window_handle
        self.handles: list[str] = []

    def tab(self) -> WebKitTab:
        # Not a tab: the program shows only its first, and WebKit lets the timers of a hidden page
        # fire once a second.
        self.driver.switch_to.new_window("window")
        self.current = self.driver.current_window_handle
        self.handles.append(self.current)
        return WebKitTab(self, self.current)

    def fresh(self) -> None:
        for handle in list(self.handles):
            WebKitTab(self, handle).close()

    def go_home(self) -> None:
        self.driver.switch_to.window(self.home)
        self.current = self.home

    def close(self) -> None:
        self.driver.quit()
        self.display[0].terminate()
        self.display[0].wait()


def start_display() -> tuple["subprocess.Popen[bytes]", str]:
    """An Xvfb and its name. It writes number and newline separately: a reader that closes the
    pipe in between ends it with SIGPIPE, and the driver then waits for ever."""
    read, write = os.pipe()
    process = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x800x24", "-nolisten", "tcp"],
        pass_fds=(write,),
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    with os.fdopen(read) as pipe:
        number = pipe.readline().strip()
    assert number, "Xvfb did not start"
    return process, f":{number}"
