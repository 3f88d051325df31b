"""What an import does and may: nothing is started, and the rooms' imports run downwards."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hybrid

PACKAGE = Path(hybrid.__file__).parent

ROOMS = [
    "errors",
    "audience",
    "events",
    "wire",
    "eventsource",
    "histogram",
    "distinct",
    "log",
    "fanout",
    "config",
    "bus",
    "connection",
    "provisional",
    "bulletin",
    "live",
    "readers",
    "shutout",
    "wheel",
    "sockets",
    "hub",
    "pump",
    "drain",
    "stream",
    "recheck",
    "reach",
    "limits",
    "slots",
    "auth",
    "instance",
    "signals",
    "monitor",
    "publisher",
    "doctor",
    "cli",
    "__main__",
    "commit",
    "hooks",
    "neighbours",
    "encoding",
    "application",
    "history",
    "routes",
    "extension",
    "compat",
    "testing",
]
"""From the bottom up: a room imports rooms before it and its own modules, nothing else of ours."""

PURE = ROOMS[: ROOMS.index("bus")]
WORLDLY = {"gevent", "greenlet", "flask", "werkzeug", "redis", "time", "random", "socket"}

FILES = sorted(PACKAGE.rglob("*.py"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST, checking: bool = False) -> Iterator[tuple[str, int, bool]]:
    """Each imported name with its line, wherever in the file, and whether only for types."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, checking
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports name their whole way here"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno, checking
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for inner in node.body:
                yield from imports(ast.Module([inner], []), True)
            for inner in node.orelse:
                yield from imports(ast.Module([inner], []), checking)
        else:
            yield from imports(node, checking)


@each_file
def test_imports_run_downwards(path: Path) -> None:
    """Who reads a room needs to know only the rooms below it."""
    tree = ast.parse(path.read_text())
    room = room_of(path)
    if room == "__init__":
        for name, line, for_types in imports(tree):
            assert for_types or not name.startswith("hybrid"), f"{path}:{line} loads {name}"
        return
    assert room in ROOMS, f"{room} is a new room: give it its place in ROOMS"
    for name, line, for_types in imports(tree):
        parts = name.split(".")
        if parts[0] != "hybrid" or len(parts) == 1 or for_types:
            continue
        assert parts[1] in ROOMS, f"{path}:{line} takes {name} by the front door"
        below = parts[1] == room or ROOMS.index(parts[1]) < ROOMS.index(room)
        assert below, f"{path}:{line} imports upwards: {name}"
    # `import hybrid` is for the version; its names would be a way round the order
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "hybrid":
            assert node.attr == "__version__", f"{path}:{node.lineno} uses hybrid.{node.attr}"


@pytest.mark.parametrize("room", PURE)
def test_the_lower_rooms_are_pure(room: str) -> None:
    """Values and bytes only: no clock, no chance, no network, no framework, not even for types."""
    for name, line, _ in imports(ast.parse((PACKAGE / f"{room}.py").read_text())):
        assert name.split(".")[0] not in WORLDLY, f"{room}.py:{line} imports {name}"


def test_the_check_of_imports_finds_what_it_looks_for() -> None:
    """Inside functions and classes, in branches, and in both spellings."""
    source = """
import a, b.c
from d import e
if TYPE_CHECKING:
    from f import g
else:
    import h
class K:
    def m(self):
        try:
            from i.j import k as l
        except ImportError:
            import m
"""
    assert list(imports(ast.parse(source))) == [
        ("a", 2, False),
        ("b.c", 2, False),
        ("d.e", 3, False),
        ("f.g", 5, True),
        ("h", 7, False),
        ("i.j.k", 11, False),
        ("m", 13, False),
    ]


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


AUDITED = """
import _thread, sys
STARTS = {
    "socket.__new__", "socket.connect", "socket.bind", "socket.getaddrinfo",
    "subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system",
}
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event in STARTS else None)
# Not every Python audits the start of a thread; `threading` is not loaded yet.
def watched(start):
    return lambda *args, **named: (seen.append("thread"), start(*args, **named))[1]
assert "threading" not in sys.modules
for name in ("start_new_thread", "start_joinable_thread"):
    if hasattr(_thread, name):
        setattr(_thread, name, watched(getattr(_thread, name)))
{body}
import gc
if "greenlet" in sys.modules:
    import greenlet
    seen += [repr(thing) for thing in gc.get_objects()
             if isinstance(thing, greenlet.greenlet) and thing.parent is not None]
print(seen)
"""


@pytest.mark.parametrize(
    "body", ["import hybrid", "import hybrid.extension", "import hybrid.routes"]
)
def test_r12_an_import_starts_nothing(body: str) -> None:
    """A server that loads the application and then forks shares nothing between its workers."""
    assert run(AUDITED.replace("{body}", body)).strip() == "[]"


def test_r12_an_application_starts_nothing_before_its_first_request() -> None:
    """Neither does `init_app`: that too happens before the fork."""
    body = "import flask, hybrid\nhybrid.Hybrid(flask.Flask('app'))"
    assert run(AUDITED.replace("{body}", body)).strip() == "[]"


def test_r12_the_audit_sees_what_it_looks_for() -> None:
    """Else the tests above would pass on anything."""
    body = "import socket, threading\nsocket.socket().close()\nthreading.Thread(target=int).start()"
    assert run(AUDITED.replace("{body}", body)).strip() == "['socket.__new__', 'thread']"


@pytest.mark.parametrize("use", ["hybrid", "hybrid.InvalidEvent, hybrid.Identity, hybrid.Cursor"])
def test_the_package_alone_needs_no_server(use: str) -> None:
    """A process that only names an error or an identity loads neither Flask nor gevent."""
    found = run(f"import sys, hybrid\n{use}\nprint(sorted(set(sys.modules) & {WORLDLY}))")
    assert not {"gevent", "greenlet", "flask", "werkzeug", "redis"} & set(ast.literal_eval(found))


def test_every_public_name_is_there() -> None:
    """The names of the contract load; any other is an AttributeError as of any module."""
    for name in hybrid.__all__:
        assert getattr(hybrid, name).__name__ == name
    assert {"Hybrid", "Identity", "HybridError"} <= set(hybrid.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = hybrid.Nothing
