"""A server that speaks the contract and misbehaves on command: cut in the middle of a block, mute,
stalled, refused, restarted. `python tests/unruly.py` prints its port and serves until its input
ends. Everything lies in rooms, so that tests do not meet: /r/<room>/...

GET  page?strip=a,b&auto={...}    a page with window.start(options), under a strict policy
GET  rt/sse, rt/polling           the contract
POST control                      {"emit": n} and what a Room has; answers the status
"""

import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import gevent
from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer

PATIENCE = 15  # seconds
STATIC = Path(__file__).parent.parent / "hybrid" / "static"
PAGE = (
    '<!doctype html><meta charset="utf-8"><title>unruly</title>'
    '<script type="module" src="/page.js"></script>'
)
POLICY = "default-src 'none'; script-src 'self'; connect-src 'self'"
JS = Path(__file__).parent / "js"
SCRIPTS = ("page.js", "worker.js")


class Room:
    """One test's log and what is to go wrong."""

    def __init__(self) -> None:
        self.epoch = f"e{time.monotonic_ns()}"
        self.log: list[str] = []  # ids; that of event n is at index n - 1
        self.floor = 0
        self.changed = Event()
        self.heartbeat = 15_000
        self.sse: list[Any] = []  # what the next streams do; then the last again if `always`
        self.polls: list[Any] = []
        self.always: Any = None  # what every stream does when `sse` is empty
        self.requests: list[dict[str, Any]] = []
        self.open: dict[int, socket.socket] = {}
        self.turned = Event()  # a stream was opened, or has ended
        self.size = 0  # characters in each event besides its number

    def emit(self, count: int) -> None:
        for _ in range(count):
            self.log.append(f"{self.epoch}-{len(self.log) + 1}")
        self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed.clear()

    def turn(self) -> None:
        self.turned.set()
        self.turned.clear()

    def cursor(self, offset: int | None = None) -> str:
        at = len(self.log) if offset is None else offset
        return f"{self.epoch}.{at}.{self.log[at - 1] if at else 'origin'}"

    def resolve(self, cursor: str | None) -> tuple[int, str | None]:
        """The offset from which to go on, and the reason of the gap if there is one."""
        if not cursor:
            return len(self.log), None
        epoch, _, rest = cursor.partition(".")
        offset = rest.split(".")[0]
        if epoch != self.epoch:
            return len(self.log), "epoch"
        if not offset.isdigit() or not self.floor <= int(offset) <= len(self.log):
            return len(self.log), "expired"
        return int(offset), None

    def control(self, wish: dict[str, Any]) -> dict[str, Any]:
        for name, value in wish.items():
            if name == "emit":
                self.emit(value)
            elif name == "cut":  # every open stream, without a word
                for sock in list(self.open.values()):
                    reset(sock)
            elif name == "restart":  # and what was kept is lost
                self.epoch = f"e{time.monotonic_ns()}"
                self.log = []
                self.control({"cut": True})
            elif name == "until_open":  # so many streams; not for ever
                while len(self.open) != value and self.turned.wait(PATIENCE):
                    pass
            else:
                setattr(self, name, value)
        return {
            "open": len(self.open),
            "requests": self.requests,
            "length": len(self.log),
            "cursor": self.cursor(),
        }


ROOMS: dict[str, Room] = {}


def reset(sock: socket.socket) -> None:
    """End a connection with RST, as a crash does."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the other end, or its own handler, was faster
    sock.close()


def answer(sock: socket.socket, status: int, kind: str, body: str, **headers: str) -> None:
    headers.setdefault("Cache_Control", "no-store")
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", "Connection: close"]
    lines += [f"Content-Length: {len(body.encode())}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    sock.sendall(("\r\n".join([*lines, "", ""]) + body).encode())


def refuse(sock: socket.socket, mode: Any) -> bool:
    """Whether `mode` is an answer that is none: a status, [status, Retry-After], reset, html."""
    if mode == "reset":
        reset(sock)
    elif mode == "html":
        answer(sock, 200, "text/html", "<p>data: 1\n\n")
    elif isinstance(mode, int):
        answer(sock, mode, "application/problem+json", "{}")
    elif isinstance(mode, list):
        answer(sock, mode[0], "application/problem+json", "{}", Retry_After=str(mode[1]))
    else:
        return False
    return True


def gone(sock: socket.socket) -> None:
    """Until the client is no longer there."""
    try:
        while sock.recv(4096):
            pass
    except OSError:
        pass


def stream(room: Room, sock: socket.socket, since: str | None, mode: Any) -> None:
    """`mode`: ok; mute (a head and nothing else); stall (nothing after what was there at first);
    comments (no events, only comments); ids (no events, only id-only blocks); bye; {"cut": n}: n
    events, then half of the next."""
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
    sock.sendall(f"{head}Cache-Control: no-store\r\n\r\n".encode())
    if mode == "mute":
        gone(sock)
        return
    at, gap = room.resolve(since)
    hello = {"protocol": 1, "cursor": room.cursor(at), "heartbeat": room.heartbeat}
    first = "" if gap else f"id: {room.cursor(at)}\n"
    sock.sendall(f"{first}event: hybrid.hello\ndata: {json.dumps(hello)}\n\n".encode())
    if gap:
        said = json.dumps({"reason": gap})
        sock.sendall(f"id: {room.cursor(at)}\nevent: hybrid.gap\ndata: {said}\n\n".encode())
    if mode == "bye":
        sock.sendall(b'event: hybrid.bye\ndata: {"reason":"shutdown","after":500}\n\n')
        return
    left = mode["cut"] if isinstance(mode, dict) else None
    watcher = gevent.spawn(gone, sock)
    watcher.link(lambda _: room.wake())  # whoever waits looks again
    try:
        while not watcher.dead:
            filler = "x" * room.size
            if mode == "ids":
                at = len(room.log)  # all of it for others: heartbeats move the cursor
            while at < len(room.log) and mode != "comments":
                at += 1
                id = room.cursor(at)
                block = f'id: {id}\nevent: tick\ndata: {{"n":{at},"x":"{filler}"}}\n\n'
                if left == 0:
                    sock.sendall(block[:-1].encode())
                    gevent.sleep(0.01)  # so that what was sent is not lost with the reset
                    reset(sock)
                    return
                left = None if left is None else left - 1
                sock.sendall(block.encode())
            if mode == "stall":
                watcher.join()
                return
            pause = room.heartbeat / 1000 if room.heartbeat else 60
            if not room.changed.wait(pause) and not watcher.dead:
                beat = ":\n\n" if mode == "comments" else f"id: {room.cursor(at)}\n\n"
                sock.sendall(beat.encode())
    finally:
        watcher.kill()


def poll(room: Room, sock: socket.socket, since: str | None, wait: float) -> None:
    at, gap = room.resolve(since)
    if since and not gap and at == len(room.log) and wait:
        room.changed.wait(wait)
        at, gap = room.resolve(since)
    end = min(len(room.log), at + 50)
    events = [
        {"id": room.log[n], "cursor": room.cursor(n + 1), "type": "tick", "at": 1}
        | {"data": {"n": n + 1}}
        for n in range(at, end)
    ]
    body = {"events": events, "cursor": room.cursor(end), "more": end < len(room.log)}
    body |= {"gap": {"reason": gap} if gap else None, "wait": 500, "bus": "ok"}
    answer(sock, 200, "application/json", json.dumps(body))


def realtime(room: Room, sock: socket.socket, kind: str, query: dict[str, list[str]]) -> None:
    since = query.get("since", [None])[0]
    number = len(room.requests)
    note = {"kind": kind, "since": since, "at": time.time() * 1000}
    room.requests.append(note)
    if kind == "polling":
        mode = room.polls.pop(0) if room.polls else "ok"
        if not refuse(sock, mode):
            poll(room, sock, since, float(query.get("wait", ["0"])[0]))
        return
    mode = room.sse.pop(0) if room.sse else room.always or "ok"
    if refuse(sock, mode):
        return
    room.open[number] = sock
    room.turn()
    try:
        stream(room, sock, since, mode)
    finally:
        del room.open[number]
        room.turn()
        note["closed"] = time.time() * 1000


def handle(sock: socket.socket, _address: Any) -> None:
    raw = b""
    try:
        while b"\r\n\r\n" not in raw:
            data = sock.recv(65536)
            if not data:
                return
            raw += data
        head, body = raw.split(b"\r\n\r\n", 1)
        target = head.split(b" ")[1].decode()
        length = [
            line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
        ]
        while length and len(body) < int(length[0].split(b":")[1]):
            body += sock.recv(65536)
        url = urlsplit(target)
        parts = url.path.strip("/").split("/")
        if parts[0] == "client":
            answer(sock, 200, "text/javascript", (STATIC / parts[1]).read_text())
        elif parts[0] in SCRIPTS:
            answer(sock, 200, "text/javascript", (JS / parts[0]).read_text())
        elif parts[0] == "nothing":
            answer(sock, 204, "text/plain", "")
        elif parts[0] != "r":
            answer(sock, 404, "text/plain", "")
        else:
            room = ROOMS.setdefault(parts[1], Room())
            if parts[2] == "page":
                # Not `no-store`, which would keep it out of the back/forward cache.
                headers = {"Content_Security_Policy": POLICY, "Cache_Control": "no-cache"}
                answer(sock, 200, "text/html", PAGE, **headers)
            elif parts[2] == "control":
                answer(sock, 200, "application/json", json.dumps(room.control(json.loads(body))))
            elif parts[3] in ("sse", "polling"):
                realtime(room, sock, parts[3], parse_qs(url.query))
    except OSError:
        pass  # the client has gone
    finally:
        sock.close()


if __name__ == "__main__":
    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    print(server.server_port, flush=True)
    # Whoever started it holds the other end of its input, and need not remember to end it.
    gevent.get_hub().threadpool.apply(sys.stdin.read)
