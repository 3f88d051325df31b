"""Pages of the documentation, followed to the letter by somebody in a terminal.

Each block of code on such a page is one of these; what it is says a comment before it, which
readers do not see:

    <!-- file: app.py -->       is saved under that name
    <!-- not run: why -->       is not
    (none, ```console)          is typed in: lines that begin with `$ ` are commands, the others
                                what they print

What ends with `&`, and servers, run to the end of the page. The lines that the page shows after a
command are printed by that command, and the last of them, or all, by one that runs on. They are
compared loosely: numbers and ids may be others, `…` is any text.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from servers import ROOT, free_port

BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- (?P<mark>[^\n]*?) -->\n(?:[ ]*\n)?(?P=indent))?"
    r"(?P<fence>`{3,})(?P<language>[a-z{}-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
PATIENCE = 60.0
"""Seconds for anything that is typed in: Celery alone takes ten to start on a busy machine."""
SERVERS = ("gunicorn ", "flask run", "python app.py")


@dataclass(frozen=True)
class Block:
    """A block of code: its language, its text, and what the comment before it says."""

    language: str
    text: str
    mark: str
    line: int

    @property
    def file(self) -> str | None:
        return self.mark.removeprefix("file: ") if self.mark.startswith("file: ") else None

    @property
    def excuse(self) -> str | None:
        """Why it is not run."""
        return self.mark.removeprefix("not run: ") if self.mark.startswith("not run: ") else None


def blocks(page: Path) -> list[Block]:
    """The blocks of code of a page, in order."""
    text = page.read_text()
    return [
        Block(
            found["language"],
            re.sub(f"^{found['indent']}", "", found["text"], flags=re.MULTILINE),
            found["mark"] or "",
            text.count("\n", 0, found.start()) + 1,
        )
        for found in BLOCK.finditer(text)
    ]


def loosely(line: str) -> re.Pattern[str]:
    """What a line of a page stands for."""
    parts = re.split(r"([A-Za-z0-9_~-]{16,}|(?<=\.)[0-9a-f]{8}\b|\d+(?:\.\d+)?|…)", line.strip())
    for at, part in enumerate(parts):
        if part == "…":
            parts[at] = ".*"
        elif re.fullmatch(r"\d+(\.\d+)?", part):
            parts[at] = r"\d+(?:\.\d+)?"
        elif re.fullmatch("[0-9a-f]{8}", part):
            parts[at] = "[0-9a-f]{8}"
        elif re.fullmatch("[A-Za-z0-9_~-]{16,}", part) and re.search("[0-9]", part):
            parts[at] = "[A-Za-z0-9_~-]+"
        else:
            parts[at] = re.escape(part)
    return re.compile(r"\s*" + "".join(parts))


def shows(printed: str, expected: list[str]) -> bool:
    """Whether the lines are there, in their order."""
    lines = iter(printed.splitlines())
    return all(
        any(pattern.fullmatch(line.rstrip()) for line in lines)
        for pattern in map(loosely, expected)
    )


class Terminal:
    """A folder, a shell, and a port of its own in place of 8000 and 6379."""

    def __init__(self, folder: Path, *, redis_port: int | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self._redis_port = redis_port
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []
        (folder / ".curlrc").write_text("silent\nshow-error\n")
        clean = {key: value for key, value in os.environ.items() if "HYBRID_" not in key}
        self._environ = clean | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
            "PYTHONUNBUFFERED": "1",
            "CURL_HOME": str(folder),
            "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{self.port} --no-control-socket",
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def follow(self, page: Path) -> None:
        """Do what the page says, from its top to its end."""
        for block in blocks(page):
            place = f"{page.name}:{block.line}"
            if block.excuse is not None:
                assert len(block.excuse) > 10, f"{place}: an excuse says why"
            elif block.file:
                target = self.folder / block.file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(self._here(block.text))
            elif block.language == "console":
                for line, expected in commands(block.text):
                    if line.startswith("export "):
                        name, _, value = line.removeprefix("export ").partition("=")
                        self._environ[name] = self._here(value)
                    else:
                        self.type(line, expected)
            else:
                raise AssertionError(f"{place}: a block that nothing runs, and nobody says why")

    def type(self, line: str, expected: list[str]) -> None:
        """Type a command in; wait for what it prints and, without an `&`, for its end."""
        before = [len(text) for text in self._printed()] + [0]
        endless = line.endswith("&") or line.startswith(SERVERS)
        screen = self.folder / f".screen-{len(self._running)}"
        with screen.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", "exec " * endless + self._here(line.removesuffix("&"))],
                cwd=self.folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._running.append((process, screen))
        if line.startswith(SERVERS):
            self._until(process, self._listens, f"$ {line}\nnever listened")
        if not endless:
            code = process.wait(PATIENCE)
            assert code == 0, f"$ {line}\nended with {code}\n{screen.read_text()}"

        here = [self._here(each) for each in expected]

        def shown() -> bool:
            printed = self._printed()
            *others, own = [text[start:] for text, start in zip(printed, before, strict=True)]
            return any(
                shows(own, here[:count])
                and any(shows(text, here[count:]) for text in ["", *others])
                for count in range(len(here) + 1)
            )

        self._until(
            process if endless else None, shown, "\n".join([f"$ {line}", "has to print", *here])
        )

    def close(self) -> None:
        """End what still runs: servers with their workers, at once."""
        for process, _ in reversed(self._running):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE)

    def _printed(self) -> list[str]:
        """What each command has printed so far."""
        return [screen.read_text(errors="replace") for _, screen in self._running]

    def _until(
        self, process: "subprocess.Popen[bytes] | None", done: Callable[[], bool], why: str
    ) -> None:
        end = time.monotonic() + PATIENCE
        while not done():
            printing = [process] if process else [each for each, _ in self._running]
            over = time.monotonic() > end or all(each.poll() is not None for each in printing)
            # once more: the last of it may have come between the two looks
            assert not over or done(), "\n".join([why, "the screen:", *self._printed()])
            time.sleep(0.02)  # it writes to a file and listens when it can: nobody tells

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE).close()
        except OSError:
            return False
        return True

    def _here(self, text: str) -> str:
        """The page's addresses are this test's."""
        text = re.sub(r"(localhost|127\.0\.0\.1):8000\b", f"127.0.0.1:{self.port}", text)
        if "localhost:6379" in text:
            assert self._redis_port is not None, "the page wants a Redis"
            text = text.replace("localhost:6379", f"127.0.0.1:{self._redis_port}")
        return text


def commands(transcript: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a transcript and the lines that follow each."""
    line, expected, continued = "", list[str](), False
    for each in transcript.splitlines():
        if continued:
            line = f"{line.removesuffix(chr(92))} {each.removeprefix('> ').strip()}"
        elif each.startswith("$ "):
            if line:
                yield line, expected
            line, expected = each[2:].rstrip(), []
        elif each.strip():
            expected.append(each)
        continued = each.endswith("\\")
    yield line, expected


@contextlib.contextmanager
def followed(page: Path, folder: Path, *, redis_port: int | None = None) -> Iterator[Terminal]:
    """The page has been followed to its end, and its servers still run."""
    terminal = Terminal(folder, redis_port=redis_port)
    try:
        terminal.follow(page)
        yield terminal
    finally:
        terminal.close()
