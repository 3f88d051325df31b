"""The client in Chromium, Firefox and WebKit, against a server that misbehaves on command.

The numbers are those of the behaviours that docs/client.md lists. The timings are short; what is
checked is what happens and not when, but where a behaviour names a time.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from engines import Engine, Tab, soon
from servers import DEADLINE

pytestmark = [pytest.mark.browser, pytest.mark.server]


class Unruly:
    """The misbehaving server and one room in it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.room = ""

    def page(self, query: str = "") -> str:
        return f"http://127.0.0.1:{self.port}/r/{self.room}/page?{query}"

    def tell(self, **wish: Any) -> Any:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request("POST", f"/r/{self.room}/control", json.dumps(wish))
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def kinds(self) -> list[str]:
        return [request["kind"] for request in self.tell()["requests"]]

    def until_open(self, count: int) -> None:
        """The server has so many open streams, as far as it knows."""
        assert self.tell(until_open=count)["open"] == count


@pytest.fixture(scope="session")
def unruly() -> Iterator[Unruly]:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("unruly.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    yield Unruly(int(process.stdout.readline()))
    process.stdin.close()
    process.wait(DEADLINE)
    process.stdout.close()


@pytest.fixture
def server(unruly: Unruly, engine: Engine, request: pytest.FixtureRequest) -> Unruly:
    """A room for this test alone."""
    name = request.node.originalname
    unruly.room = f"{engine.name}-{name}-{request.node.callspec.indices}".translate(
        str.maketrans(" {}':,/[]", "---------")
    )
    return unruly


@pytest.fixture
def tab(engine: Engine, server: Unruly) -> Iterator[Tab]:
    """A page with the client loaded and not started, in a fresh profile."""
    tab = engine.tab()
    tab.open(server.page())
    yield tab
    engine.fresh()


IMPATIENT = {"hello": 400}
"""For who is to give up a stream without a hello."""


def start(tab: Tab, wait: str = "rt.state.isConnected", **options: Any) -> None:
    assert soon(tab, "window.ready"), "the page did not load"
    tab.run(f"start({json.dumps(options)})")
    until(tab, wait)


def seen(tab: Tab) -> Any:
    return tab.run("return {heard, states, errors, asked, streams, state: window.rt?.state}")


def until(tab: Tab, condition: str) -> None:
    assert soon(tab, condition), (condition, seen(tab))


def test_behaviour_1_connected_only_after_the_hello(tab: Tab, server: Unruly) -> None:
    """With a healthy server the method is sse, at the first attempt; connected means greeted."""
    start(tab)
    assert seen(tab)["states"] == ["connecting -", "live sse"]
    assert server.kinds() == ["sse"]
    tab.run("rt.close(); states.length = 0")
    server.tell(always="mute")
    start(tab, 'rt.state.activeMethod === "polling"', timings=IMPATIENT)
    assert "live sse" not in seen(tab)["states"], "a head alone is no connection"
    server.tell(always=None)
    until(tab, 'rt.state.activeMethod === "sse"')


def test_behaviour_2_a_stream_that_is_held_back_is_given_up(tab: Tab, server: Unruly) -> None:
    """A head and no byte: the client polls, and misses nothing."""
    server.tell(always="mute", emit=3)
    polls = 'rt.state.activeMethod === "polling"'
    start(tab, polls, cursor=origin(server), timings=IMPATIENT)
    until(tab, "heard.length === 3")
    assert server.kinds()[:2] == ["sse", "polling"]
    assert "buffered" in seen(tab)["errors"][0]


def origin(server: Unruly) -> str:
    """The cursor before the first event."""
    cursor: str = server.tell()["cursor"]
    return f"{cursor.split('.')[0]}.0.origin"


def test_behaviour_3_three_refusals_and_it_polls(tab: Tab, server: Unruly) -> None:
    """502 three times; the events meanwhile come by polling, in order."""
    server.tell(always=502)
    start(tab, 'rt.state.activeMethod === "polling"')
    server.tell(emit=5)
    until(tab, "heard.length === 5")
    assert seen(tab)["heard"] == [1, 2, 3, 4, 5]
    assert server.kinds()[:4] == ["sse", "sse", "sse", "polling"]


def test_behaviour_4_a_probe_that_is_greeted_takes_over(tab: Tab, server: Unruly) -> None:
    """Nothing is lost and nothing comes twice on the way from polling to a stream."""
    server.tell(sse=[502, 502, 502])
    start(tab, "rt.state.isConnected")
    for _ in range(10):
        server.tell(emit=1)
    until(tab, 'rt.state.activeMethod === "sse"')
    server.tell(emit=5)
    until(tab, "heard.length === 15")
    assert seen(tab)["heard"] == list(range(1, 16))


def test_behaviour_5_a_probe_that_fails_disturbs_nothing(tab: Tab, server: Unruly) -> None:
    """Polling goes on undisturbed, and the next look comes later."""
    server.tell(always=502)
    start(tab, 'rt.state.activeMethod === "polling"')
    tab.run("states.length = errors.length = 0")
    tab.run("await new Promise((resolve) => setTimeout(resolve, 1200))")
    server.tell(emit=3)
    until(tab, "heard.length === 3")
    assert not [state for state in seen(tab)["states"] if "polling" not in state]
    assert seen(tab)["errors"] == []
    fell, *probes = [each["at"] for each in server.tell()["requests"] if each["kind"] == "sse"][2:]
    assert len(probes) >= 2
    # Each waits about twice as long as the one before; at least three quarters of it.
    assert probes[-1] - fell >= 0.75 * 150 * (2 ** len(probes) - 1)


def test_behaviour_6_a_stream_cut_in_the_middle_of_a_block(tab: Tab, server: Unruly) -> None:
    """That event comes exactly once."""
    server.tell(sse=[{"cut": 2}, {"cut": 0}, {"cut": 1}])
    start(tab)
    server.tell(emit=8)
    until(tab, "heard.length === 8")
    assert seen(tab)["heard"] == list(range(1, 9))


def test_behaviour_7_a_silent_stream_is_ended(tab: Tab, server: Unruly) -> None:
    """After 2.5 heartbeats without a byte; the error says so, and the events come after all."""
    server.tell(heartbeat=100, sse=["stall"])
    start(tab, timings={"stall": 300})
    server.tell(emit=2)
    until(tab, "heard.length === 2")
    assert "stalled" in seen(tab)["errors"][0]
    server.tell(emit=1)
    until(tab, "heard.length === 3")


@pytest.mark.parametrize("mode", ["comments", "ids"])
def test_behaviours_8_9_signs_of_life(tab: Tab, server: Unruly, mode: str) -> None:
    """Comments and id-only blocks keep a stream; the latter move the cursor."""
    server.tell(heartbeat=100, sse=[mode])
    start(tab, timings={"stall": 1000})
    greeted = server.tell()["cursor"]
    server.tell(emit=3)  # of which this person may see none
    tab.run("await new Promise((resolve) => setTimeout(resolve, 1500))")
    assert seen(tab)["asked"] == ["sse"]
    assert seen(tab)["errors"] == []
    server.tell(cut=True)
    until(tab, "errors.length && rt.state.isConnected")
    now = server.tell()["cursor"]
    assert now != greeted
    assert server.tell()["requests"][-1]["since"] == (now if mode == "ids" else greeted)


def test_behaviour_18_close_ends_everything(tab: Tab, server: Unruly) -> None:
    """The server sees it, nothing is heard afterwards, and twice is once."""
    start(tab)
    closed = tab.run("const now = Date.now(); rt.close(); rt.close(); return now")
    server.tell(emit=1)
    server.until_open(0)
    note = server.tell()["requests"][0]
    print(f"the server saw the end after {note['closed'] - closed:.0f} ms")
    assert seen(tab)["heard"] == []
    assert seen(tab)["state"]["status"] == "closed"
    assert tab.run("return timers.size") == 0


@pytest.mark.parametrize("moment", ["connecting", "waiting", "asking", "probing", "polling"])
def test_behaviour_19_close_at_any_moment(tab: Tab, server: Unruly, moment: str) -> None:
    """Neither request nor timer is left, whatever was under way; asking is for `onAuth`."""
    if moment == "connecting":
        server.tell(always="mute")
        start(tab, "true")
    elif moment == "waiting":
        server.tell(always=[503, 1])
        start(tab, "rt.state.retryAt", transport="sse", timings={"open": 5000})
    elif moment == "asking":
        server.tell(always=401)
        assert soon(tab, "window.ready")
        tab.run("start({onAuth: () => new Promise((resolve) => (window.settle = resolve))})")
        until(tab, "window.settle")
    else:
        server.tell(always="mute" if moment == "probing" else 502)
        start(tab, 'rt.state.activeMethod === "polling"', timings=IMPATIENT)
    before, after = tab.run(
        "rt.close(); const before = [...asked]; window.settle?.(true);"
        "if (timers.size) throw new Error('a timer is left');"
        "await new Promise((resolve) => setTimeout(resolve, 700)); return [before, asked]"
    )
    assert before == after
    server.until_open(0)


def test_behaviour_20_hiding_and_showing(tab: Tab, server: Unruly) -> None:
    """Twenty times, quickly: never more than one open stream."""
    start(tab)
    tab.run(
        "for (let i = 0; i < 20; i += 1) { look(true); dispatchEvent(new Event('pagehide'));"
        " dispatchEvent(new Event('pageshow')); look(false);"
        " await new Promise((resolve) => setTimeout(resolve, i % 3 ? 5 : 30)); }"
    )
    until(tab, "rt.state.isConnected")
    server.tell(emit=2)
    until(tab, "heard.length === 2")
    assert seen(tab)["streams"] == {"open": 1, "most": 1}
    server.until_open(1)


def test_behaviour_21_offline_and_online(tab: Tab, server: Unruly) -> None:
    """Offline is said at once; online reconnects within a second whatever the backoff was."""
    start(tab, timings={"cap": 60_000})
    tab.run("dispatchEvent(new Event('offline'))")
    assert seen(tab)["state"]["isConnected"] is False
    server.tell(emit=2)
    server.until_open(0)
    tab.run("dispatchEvent(new Event('online'))")
    assert tab.run("return rt.state.retryAt - Date.now()") <= 1000
    until(tab, "heard.length === 2")


def test_behaviour_22_seen_again(tab: Tab, server: Unruly) -> None:
    """With a fresh stream nothing happens; with an overdue one it reconnects at once."""
    server.tell(heartbeat=60_000)
    start(tab)
    tab.run("look(true); look(false)")
    assert seen(tab)["asked"] == ["sse"]
    # The timers of a page that slept are late, and the clock has gone on.
    tab.run("const { now } = Date; Date.now = () => now() + 200_000; look(true); look(false)")
    until(tab, "errors.length && rt.state.isConnected")
    assert seen(tab)["asked"] == ["sse", "sse"]


def test_behaviour_57_the_clock_is_set_back(tab: Tab, server: Unruly) -> None:
    """By an hour: a stream that stalls is ended, a retry comes, and polls go on."""
    server.tell(heartbeat=100, sse=["stall"])
    start(tab, timings={"stall": 300})
    tab.run("const { now } = Date; Date.now = () => now() - 3_600_000")
    server.tell(emit=1, always=502)
    until(tab, 'rt.state.activeMethod === "polling" && heard.length === 1')
    assert "stalled" in seen(tab)["errors"][0]
    server.tell(emit=2)
    until(tab, "heard.length === 3")
    assert seen(tab)["heard"] == [1, 2, 3]


def test_behaviour_23_back_and_forward(engine: Engine, tab: Tab, server: Unruly) -> None:
    """Away and back, out of the cache or loaded again: it goes on from the cursor.

    Firefox keeps no page that had a request open when it was left, whatever the page does then.
    """
    tab.open(server.page('keep=1&auto={"name":"ada"}'))
    until_started(tab)
    tab.run("window.born = true")
    server.tell(emit=2)
    until(tab, "heard.length === 2")
    tab.open(server.page("other"))
    server.until_open(0)
    server.tell(emit=2)
    tab.back()
    until_started(tab)
    server.tell(emit=1)
    until(tab, "heard.length === 5")
    assert seen(tab)["heard"] == [1, 2, 3, 4, 5]
    assert tab.run("return window.born") == (None if engine.name == "firefox" else True)
    assert seen(tab)["state"]["role"] == "leader"


def test_behaviour_23_left_between_two_attempts(tab: Tab, server: Unruly) -> None:
    """With nothing open every engine keeps the page; it goes on at once when it is shown again."""
    server.tell(always=[503, 60])
    tab.open(server.page('auto={"transport":"sse"}'))
    assert soon(tab, "window.ready && rt.state.retryAt")
    tab.run("window.born = true")
    tab.open(server.page("other"))
    server.tell(always=None)
    tab.back()
    until_started(tab)
    server.tell(emit=1)
    until(tab, "heard.length === 1")
    assert tab.run("return window.born"), "the same page"
    phases = "connecting -", "waiting -", "paused -", "connecting -", "live sse"
    assert seen(tab)["states"][:5] == list(phases)
    server.until_open(1)


def until_started(tab: Tab) -> None:
    assert soon(tab, "window.ready && window.rt?.state.isConnected")


def test_behaviours_24_25_54_three_tabs_one_stream(
    engine: Engine, tab: Tab, server: Unruly
) -> None:
    """R-103. Each tab hears every event once and in order; a follower's reconnect() makes the
    leader reconnect; the leader is closed, and nobody misses anything."""
    tabs = [tab, engine.tab(), engine.tab()]
    for each in tabs[1:]:
        each.open(server.page())
    for each in tabs:
        start(each, name="ada")
    assert [seen(each)["state"]["role"] for each in tabs] == ["leader", "follower", "follower"]
    server.tell(emit=10)
    for each in tabs:
        until(each, "heard.length === 10")
    assert server.kinds() == ["sse"]
    tabs[1].run("rt.reconnect()")
    until(tabs[0], "states.filter((state) => state.startsWith('connecting')).length === 2")
    until(tabs[0], "rt.state.isConnected")
    assert server.kinds() == ["sse", "sse"]
    gone = tabs[2].run("return Date.now()")
    tabs[0].close()
    server.tell(emit=10)
    for each in tabs[1:]:
        until(each, "heard.length === 20")
        assert seen(each)["heard"] == list(range(1, 21))
        assert seen(each)["errors"] == []
    assert sorted(seen(each)["state"]["role"] for each in tabs[1:]) == ["follower", "leader"]
    last = server.tell()["requests"][-1]
    print(
        f"{engine.name}: a new leader's stream {last['at'] - gone:.0f} ms after close() was asked"
    )
    assert server.kinds() == ["sse", "sse", "sse"]
    assert all(seen(each)["streams"]["most"] <= 1 for each in tabs[1:])


def test_behaviours_19_24_closed_before_it_leads(engine: Engine, tab: Tab, server: Unruly) -> None:
    """Closed before, while or after tabs.js is loaded, or between that and its start: such a
    client holds no lock, and the next client of the person has a connection."""
    assert soon(tab, "window.ready")
    tab.run(
        "for (let turns = 0; turns < 12; turns += 1) {"
        " start({name: 'ada'});"
        " for (let turn = 0; turn < turns; turn += 1)"
        "   await (turn > 8 ? new Promise((resolve) => setTimeout(resolve)) : null);"
        " rt.close(); }"
    )
    start(tab, name="ada")
    other = engine.tab()
    other.open(server.page())
    start(other, name="ada")
    assert [seen(each)["state"]["role"] for each in (tab, other)] == ["leader", "follower"]
    server.until_open(1)


def test_behaviour_26_a_leader_that_hangs(engine: Engine, tab: Tab, server: Unruly) -> None:
    """A tab whose event loop is blocked loses the lead, and follows when it wakes up."""
    other = engine.tab()
    other.open(server.page())
    for each in (tab, other):
        start(each, name="ada", timings={"patience": 800})
    if engine.name == "webkit":
        # Its tabs share one event loop: this one says nothing for a while, which is all that the
        # others can know of it.
        tab.run(
            "const { prototype } = BroadcastChannel; const { postMessage } = prototype;"
            "prototype.postMessage = () => {};"
            "setTimeout(() => (prototype.postMessage = postMessage), 2500)"
        )
    else:
        # Nobody can talk to it meanwhile, so it blocks itself a bit later.
        tab.run(
            "setTimeout(() => { for (const end = Date.now() + 2500; Date.now() < end; ); }, 100)"
        )
    until(other, 'rt.state.role === "leader" && rt.state.isConnected')
    server.tell(emit=3)
    until(other, "heard.length === 3")
    until(tab, 'rt.state.role === "follower" && heard.length === 3')
    assert seen(tab)["heard"] == [1, 2, 3]
    server.until_open(1)


@pytest.mark.parametrize("leader", ["stopped", "authorizing"])
def test_behaviour_58_a_leader_that_was_refused(
    engine: Engine, tab: Tab, server: Unruly, leader: str
) -> None:
    """It has given up, or waits for a person, who logs in in another tab: that page is connected,
    and the first one follows it."""
    server.tell(always=401)
    assert soon(tab, "window.ready")
    hook = "onAuth: () => new Promise(() => {})" if leader == "authorizing" else ""
    tab.run(f"start({{name: 'ada', {hook}}})")
    until(tab, f'rt.state.status === "{leader}"')
    server.tell(always=None)
    other = engine.tab()
    other.open(server.page())
    start(other, name="ada")
    until(tab, "rt.state.isConnected")
    assert [seen(each)["state"]["role"] for each in (tab, other)] == ["follower", "leader"]
    server.tell(emit=2)
    for each in (tab, other):
        until(each, "heard.length === 2")
    server.until_open(1)


def test_behaviour_27_names_never_meet(engine: Engine, tab: Tab, server: Unruly) -> None:
    """Tabs of different people have a stream each, and hear nothing of the other's."""
    other = engine.tab()
    other.open(server.page())
    server.tell(sse=["ok", "comments"])  # ben may see none of it
    start(tab, name="ada")
    start(other, name="ben")
    for each in (tab, other):
        assert seen(each)["state"]["role"] == "leader"
    server.until_open(2)
    server.tell(emit=3)
    until(tab, "heard.length === 3")
    other.run("await new Promise((resolve) => setTimeout(resolve, 500))")
    assert seen(other)["heard"] == []


@pytest.mark.parametrize("strip", ["locks", "BroadcastChannel", "cookies", "EventSource"])
def test_behaviour_28_without_locks_or_channel(tab: Tab, server: Unruly, strip: str) -> None:
    """Every tab works alone, also where they are there and refuse, as in Firefox with cookies
    blocked; and nobody needs EventSource."""
    tab.open(server.page(f"strip={strip}"))
    start(tab, name="ada")
    server.tell(emit=2)
    until(tab, "heard.length === 2")
    assert seen(tab)["state"]["role"] == ("leader" if strip == "EventSource" else "solo")


def test_behaviour_29_without_readable_streams(tab: Tab, server: Unruly) -> None:
    """It polls at once and never probes."""
    tab.open(server.page("strip=ReadableStream"))
    start(tab)
    server.tell(emit=2)
    until(tab, "heard.length === 2")
    tab.run("await new Promise((resolve) => setTimeout(resolve, 500))")
    assert set(server.kinds()) == {"polling"}


def test_behaviour_30_with_a_storage_that_throws(tab: Tab, server: Unruly) -> None:
    """Everything but persistence works."""
    tab.open(server.page("strip=storage"))
    start(tab, name="ada")
    server.tell(emit=2)
    until(tab, "heard.length === 2")
    tab.run("dispatchEvent(new Event('pagehide')); dispatchEvent(new Event('pageshow'))")
    until(tab, "rt.state.isConnected")
    tab.run("rt.close()")


def test_behaviour_56_a_page_that_is_left_and_stays(
    engine: Engine, tab: Tab, server: Unruly
) -> None:
    """Firefox and WebKit end the stream as soon as somebody follows a link, also where the page
    stays, as with a download: nobody is told, and nothing is missed."""
    start(tab, timings={"well": 0})
    tab.run("states.length = 0; location.assign('/nothing')")
    if engine.name != "chromium":
        until(tab, "asked.length === 2")
    server.tell(emit=2)
    until(tab, "heard.length === 2")
    assert seen(tab)["errors"] == []
    assert set(seen(tab)["states"]) == {"live sse"}


def test_behaviour_31_a_reload_goes_on_from_the_cursor(tab: Tab, server: Unruly) -> None:
    """What happened while the page was away arrives; another person's page begins at now.

    Firefox may end the script of a page before it stores the last; an older cursor repeats, and
    loses nothing.
    """
    tab.open(server.page('auto={"name":"ada"}'))
    until_started(tab)
    server.tell(emit=2)
    until(tab, "heard.length === 2")
    tab.open("about:blank")
    server.tell(emit=2)
    tab.open(server.page('auto={"name":"ada"}'))
    until_started(tab)
    until(tab, "heard.at(-1) === 4")
    heard = seen(tab)["heard"]
    assert heard in ([1, 2, 3, 4], [2, 3, 4], [3, 4])
    tab.open("about:blank")
    server.tell(emit=2)
    tab.open(server.page('auto={"name":"ben"}'))
    until_started(tab)
    server.tell(emit=1)
    until(tab, "heard.length === 1")
    assert seen(tab)["heard"] == [7]


def test_behaviours_32_33_a_restart_is_one_gap(tab: Tab, server: Unruly) -> None:
    """A log that is lost is said once, and live events follow."""
    start(tab)
    server.tell(emit=2)
    until(tab, "heard.length === 2")
    server.tell(restart=True)
    until(tab, "heard.length === 3 && rt.state.isConnected")
    server.tell(emit=2)
    until(tab, "heard.length === 5")
    assert seen(tab)["heard"] == [1, 2, "gap", 1, 2]


def test_behaviour_38_two_clients_of_one_address(engine: Engine, tab: Tab, server: Unruly) -> None:
    """Both open: Firefox lets the second wait for the first where the cache may answer."""
    other = engine.tab()
    other.open(server.page())
    start(tab)
    start(other)
    server.until_open(2)


def test_behaviour_49_a_strict_policy(tab: Tab, server: Unruly) -> None:
    """Streams, polls and shared tabs, and the policy has nothing to say; it is in force."""
    start(tab, name="ada")
    server.tell(emit=1)
    until(tab, "heard.length === 1")
    server.tell(always=502, cut=True)
    until(tab, 'rt.state.activeMethod === "polling"')
    server.tell(emit=1)
    until(tab, "heard.length === 2")
    assert tab.run("return refused") == []
    tab.run("document.head.append(Object.assign(document.createElement('script'), {text: '1'}))")
    until(tab, "refused.length === 1")


def test_behaviour_50_in_a_worker(tab: Tab, server: Unruly) -> None:
    """Where there is no document it connects, hears, closes, and makes no global."""
    assert soon(tab, "window.ready")
    tab.run(
        "window.said = []; window.worker = new Worker('/worker.js', {type: 'module'});"
        "worker.onmessage = ({data}) => said.push(data);"
        "worker.onerror = ({message}) => said.push(`failed: ${message}`);"
        "worker.postMessage({url: new URL('rt', location).pathname, name: 'ada'})"
    )
    assert soon(tab, "said.includes('live')"), tab.run("return said")
    server.tell(emit=2)
    assert soon(tab, "said.includes(2)"), tab.run("return said")
    tab.run("worker.postMessage(null)")
    assert soon(tab, "said.at(-1) === 0"), tab.run("return said")
    assert tab.run("return said.filter((each) => each >= 0)") == [1, 2, 0]
    server.until_open(0)
    tab.run("worker.terminate()")


def test_behaviour_55_what_did_not_work_lately_is_remembered(tab: Tab, server: Unruly) -> None:
    """A page that fell back and is loaded again begins with polls, and looks soon."""
    server.tell(always=502)
    tab.open(server.page('auto={"name":"ada","timings":{"probe":60000}}'))
    until_started(tab)
    tab.open("about:blank")
    server.tell(always=None)
    tab.open(server.page('auto={"name":"ada","timings":{"probe":60000}}'))
    until_started(tab)
    until(tab, 'rt.state.activeMethod === "sse"')
    assert seen(tab)["asked"][0] == "polling"
