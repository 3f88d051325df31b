"""Each fault of Redis has one sentence, and the log, health, alert, monitor and doctor all say it.

The table of docs/redis.md is followed row by row, against a real Redis with that fault.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hybrid.bus.diagnosis import DIAGNOSES, diagnose
from hybrid.config import Settings
from hybrid.doctor.shared import look_at_log
from hybrid.monitor.alerts import RULES
from redises import RedisServer, redis_server
from servers import DEADLINE, ROOT
from sites import Site

ROW = re.compile(r"^\| (?P<fault>[\w -]+) \| (?P<sentence>[^|]+?) \| (?P<doctor>(?:`.*)) \|$", re.M)
TABLE = {
    row["fault"]: (row["sentence"], re.findall(r"`([^`]+)` FAIL", row["doctor"]))
    for row in ROW.finditer((ROOT / "docs/redis.md").read_text())
}
SHA = re.compile("[0-9a-f]{40}")
USER = "worker"
RIGHTS = ["on", "nopass", "resetchannels", "~{hybrid}:*", "&{hybrid}:*", "+@all"]


class Fault:
    """A Redis in which something can go wrong, and be repaired."""

    def __init__(self, server: RedisServer, stack: ExitStack) -> None:
        self.server = server
        self.stack = stack
        self.client = stack.enter_context(server.client())

    @property
    def url(self) -> str:
        return f"redis://{USER}:pw@127.0.0.1:{self.server.port}/0"

    def begin(self, fault: str) -> None:
        getattr(self, fault.replace("-", "_").replace(" ", "_"))()

    def away(self) -> None:
        self.server.kill()

    def full(self) -> None:
        self.client.config_set("maxmemory", "1")

    def read_only(self) -> None:
        self.client.replicaof("127.0.0.1", 1)

    def moved(self) -> None:
        node = self.client.execute_command("CLUSTER", "MYID")
        slot = self.client.execute_command("CLUSTER", "KEYSLOT", "{hybrid}:log")
        other = self.stack.enter_context(
            redis_server(self.server.folder / "other", "--cluster-enabled", "yes")
        )
        with other.client() as client:
            elsewhere = client.execute_command("CLUSTER", "MYID")
            self.client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port)
            end = time.monotonic() + DEADLINE
            while elsewhere not in str(self.client.execute_command("CLUSTER", "NODES")):
                assert time.monotonic() < end, node
                time.sleep(0.02)
        self.client.execute_command("FLUSHALL")
        self.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", elsewhere)

    def loading(self) -> None:
        self.client.config_set("rdbcompression", "no")  # so that it answers between two keys
        with self.client.pipeline(transaction=False) as pipe:
            for number in range(5000):
                pipe.set(f"other:{number}", "x" * 2000)
            pipe.execute()
        self.client.save()
        self.server.kill()
        slow = ["--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024"]
        starting = threading.Thread(target=self.server.start, args=slow)
        self.stack.callback(starting.join, DEADLINE)
        self.stack.callback(self.client.config_set, "key-load-delay", 0)
        starting.start()

    def wrong_type(self) -> None:
        self.client.delete("{hybrid}:meta")
        self.client.set("{hybrid}:meta", "mine")

    def no_permission(self) -> None:
        self.client.execute_command("ACL", "SETUSER", USER, "-xadd")

    def wrong_password(self) -> None:
        self.client.execute_command("ACL", "SETUSER", USER, "resetpass", ">other")
        self.client.client_kill_filter(_type="normal", skipme=True)
        self.client.client_kill_filter(_type="pubsub")


@pytest.fixture
def fault(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fault]:
    options: list[str] = ["--user", USER, *RIGHTS, "--user", "default", "on", "nopass", "~*"]
    options += ["&*", "+@all"]
    if request.param == "moved":
        options += ["--cluster-enabled", "yes", "--cluster-node-timeout", "500"]
    with ExitStack() as stack, redis_server(tmp_path / "redis", *options) as server:
        fault = Fault(server, stack)
        if request.param == "moved":
            fault.client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
            until(
                lambda: "cluster_state:ok" in str(fault.client.execute_command("CLUSTER", "INFO")),
                lambda: "no cluster",
            )
        yield fault
        stack.close()


def until(true: Callable[[], Any], why: Callable[[], Any]) -> None:
    end = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < end, why()
        time.sleep(0.02)


def test_the_table_has_every_fault() -> None:
    assert len(TABLE) == 8, TABLE
    told = {each.what for each in DIAGNOSES.values()} | {diagnose(OSError("x")).what}
    assert {sentence for sentence, _ in TABLE.values()} <= told


@pytest.mark.parametrize(("fault", "row"), [(row, row) for row in TABLE], indirect=["fault"])
def test_everybody_says_the_same_of_a_fault(
    fault: Fault, row: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log with the fix, health without an address, alert, monitor and doctor."""
    sentence, subjects = TABLE[row]
    site = Site(URL=fault.url, HEARTBEAT_SECONDS=25)
    site.realtime.can_monitor(lambda _: True)
    state = site.app.extensions["hybrid"]
    instance = state.instance()
    until(lambda: instance.bus.state == "ok", lambda: instance.bus.trouble)

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records]

    try:
        with caplog.at_level(logging.WARNING, "hybrid"):
            fault.begin(row)
            site.emit("tick")
            until(lambda: instance.bus.headline == sentence, lambda: instance.bus.trouble)
            until(lambda: any(sentence in line and "Fix: " in line for line in lines()), lines)
        ready = site.get("/health/ready")
        assert ready.status_code == 200
        assert sentence in ready.get_json()["alerts"]
        assert str(fault.server.port) not in ready.text
        monitor = site.get("/monitor", headers={"Accept": "application/json"}).get_json()
        assert monitor["instance"]["bus_trouble"].startswith(sentence)
        (rule,) = (each for each in RULES if each.name == "redis_away")
        read = rule.read(state.monitor()._scene(state.monitor().picture()))
        assert read is not None
        assert read[0] == 1
        assert sentence in read[1]
        settings = Settings(url=fault.url)
        found = [finding for finding in look_at_log(settings) if finding.verdict == "fail"]
        assert {each.subject for each in found} == set(subjects), found
        assert any(each.says.startswith(sentence) and each.fix for each in found), found
        # What waits is stored, and was no event's fault: nothing is dropped for it.
        assert instance.bus.waiting == 1
        assert not SHA.search(caplog.text + str(found) + instance.bus.trouble), "a script's hash"
    finally:
        instance.stop()
        site.app.extensions["hybrid"].forget()


def test_an_order_that_reaches_nobody_else_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it returns is of this process; that the others wait for it is in the log."""
    with redis_server(tmp_path / "redis") as server:
        site = Site(URL=server.url, HEARTBEAT_SECONDS=25)
        instance = site.app.extensions["hybrid"].instance()
        try:
            until(lambda: instance.bus.state == "ok", lambda: instance.bus.trouble)
            with caplog.at_level(logging.WARNING, "hybrid"):
                assert site.realtime.revoke(user="alice") == 0
                assert "alice" not in caplog.text
                server.kill()
                assert site.realtime.revoke(user="alice") == 0
            (line,) = (each.getMessage() for each in caplog.records if "alice" in each.message)
            assert line.startswith("0 streams of 'alice' are ended in this process alone (Redis is")
        finally:
            instance.stop()
            site.app.extensions["hybrid"].forget()
