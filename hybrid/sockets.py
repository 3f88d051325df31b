"""The streams' sockets: duplicates of the server's that are ours, watched by one epoll.

A duplicate is an object of our own with a descriptor of our own. The server may close its
socket whenever it likes: the number below ours cannot come to belong to another client, and
when we close ours it is gone for us too. So no event can reach a stranger.

One epoll for all costs an entry in the kernel per stream where a watcher of the event loop for
each would cost objects, and it tells a client's FIN (EPOLLRDHUP) from bytes that nobody reads.
"""

import os
import select
import socket
import sys
from _socket import socket as Socket
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from hybrid.connection import Connection

HTTP1 = ("HTTP/1.1", "HTTP/1.0")
EPOLL = hasattr(select, "EPOLLRDHUP")
"""Linux. `select.epoll` itself is no sign: gevent hides it, since it would block the loop."""


def is_gunicorns(start_response: object) -> bool:
    """Whether this is gunicorn's own: who stands in between may have changed what it was called
    with."""
    return type(getattr(start_response, "__self__", None)).__module__ == "gunicorn.http.wsgi"


def _response_behind(start_response: Any) -> Any:
    """gunicorn's response; None where there is none.

    The application is given no more of it than `start_response`. Where a middleware has put its
    own before that, the response is a variable of the worker's, further up in the stack.
    """
    if is_gunicorns(start_response):
        return start_response.__self__
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code.co_name, frame.f_globals.get("__name__")
        if code == ("handle_request", "gunicorn.workers.base_async"):
            return frame.f_locals.get("resp")
        frame = frame.f_back
    return None


class Sockets:
    """Calls `gone` when a client closes its side, and `room` when a full socket has room again.

    Both are called by the event loop and may not block.
    """

    def __init__(
        self, gone: Callable[[Connection], None], room: Callable[[Connection], None]
    ) -> None:
        self._gone = gone
        self._room = room
        self._watched: dict[int, Connection] = {}
        self._epoll: Any = None
        self._watcher: Any = None

    def attach(self, connection: Connection, environ: Mapping[str, Any]) -> None:
        """Give the connection a duplicate of the server's socket, if it is one of gevent's.

        It can be pushed to where it is a plain TCP or Unix socket and the response is framed by
        HTTP/1.x: then the bytes on the wire are known. TLS is only watched. Other servers and
        systems without epoll have nothing to give.
        """
        sock: Any = environ.get("gunicorn.socket")
        kind = type(sock).__module__
        protocol = environ.get("SERVER_PROTOCOL")
        if not kind.startswith("gevent.") or protocol not in HTTP1 or not EPOLL:
            return
        try:
            fd = os.dup(sock.fileno())
        except OSError:
            return  # no descriptor left for it, or the client is gone already
        connection.socket = Socket(sock.family, sock.type, sock.proto, fileno=fd)
        connection.pushable = kind.startswith("gevent._socket")
        connection.chunked = protocol == "HTTP/1.1"
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @staticmethod
    def end_with(connection: Connection, start_response: object) -> Any:
        """Let the head say `Connection: close`, since nobody reads a next request once the hub has
        the socket: a proxy would keep the connection, and the request that it puts there is lost.

        Returns gunicorn's response, from which the head comes. None where it cannot be found or
        the head has left: such a connection stays with the server, which may keep it alive.
        """
        if connection.socket is None:
            return None
        response = _response_behind(start_response)
        if response is None or response.headers_sent:
            connection.pushable = False
            return None
        response.force_close()
        connection.chunked = response.chunked
        return response

    @staticmethod
    def head(response: Any) -> bytes:
        """What gunicorn would send before the body."""
        lines = [*response.default_headers(), *map("{0[0]}: {0[1]}\r\n".format, response.headers)]
        return f"{''.join(lines)}\r\n".encode("latin-1")

    def watch(self, connection: Connection) -> None:
        """Look after its socket, if it has one, until `forget`; may be called twice."""
        if connection.socket is None:
            return
        fd = connection.socket.fileno()
        if self._watched.get(fd) is connection:
            return
        if self._epoll is None:
            self._begin()
        self._watched[fd] = connection
        # Edges: each is told once, and that there is room only after a send found none.
        self._epoll.register(fd, select.EPOLLRDHUP | select.EPOLLOUT | select.EPOLLET)

    def forget(self, connection: Connection) -> None:
        """Before its socket is closed; may be called twice."""
        if connection.socket is not None:
            fd = connection.socket.fileno()
            if self._watched.get(fd) is connection:
                del self._watched[fd]
                self._epoll.unregister(fd)

    def close(self) -> None:
        """Stop watching. For tests."""
        if self._epoll is not None:
            self._watcher.stop()
            self._watcher.close()
            self._epoll.close()
            self._epoll = None
            self._watched.clear()

    def _begin(self) -> None:
        import gevent  # it is here: the server's socket was one of its own
        from gevent.monkey import get_original

        self._epoll = get_original("select", "epoll")()
        self._watcher = gevent.get_hub().loop.io(self._epoll.fileno(), 1)
        self._watcher.start(self._look)

    def _look(self) -> None:
        for fd, events in self._epoll.poll(0):
            connection = self._watched.get(fd)
            if connection is None:
                continue
            if events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR):
                self._gone(connection)
            elif connection.rest is not None:
                self._room(connection)
