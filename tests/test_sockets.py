"""Our own duplicates of the server's sockets, with real sockets of gevent."""

import errno
import os
from collections.abc import Iterator

import gevent
import pytest
from gevent import socket

from hybrid.audience import Identity
from hybrid.connection import Connection
from hybrid.sockets import Sockets

Pair = tuple[socket.socket, socket.socket]


class Seen:
    def __init__(self) -> None:
        self.gone: list[Connection] = []
        self.room: list[Connection] = []
        self.sockets = Sockets(self.gone.append, self.room.append)

    def until(self, connections: list[Connection], wanted: list[Connection]) -> None:
        with gevent.Timeout(20):
            while connections != wanted:
                gevent.sleep(0.001)


@pytest.fixture
def seen() -> Iterator[Seen]:
    seen = Seen()
    yield seen
    seen.sockets.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The server's end and the client's."""
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def attached(seen: Seen, server: socket.socket, protocol: str = "HTTP/1.1") -> Connection:
    connection = Connection(
        "c", Identity(), frozenset(), position=0, transport="sse", opened_at=0.0
    )
    seen.sockets.attach(connection, {"gunicorn.socket": server, "SERVER_PROTOCOL": protocol})
    return connection


def push(seen: Seen, connection: Connection) -> None:
    seen.sockets.watch(connection)
    connection.push(lambda _: None)


def test_the_duplicate_outlives_the_servers_socket(seen: Seen, pair: Pair) -> None:
    """The server closes its own; another client gets that number; ours still reaches ours."""
    server, client = pair
    connection = attached(seen, server)
    push(seen, connection)
    number = server.fileno()
    server.close()
    stranger, other = socket.socketpair()
    assert number in (stranger.fileno(), other.fileno())
    assert connection.send(b"for the client", 0) == 14
    assert client.recv(100) == b"for the client"
    stranger.close()
    other.close()
    seen.sockets.forget(connection)
    connection.release()
    connection.release()
    assert client.recv(100) == b""


def test_who_only_watches_leaves_the_servers_connection_alone(seen: Seen, pair: Pair) -> None:
    """The server may go on with the connection: its next response still arrives."""
    server, client = pair
    connection = attached(seen, server)
    seen.sockets.watch(connection)
    seen.sockets.forget(connection)
    connection.release()
    server.sendall(b"the next response")
    assert client.recv(100) == b"the next response"


def test_r07_a_fin_is_told_once_whatever_lies_unread(seen: Seen, pair: Pair) -> None:
    """Bytes that nobody reads do not hide that the client closed its side."""
    server, client = pair
    connection = attached(seen, server)
    push(seen, connection)
    client.sendall(b"pipelined")
    gevent.sleep(0.01)
    assert seen.gone == []
    client.close()
    seen.until(seen.gone, [connection])
    gevent.sleep(0.01)
    assert seen.gone == [connection]
    seen.sockets.forget(connection)
    connection.release()


def test_room_is_told_to_who_waits_for_it(seen: Seen, pair: Pair) -> None:
    """After a send that found too little, when the client has read; to nobody else."""
    server, client = pair
    connection = attached(seen, server)
    push(seen, connection)
    gevent.sleep(0.01)
    assert seen.room == []
    data = b"x" * 65536
    try:
        while (sent := connection.send(data, socket.MSG_DONTWAIT)) == len(data):
            pass
    except BlockingIOError:
        sent = 0
    connection.rest = memoryview(data)[sent:]
    gevent.sleep(0.01)
    assert seen.room == []
    client.recv(65536)
    client.recv(65536)
    client.recv(65536)
    seen.until(seen.room, [connection])
    seen.sockets.forget(connection)
    connection.release()


def test_who_is_forgotten_is_not_told_of(seen: Seen, pair: Pair) -> None:
    """Also when its number has come to belong to another connection."""
    server, client = pair
    first = attached(seen, server)
    seen.sockets.watch(first)
    seen.sockets.watch(first)
    seen.sockets.forget(first)
    first.release()
    second = attached(seen, server)
    seen.sockets.watch(second)
    seen.sockets.forget(first)
    client.close()
    seen.until(seen.gone, [second])
    seen.sockets.forget(second)
    second.release()


@pytest.mark.parametrize("protocol", ["HTTP/2", "HTTP/0.9", None])
def test_an_unknown_framing_is_left_to_the_server(seen: Seen, pair: Pair, protocol: str) -> None:
    """Bytes between frames that we do not know would break the response."""
    assert attached(seen, pair[0], protocol).socket is None


def test_without_a_descriptor_the_server_keeps_the_stream(
    seen: Seen, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMFILE is no error of the client's: the iterator needs no duplicate."""

    def none_left(_fd: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "dup", none_left)
    connection = attached(seen, pair[0])
    assert connection.socket is None
    assert not connection.pushable
    seen.sockets.watch(connection)
