"""The same results with every Redis, Valkey and redis-py that is supported."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import ROOT

FOLDER = Path(sys.prefix, "versions")
VERSIONS = [
    line.split()
    for line in (ROOT / "tests" / "versions.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
CHOSEN = (
    "share_one_log or repeated_event or r53 or (r55 and killed) or FLUSHALL or r33 or r47"
    " or (r64 and NOAUTH) or replicas or read_in_steps or by_bytes"
)
"""Of the tests of the bus, those in which versions could differ: scripts, streams, subscriptions,
errors, timeouts."""


def find(name: str) -> Path:
    """Where a version is; skips where it is not installed, never under CI."""
    (inside,) = [inside for each, _, inside in VERSIONS if each == name]
    found = FOLDER / name / inside
    if not found.exists():
        assert not os.environ.get("CI"), f"no {name}; under CI nothing is skipped"
        pytest.skip(f"no {name} here (make .venv/.versions)")
    return found


def begin(name: str, folder: Path) -> "subprocess.Popen[bytes]":
    """Run the chosen tests with this version; what they print goes into the folder."""
    found = find(name)
    client = [str(found.parent)] if found.is_dir() else []
    environ = os.environ | {
        "PYTHONPATH": os.pathsep.join([*client, str(ROOT), str(ROOT / "tests")]),
        "REDIS_SERVER": "redis-server" if client else str(found),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", CHOSEN]
    with (folder / name).open("wb") as output:
        return subprocess.Popen(
            [*command, "test_redis.py"],
            cwd=ROOT / "tests",
            env=environ,
            stdout=output,
            stderr=output,
        )


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, tuple["subprocess.Popen[bytes]", Path]]]:
    """All versions at once: their tests wait more than they work."""
    folder = tmp_path_factory.mktemp("versions")
    names = [name for name, _, inside in VERSIONS if (FOLDER / name / inside).exists()]
    running = {name: (begin(name, folder), folder / name) for name in names}
    yield running
    for process, _ in running.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", [name for name, _, _ in VERSIONS])
def test_r67_other_versions_give_the_same_results(
    name: str, runs: dict[str, tuple["subprocess.Popen[bytes]", Path]]
) -> None:
    """The tests of the bus, run again."""
    find(name)
    process, output = runs[name]
    code = process.wait(300)
    told = output.read_text()
    assert code == 0, told[-4000:]
    assert " passed" in told
    assert "skipped" not in told
