"""Who is who for clients without cookies: bearer tokens, and tickets for what sends no headers.

A token travels in the Authorization header and nowhere else. Where a client can set no headers
(a native EventSource of another origin, a WebSocket) it gets a ticket instead: signed, good for one
stream within half a minute, bound to its user and topics. A ticket is in a URL, so what is
logged of URLs is scrubbed of it.
"""

import hmac
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from traceback import format_exception
from typing import TYPE_CHECKING, Any

from flask import request
from itsdangerous import BadData, URLSafeTimedSerializer

from hybrid.audience import Identity, as_name
from hybrid.limits import digest
from hybrid.reach import Away, Patience, Reach
from hybrid.shutout import SKEW_MS

if TYPE_CHECKING:
    import redis

TICKET_SECONDS = 30
"""RFC 9700 and common sense: a ticket is used at once or not at all."""
SKEW_SECONDS = SKEW_MS // 1000
"""How far ahead the clock of who issues may be: a ticket or token from so near a future is good."""
STREAM_SECONDS = 900
"""How long a stream lives on a ticket: its user cannot be asked about again."""


def bearer_identity(
    key: Any,
    *,
    algorithms: Sequence[str] = ("HS256",),
    user_claim: str = "sub",
    roles_claim: str = "roles",
    audience: str | None = None,
    issuer: str | None = None,
    otherwise: Callable[[], Identity | None] = lambda: None,
) -> Callable[[], Identity | None]:
    """An `identify` hook for JSON Web Tokens (RFC 7519) in `Authorization: Bearer …` (RFC 6750).

        realtime.identify(bearer_identity(key, audience="realtime"))

    `key` is the shared secret or the public key. A token without `exp`, one that is out of date
    or for somebody else, or one that is signed by other algorithms than these, is nobody:
    401. `otherwise` is asked where no such header is sent. A stream ends within a heartbeat after
    its token has expired. `iat` and `nbf` may lie 5 seconds ahead, since clocks differ; `exp` is
    taken by the letter. Needs PyJWT, the extra `jwt`.
    """
    import jwt

    if not algorithms or "none" in [name.lower() for name in algorithms]:
        raise ValueError("name the algorithms that sign your tokens; `none` signs nothing")
    required = ["exp", user_claim, *(["aud"] if audience else []), *(["iss"] if issuer else [])]

    def identify() -> Identity | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return otherwise()
        try:
            claims = jwt.decode(
                token.strip(),
                key,
                algorithms=list(algorithms),
                audience=audience,
                issuer=issuer,
                leeway=SKEW_SECONDS,
                options={"require": required},
            )
        except jwt.InvalidTokenError:
            return None
        if int(claims["exp"]) <= time.time():
            return None  # the leeway is for who is ahead, and not to lengthen a life
        user, roles = as_name(claims[user_claim]), claims.get(roles_claim, [])
        if not isinstance(user, str) or not user or not isinstance(roles, list):
            return None
        return Identity(user, [role for role in map(as_name, roles) if isinstance(role, str)])

    return identify


def application_mark(secret: str | bytes | None) -> str:
    """What tells applications on one Redis apart without giving their key away; "" without one."""
    key = secret.encode() if isinstance(secret, str) else secret
    return hmac.new(key, b"hybrid.application", "sha256").hexdigest()[:8] if key else ""


def clock_mark() -> str:
    """What all processes have in common whose clock is the same one: that of their kernel."""
    try:
        return digest(Path("/proc/sys/kernel/random/boot_id").read_text())[:8]
    except OSError:
        return secrets.token_urlsafe(6)  # not Linux: this process alone


class Tickets:
    """Issues tickets and takes each of them once.

    With a Redis `client`, which `reach` is for, once among all instances; where it cannot be
    asked, none is taken. `clock` names the clock that issues are told by (`clock_mark`).
    """

    def __init__(
        self,
        secret: str | bytes,
        *,
        client: "redis.Redis | None" = None,
        reach: Reach | None = None,
        prefix: str = "",
        clock: str | None = None,
    ) -> None:
        self._signer = URLSafeTimedSerializer(secret, salt="hybrid.ticket")
        self._clock = clock or clock_mark()
        self._client = client
        self._prefix = prefix
        self._used: dict[str, float] = {}
        self._lock = threading.Lock()
        self._reach = reach

    def issue(self, identity: Identity, topics: Collection[str]) -> str:
        """A ticket for one stream of this identity with these topics."""
        payload = [
            f"{self._clock}.{secrets.token_urlsafe(12)}",
            identity.user,
            sorted(identity.roles),
            sorted(topics),
            int(time.time() * 1000),
        ]
        return str(self._signer.dumps(payload))

    def redeem(
        self, ticket: str, patience: Patience | None = None
    ) -> tuple[Identity, frozenset[str], int] | None:
        """Who it was issued to, for what and when (Unix ms); None if it is forged, old or used.

        The time is for who was shut out since: a ticket must not outlive a revocation. Where
        another clock has told it, which may be ahead, it counts as so much earlier.

        `patience` is how long to wait for Redis. Raises `ConnectionError` where it cannot be
        known whether it has been used.
        """
        found = self._read(ticket)
        if found is None:
            return None
        nonce, user, roles, topics, issued_ms = found
        if not self._is_first(nonce, patience or Patience()):
            return None
        if nonce.partition(".")[0] != self._clock:
            issued_ms -= SKEW_MS
        return Identity(user, roles), frozenset(topics), issued_ms

    def is_valid(self, ticket: str) -> bool:
        """Whether it was issued here and may still be redeemed, as far as that shows by itself."""
        return self._read(ticket) is not None

    def _read(self, ticket: str) -> tuple[str, str | None, list[str], list[str], int] | None:
        """What a ticket says, if it was signed here and its time is now."""
        try:
            nonce, user, roles, topics, issued_ms = self._signer.loads(ticket)
            age = time.time() - issued_ms / 1000
        except (BadData, ValueError, TypeError):
            return None
        if not -SKEW_SECONDS <= age <= TICKET_SECONDS:
            return None
        return str(nonce), user, roles, topics, int(issued_ms)

    def _is_first(self, nonce: str, patience: Patience) -> bool:
        if self._reach is not None:
            try:
                return self._reach.ask(self._use_all, f"{self._prefix}:{digest(nonce)}", patience)
            except Away:
                raise ConnectionError(
                    "whether the ticket has been used cannot be known now"
                ) from None
        with self._lock:
            now = time.monotonic()
            while self._used and next(iter(self._used.values())) <= now:
                del self._used[next(iter(self._used))]  # the oldest is the first
            if nonce in self._used:
                return False
            self._used[nonce] = now + 2 * TICKET_SECONDS
            return True

    def _use_all(self, keys: Sequence[str]) -> Sequence[bool]:
        assert self._client is not None
        with self._client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.set(key, "1", nx=True, ex=2 * TICKET_SECONDS)
            return [bool(first) for first in pipeline.execute()]


_LETTERS = "(?:t|%74)(?:i|%69)(?:c|%63)(?:k|%6[bB])(?:e|%65)(?:t|%74)"
_TICKET = re.compile(
    # An encoded separator ends in these, however often it is encoded.
    rf"""(?:(?<![^\s?&;="'<>()\[\]{{}},+])|(?<=26)|(?<=3[fFbB])|(?<=20))"""
    rf"""({_LETTERS}(?:=|%(?:25)*3[dD])["']?)[^\s&;"'<>#]+"""
)
"""The parameter `ticket` and its value, in whatever text. The name is of bounded length, so that
the search is linear in the text: strangers write what is logged."""


def scrub(text: str) -> str:
    """The text without tickets.

    Every query in the text is read as a server would, `%74icket=` too, and so is a query inside of
    a parameter (`next=%2Fsse%3Fticket%3D…`). Takes time linear in the text.
    """
    if "ticket=" not in text and "%" not in text:
        return text
    return _TICKET.sub(r"\1…", text)


class _Scrub(logging.Filter):
    """Takes tickets out of what is logged of requests and errors. Raises nothing."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            text = record.getMessage()
        except Exception:
            return True  # arguments that do not fit: the handler reports that, as it always does
        clean = scrub(text)
        if clean != text:
            record.msg, record.args = clean, None
        if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
            # Formatters take this text, if it is there, for the traceback.
            traceback = "".join(format_exception(*record.exc_info)).rstrip("\n")
            clean = scrub(traceback)
            if clean != traceback:
                record.exc_text = clean
        return True


_scrub = _Scrub()


def scrub_logs(*names: str) -> None:
    """Keep tickets out of the logs of gunicorn, of Flask's own server, and of these loggers."""
    for name in ("gunicorn.access", "gunicorn.error", "werkzeug", "hybrid", *names):
        logging.getLogger(name).addFilter(_scrub)
