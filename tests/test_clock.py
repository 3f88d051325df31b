"""A clock that is set while the process runs: said, and the monitor goes on."""

import logging
import time
from types import SimpleNamespace

import pytest

from hybrid.monitor.alerts import Rule, Scene
from hybrid.monitor.monitor import Monitor
from sites import Site


@pytest.mark.parametrize("moved", [-3600.0, 3600.0])
def test_the_monitor_goes_on_when_the_clock_is_set(
    site: Site, moved: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its seconds are there at once, and an alert takes the time that it always takes."""
    clock = SimpleNamespace(wall=time.time(), monotonic=time.monotonic())
    monkeypatch.setattr(
        "hybrid.monitor.monitor.time",
        SimpleNamespace(time=lambda: clock.wall, monotonic=lambda: clock.monotonic),
    )
    wrong = [True]

    def read(_scene: Scene) -> tuple[float, str]:
        return float(wrong[0]), "it is wrong"

    told: list[str] = []
    monitor = Monitor(
        site.app.extensions["hybrid"].instance(),
        interval=5,
        rules=[Rule("wrong", "warning", read, 0, 0, hold=8, rest=4)],
        on_change=lambda change: told.append(change.kind),
    )

    def go_on(seconds: int) -> None:
        for _ in range(seconds):
            clock.wall += 1
            clock.monotonic += 1
            monitor._tick(0.0)
            monitor._beat()

    def newest() -> float:
        at: list[int] = monitor.history(1)["at"]
        assert at == sorted(set(at))
        return float(clock.wall) - at[-1]

    go_on(6)
    assert newest() < 4
    clock.wall += moved
    with caplog.at_level(logging.WARNING, "hybrid"):
        go_on(1)
    assert f"was set {'back' if moved < 0 else 'forward'} by 3600.0 s" in caplog.text
    assert told == [], "6 of 8 seconds"
    go_on(5)
    assert newest() < 4
    assert told == ["raised"]
    wrong[0] = False
    go_on(2)
    clock.wall -= moved
    go_on(6)
    assert told == ["raised", "resolved"]
