"""A client that follows a stream through its server's restarts, as the bundled one does."""

import json
import random
import threading
import time

from servers import DEADLINE, RawStream


class Follower:
    """Reads numbers from a stream; comes back when a goodbye or a broken connection says so.

    `seen` is all the numbers in the order of their arrival, `gaps` the reasons that it was told,
    `goodbyes` the data of each `hybrid.bye`, `refused` the statuses other than 200.
    """

    def __init__(self, port: int, cursor: str, query: str = "") -> None:
        self.port = port
        self.cursor = cursor
        self.query = query
        self.seen: list[int] = []
        self.gaps: list[str] = []
        self.goodbyes: list[dict[str, object]] = []
        self.refused: list[int] = []
        self.connects = 0
        self.broken = 0
        self.error: BaseException | None = None
        self._enough = threading.Event()
        self._last = -1
        self.thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self.thread.start()

    def until(self, last: int) -> None:
        """Follow until this number has been seen."""
        self._last = last
        end = time.monotonic() + 2 * DEADLINE
        while self.thread.is_alive() and not (self.seen and self.seen[-1] >= last):
            assert time.monotonic() < end, f"only {self.seen[-1:]}, {self.goodbyes}, {self.gaps}"
            time.sleep(0.02)
        self._enough.set()

    def close(self) -> None:
        self._enough.set()
        self.thread.join(DEADLINE)
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._enough.is_set():
                wait = self._once()
                # the client's jitter
                self._enough.wait(wait + random.random() * 0.2)
        except BaseException as error:
            self.error = error

    def _once(self) -> float:
        """One connection; seconds until the next."""
        try:
            stream = RawStream(self.port, f"since={self.cursor}{self.query}")
        except OSError:
            return 0.2
        with stream:
            stream.sock.settimeout(0.2)
            taken = 0
            while not self._enough.is_set():
                try:
                    stream._receive()
                except TimeoutError:
                    continue
                except (OSError, AssertionError):
                    stream.ended = True  # nobody there, or cut
                if not stream.status and b"\r\n\r\n" in stream.raw:
                    if stream.read_head() != 200:
                        self.refused.append(stream.status)
                        return float(stream.headers["retry-after"])
                    self.connects += 1
                if stream.status:
                    stream._feed()
                for block in stream.blocks[taken:]:
                    taken += 1
                    if block.type == "tick":
                        self.seen.append(json.loads(block.data))
                    elif block.type == "hybrid.gap":
                        self.gaps.append(json.loads(block.data)["reason"])
                    elif block.type == "hybrid.bye":
                        self.goodbyes.append(json.loads(block.data))
                self.cursor = stream.parser.last_event_id or self.cursor
                if stream.ended:
                    if stream.blocks and stream.blocks[-1].type == "hybrid.bye":
                        return float(json.loads(stream.blocks[-1].data)["after"]) / 1000
                    self.broken += 1
                    return 0.2
        return 0.0
