"""The suite of benchmarks runs; what it measures is nobody's to assert."""

import os
import subprocess
import sys

import pytest

from servers import ROOT

pytestmark = pytest.mark.server


def test_the_suite_runs_and_loses_nothing() -> None:
    """With tiny numbers: each program of it starts, counts right, and ends."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "--quick"),
            *("--only", "flask-hybrid,C loop,queue per client"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for row in (
        "| flask-hybrid |",
        "| C loop over send() |",
        "| x queue per client (Flask) |",
        "events to one user of 200:",
        "reconnect at once, 20 events to replay each:",
        "empty poll, to a bare Flask view",
        "| 1 | 120 | 130 |",
    ):
        assert row in done.stdout, done.stdout
    assert "failed" not in done.stdout.lower()
    assert "lost" not in done.stdout
