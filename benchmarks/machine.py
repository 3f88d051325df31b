"""What the measuring needs of the machine: cores, programs, memory, CPU time."""

import os
import resource
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import psutil

HERE = Path(__file__).parent
ROOT = HERE.parent
BUILD = Path(tempfile.gettempdir()) / f"flask-hybrid-bench-{os.getuid()}"


def cores() -> tuple[set[int], set[int]]:
    """The server's and the load client's; the same one where there is only one."""
    available = sorted(os.sched_getaffinity(os.getppid()))
    return {available[0]}, {available[-1]}


def raise_descriptors() -> int:
    """As many as this user may have; how many that are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def compiled(source: Path) -> Path:
    """The program of a C source, compiled anew when that has changed. Raises `Missing`."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Missing("a C compiler (cc)")
    BUILD.mkdir(exist_ok=True)
    program = BUILD / source.stem
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        fresh = program.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, "-O2", "-o", fresh, source], check=True, stderr=subprocess.PIPE)
        fresh.replace(program)
    return program


class Missing(Exception):
    """Something that is not installed here."""


class Pinned:
    """A process on some cores, with all its children."""

    def __init__(self, arguments: Iterable[str | Path], on: set[int], **options: object) -> None:
        self.process = subprocess.Popen(
            [str(argument) for argument in arguments],
            preexec_fn=lambda: os.sched_setaffinity(0, on),
            **options,  # type: ignore[call-overload]  # whatever Popen takes
        )

    def family(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def cpu_seconds(self) -> float:
        times = [process.cpu_times() for process in self.family()]
        return sum(at.user + at.system for at in times)

    def memory(self) -> int:
        """Bytes that are resident; what processes share is counted once."""
        total = 0
        for process in self.family():
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            total += sum(
                int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")
            )
        return total * 1024

    def descriptors(self) -> int:
        return sum(process.num_fds() for process in self.family())

    def end(self) -> None:
        """Kill them all: what they hold open is of no interest any more."""
        try:
            family = self.family()
        except psutil.NoSuchProcess:
            family = []
        for process in reversed(family):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        self.process.wait(20)
