"""The public URL, asked with the standard library alone; no proxy of the environment in between."""

import json
import queue
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlencode, urlsplit

from hybrid.config import Settings
from hybrid.eventsource import Message, Parser

TIMEOUT = 15.0
"""Seconds that any answer may take."""


class Site:
    """The public URL, and how to ask it."""

    def __init__(self, url: str, settings: Settings, headers: Mapping[str, str], verify: bool):
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is no http:// or https:// URL")
        self.secure = parts.scheme == "https"
        self.host = parts.hostname
        self.port = parts.port or (443 if self.secure else 80)
        path = parts.path.rstrip("/")
        self.prefix = path if path.endswith(settings.url_prefix) else path + settings.url_prefix
        self.headers = {"User-Agent": "flask-hybrid doctor", **headers}
        self._context = ssl.create_default_context()
        if not verify:
            self._context.check_hostname = False
            self._context.verify_mode = ssl.CERT_NONE

    def connection(self) -> HTTPConnection:
        if self.secure:
            return HTTPSConnection(self.host, self.port, timeout=TIMEOUT, context=self._context)
        return HTTPConnection(self.host, self.port, timeout=TIMEOUT)

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, str], str]:
        """Status, headers and text. Raises `OSError` or `HTTPException`."""
        connection = self.connection()
        sent = dict(self.headers if headers is None else headers)
        if body is not None:
            sent["Content-Type"] = "application/json"
        try:
            connection.request(
                method, self.prefix + path, None if body is None else json.dumps(body), sent
            )
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, text
        finally:
            connection.close()

    def protocols(self) -> str | None:
        """What the TLS end offers of h2 and http/1.1; None without TLS."""
        if not self.secure:
            return None
        self._context.set_alpn_protocols(["h2", "http/1.1"])
        try:
            with (
                socket.create_connection((self.host, self.port), TIMEOUT) as plain,
                self._context.wrap_socket(plain, server_hostname=self.host) as wrapped,
            ):
                return wrapped.selected_alpn_protocol() or "http/1.1"
        finally:
            self._context.set_alpn_protocols(["http/1.1"])


class Listener:
    """A stream, read in the background: each message with the moment of its arrival."""

    def __init__(self, site: Site, topic: str) -> None:
        self._connection = site.connection()
        self._connection.timeout = None  # a stream may be silent
        self._path = f"{site.prefix}/sse?{urlencode({'topic': topic})}"
        self._headers = {
            **site.headers,
            "Accept": "text/event-stream, application/problem+json",
            # As a browser: whoever compresses on the way shall do it now.
            "Accept-Encoding": "gzip, deflate, br, zstd",
        }
        self.arrived: queue.Queue[tuple[float, Message | None]] = queue.Queue()
        self.answer: HTTPResponse | None = None
        self.error = ""
        self.head = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hybrid-doctor", daemon=True)

    def __enter__(self) -> "Listener":
        self.began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        sock = self._connection.sock or getattr(self, "_sock", None)
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended already
        self._thread.join(TIMEOUT)
        self._connection.close()

    def next(self, timeout: float) -> tuple[float, Message | None] | None:
        """Seconds since the start and the message, None in its place at the end of the stream.

        None when nothing came in time.
        """
        try:
            at, message = self.arrived.get(timeout=max(0.0, timeout))
        except queue.Empty:
            return None
        return at - self.began, message

    def _run(self) -> None:
        parser = Parser()
        try:
            self._connection.connect()
            self._sock = self._connection.sock
            self._connection.request("GET", self._path, headers=self._headers)
            self.answer = self._connection.getresponse()
            self.head.set()
            if self.answer.status != 200:
                self.error = self.answer.read().decode(errors="replace")
                return
            while piece := self.answer.read1(65536):
                for message in parser.feed(piece):
                    self.arrived.put((time.monotonic(), message))
        except (OSError, HTTPException, ValueError) as error:
            self.error = str(error) or type(error).__name__
        finally:
            self.head.set()
            self.arrived.put((time.monotonic(), None))
