"""A thousand numbered events to each engine through cuts, stalls, buffering, refusals, restarts;
and what many events cost a page in memory.

`SEED=` repeats a run, `EVENTS=` and `MEGABYTES=` make them longer (`make chaos`).
"""

import os
import random
import time
from typing import Any

import psutil
import pytest

from engines import Engine
from test_engines import Unruly, seen, server, start, unruly  # noqa: F401 - fixtures

pytestmark = [pytest.mark.browser, pytest.mark.server]
EVENTS = int(os.environ.get("EVENTS", "1000"))
MEGABYTES = int(os.environ.get("MEGABYTES", "15"))


def test_r102_r103_chaos(engine: Engine, server: Unruly, seed: int) -> None:  # noqa: F811
    """Two tabs that share a connection: no loss, no repeat, no disorder, or else a gap."""
    rng = random.Random(seed)
    tabs = [engine.tab(), engine.tab()]
    server.tell(heartbeat=150)
    for tab in tabs:
        tab.open(server.page())
        start(tab, name="ada", timings={"hello": 400, "stall": 300, "patience": 800})
    sent: list[int] = []
    troubles = 0
    while len(sent) < EVENTS:
        count = rng.randint(1, 25)
        length = server.tell(emit=count)["length"]
        sent += range(length - count + 1, length + 1)
        dice = rng.random()
        cuts = [{"cut": rng.randint(0, 4)} for _ in range(rng.randint(1, 3))]
        wish: dict[str, Any] = rng.choice(
            [
                {"cut": True},
                {"sse": cuts, "cut": True},
                {"sse": ["stall"], "cut": True},
                {"sse": ["mute"], "cut": True},
                {"sse": [502, "reset", "html"], "cut": True, "polls": [502]},
                {"sse": [[503, 1]], "polls": [[429, 1]], "cut": True},
                {"sse": ["bye"], "cut": True},
                {"always": 502, "cut": True},
            ]
        )
        if rng.random() < 0.15:
            server.tell(always=None)
        if dice < 0.25:
            troubles += 1
            server.tell(**wish)
        elif dice < 0.28:
            tabs[rng.randint(0, 1)].run("rt.reconnect()")
        elif dice < 0.32:
            # In the middle of everything a page goes into the back/forward cache and returns.
            tabs[rng.randint(0, 1)].run(
                "dispatchEvent(new Event('pagehide'));"
                "await new Promise((resolve) => setTimeout(resolve, 50));"
                "dispatchEvent(new Event('pageshow'))"
            )
        elif dice < 0.34:
            # What was kept is lost, and numbers begin again: each tab has to be told.
            for tab in tabs:
                tab.run(f"return until(() => heard.at(-1) === {sent[-1]}, 60_000)")
            server.tell(restart=True)
            sent.append(0)
            for tab in tabs:
                assert tab.run("return until(() => heard.at(-1) === 'gap', 60_000)"), seen(tab)
    for tab in tabs:
        assert tab.run(f"return until(() => heard.at(-1) === {sent[-1]}, 60_000)"), seen(tab)
    for number, tab in enumerate(tabs):
        heard = tab.run("return heard.map((each) => each === 'gap' ? 0 : each)")
        assert heard == sent, "0 is a gap, one for each loss and no other"
        ways = tab.run("return [...methods]")
        gaps = heard.count(0)
        print(f"{engine.name}, tab {number}: {len(heard) - gaps} events by {ways}, {gaps} gaps")
        assert seen(tab)["streams"]["most"] <= 1
    print(f"{engine.name}: {troubles} troubles, {len(server.kinds())} requests")
    engine.fresh()


def test_behaviour_39_memory(engine: Engine, server: Unruly) -> None:  # noqa: F811
    """Events that nobody keeps cost a page of Firefox or WebKit less than 60 MB, however many."""
    tab = engine.tab()
    tab.open(server.page())
    server.tell(size=1000)
    start(tab)
    # What the page itself would keep is not what is measured.
    tab.run("heard.push = (number) => (heard[0] = number); states.push = () => 0")
    server.tell(emit=2_000)
    tab.run("return until(() => heard[0] === 2000, 60_000)")
    before = memory()
    total = 2_000 + MEGABYTES * 1_000
    while (length := server.tell()["length"]) < total:
        server.tell(emit=1_000)
        assert tab.run(f"return until(() => heard[0] === {length + 1_000}, 60_000)")
    # Garbage counts as little as may be: it is the engine's to collect, in its own time.
    grown = memory() - before
    end = time.monotonic() + 10
    while grown >= 60 and time.monotonic() < end:
        grown = min(grown, memory() - before)
    print(f"{engine.name}: {MEGABYTES} MB of events, grown by {grown:.0f} MB")
    engine.fresh()
    if engine.name != "chromium":  # which lets its garbage lie longer, and takes it up later
        assert grown < 60


def memory() -> float:
    """Megabytes that the browsers of this process have for themselves; of Firefox without its
    first process, in which the driver's recorder keeps every answer."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
            recorder = "firefox" in line and "-contentproc" not in line
            if "python" not in process.name() and not recorder:
                total += process.memory_full_info().uss
        except psutil.Error:
            pass  # it has ended meanwhile
    return total / 1e6
