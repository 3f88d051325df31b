"""The load client from Python: starts `load.c` and speaks with it."""

import subprocess
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from benchmarks.machine import HERE, Pinned, compiled


@dataclass(frozen=True)
class Round:
    """One emit to all streams: seconds to the last delivery, and those the client slept."""

    took: float
    waited: float
    seen: int
    bytes: int
    answers: int


@dataclass(frozen=True)
class Latency:
    """Seconds."""

    count: int
    p50: float
    p99: float
    most: float


class Load:
    """A load client of a port. On any failure of the server it says what it saw and goes on."""

    def __init__(self, port: int, on: set[int]) -> None:
        self._program = Pinned(
            [compiled(HERE / "load.c"), str(port)],
            on,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.open_now = 0

    def _ask(self, line: str) -> list[str]:
        process = self._program.process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline().split()
        if not answer or answer[0] == "what?":
            raise RuntimeError(f"the load client does not know {line!r}, or is gone")
        words: list[str] = answer[1:]
        return words

    def open(
        self, path: str, count: int, *, ready: str = "-", expect: int = 0, parallel: int = 128
    ) -> float:
        """More streams until there are `count`; the seconds it took. Raises for any refused."""
        kind = f"open {count} {parallel} {ready} {expect}"
        return self._opened(self._ask(f"{kind} {path}"), count)

    def open_websockets(self, path: str, count: int, *, parallel: int = 64) -> float:
        return self._opened(self._ask(f"websockets {count} {parallel} {path}"), count)

    def _opened(self, answer: list[str], count: int) -> float:
        self.open_now = int(answer[0])
        if self.open_now < count:
            raise RuntimeError(f"{self.open_now} of {count} streams open, {answer[1]} refused")
        return float(answer[2])

    def body(self, text: str) -> None:
        """What the next rounds post."""
        self._ask(f"body {text}")

    def round(self, path: str, expected: int, *, repeat: int = 1, quiet: float = 5.0) -> Round:
        """Emit, and read until `expected` deliveries, or until nothing came for `quiet` s."""
        took, waited, seen, size, answers = self._ask(
            f"round {expected} {repeat} {round(quiet * 1000)} {path}"
        )
        return Round(float(took), float(waited), int(seen), int(size), int(answers))

    def latency(self) -> Latency:
        """That of all deliveries since the last call."""
        return _latency(self._ask("latency"))

    def requests(self, path: str, connections: int, seconds: float) -> tuple[float, int, Latency]:
        """GET in a closed loop: requests a second, how many failed, their latency."""
        done, bad, took, *latency = self._ask(f"requests {connections} {seconds} {path}")
        return int(done) / float(took), int(bad), _latency(latency)

    def probe(self, path: str, interval_ms: float, seconds: float) -> Latency:
        """One GET at a time, at rest in between: what another visitor waits."""
        return _latency(self._ask(f"probe {interval_ms} {seconds} {path}"))

    def close_streams(self) -> None:
        self._ask("close")
        self.open_now = 0

    def close(self) -> None:
        self._program.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _latency(words: list[str]) -> Latency:
    count, p50, p99, most = words
    return Latency(int(count), float(p50), float(p99), float(most))
