"""What the public URL says: a stream opened there as a browser would, proxies and all.

Whether something on the way buffers cannot be read from any configuration, so it is measured: how
long the first event takes, and whether test events arrive one by one. Test events go to a topic
that only this stream has, by whichever door is open: Redis, POST /publish, POST /test.
"""

import contextlib
import email.utils
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPException, HTTPResponse
from urllib.parse import urlencode

from hybrid.audience import DOCTOR
from hybrid.config import SCHEMES, Settings
from hybrid.doctor.finding import Finding
from hybrid.doctor.shared import skewed
from hybrid.doctor.site import TIMEOUT, Listener, Site
from hybrid.errors import HybridError
from hybrid.events import Cursor
from hybrid.eventsource import Message

FIRST_BYTE = 5.0
"""Seconds until hello has to be there: then the bundled client gives a stream up."""
ARRIVAL = 5.0
EVENTS = 3
PACE = 0.4
"""Seconds between two test events, so that held ones are told from slow ones."""
POLLS = 16

NGINX = "nginx: proxy_buffering off (X-Accel-Buffering must not be hidden or ignored)"
LONGER = (
    "a longer idle timeout (nginx: proxy_read_timeout 60s), or a lower HYBRID_HEARTBEAT_SECONDS"
)


def look_through(
    url: str, settings: Settings, *, headers: Mapping[str, str], idle: bool, verify: bool
) -> Iterator[Finding]:
    """Findings of a visit to the public URL."""
    try:
        site = Site(url, settings, headers, verify)
        status, told, text = site.ask("/health/ready")
    except (OSError, HTTPException, ValueError) as error:
        yield Finding("fail", "public URL", f"{url}: {error}", "is the site up, and the URL right?")
        return
    yield from _health(site, status, told, text)
    if status not in (200, 503):
        return
    yield from _protocol(site, told)
    yield _monitor(site)
    yield from _logs(site)
    yield from _stream(site, settings, idle)
    yield from _alerts(site)


def _alerts(site: Site) -> Iterator[Finding]:
    """What the workers say of themselves, of each thing once.

    Last: a fresh worker knows only now what its polls and streams have shown.
    """
    alerts: set[str] = set()
    try:
        for _, text in _at_once(site, "/health/ready"):
            with contextlib.suppress(ValueError, AttributeError):
                alerts.update(map(str, json.loads(text).get("alerts", ())))
    except (OSError, HTTPException) as error:
        yield Finding("skip", "alert", f"{site.prefix}/health/ready does not answer: {error}")
    for alert in sorted(alerts):
        where = "the finding `Redis` and the log" if "Redis" in alert else "the logs"
        yield Finding("look", "alert", alert, f"{where} of that process have the fix")


def _at_once(site: Site, path: str) -> Iterator[tuple[HTTPResponse, str]]:
    """Many answers to the same question.

    All at once: one after the other, the same idle worker would take them all.
    """
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(contextlib.closing(site.connection())) for _ in range(POLLS)
        ]
        for connection in connections:
            connection.request("GET", f"{site.prefix}{path}", headers=site.headers)
        for connection in connections:
            answer = connection.getresponse()
            yield answer, answer.read().decode(errors="replace")


def _health(site: Site, status: int, told: Mapping[str, str], text: str) -> Iterator[Finding]:
    if status == 200:
        yield Finding("ok", "health", "ready")
    elif status == 503 and "problem+json" in told.get("content-type", ""):
        yield Finding("fail", "health", text, "the server takes no new clients")
    else:
        yield Finding(
            "fail",
            "health",
            f"{site.prefix}/health/ready answers {status}",
            "pass this path on to the application; HYBRID_URL_PREFIX has to be the same here",
        )
        return
    if "date" in told:
        try:
            then = email.utils.parsedate_to_datetime(told["date"]).timestamp()
        except ValueError:
            return
        # The header has whole seconds.
        off = time.time() - then
        yield skewed(0 if -1 < off < 2 else off, "server's")


def _protocol(site: Site, told: Mapping[str, str]) -> Iterator[Finding]:
    server = told.get("server", "")
    offered = site.protocols()
    if offered is None:
        verdict = Finding(
            "look",
            "HTTP version",
            "HTTP/1.1 without TLS: a browser opens 6 connections per site, a stream is one",
            "TLS and HTTP/2 at the proxy",
        )
        yield (
            verdict
            if site.host not in ("localhost", "127.0.0.1", "::1")
            else Finding("skip", "HTTP version", "HTTP/1.1 on this machine")
        )
    elif offered != "h2":
        yield Finding(
            "look",
            "HTTP version",
            f"{offered}: a browser opens 6 connections per site, and a stream is one of them",
            "HTTP/2 at the proxy (nginx: http2 on)",
        )
    elif server.startswith("gunicorn"):
        yield Finding(
            "fail",
            "HTTP version",
            "HTTP/2 by gunicorn itself, which serves the streams of a connection one by one",
            "terminate HTTP/2 at a proxy",
        )
    else:
        yield Finding("ok", "HTTP version", f"HTTP/2 ({server or 'server unnamed'})")


def _monitor(site: Site) -> Finding:
    """Whether a stranger may read it: asked without the headers that were given."""
    status, _, _ = site.ask("/monitor", headers={})
    if status == 200:
        return Finding(
            "fail",
            "monitor from outside",
            "anybody can read it",
            "an @realtime.can_monitor hook, and no debug mode in production",
        )
    return Finding("ok", "monitor from outside", f"{status} for a stranger")


def _logs(site: Site) -> Iterator[Finding]:
    """Whether all who answer there have one log, as their cursors tell."""
    epochs = set()
    for answer, text in _at_once(site, "/polling"):
        if answer.status != 200:
            yield Finding(
                "skip",
                "one log",
                f"a poll is answered {answer.status}",
                "give a login: --header 'Cookie: …'",
            )
            return
        if answer.headers.get("Set-Cookie"):
            yield Finding("look", "cookies", "something on the way adds cookies to polls")
        try:
            cursor = Cursor.parse(json.loads(text)["cursor"])
        except (ValueError, KeyError, TypeError):
            cursor = None
        epochs.add(cursor.epoch if cursor else text[:60])
    if len(epochs) > 1:
        yield Finding(
            "fail",
            "one log",
            f"{len(epochs)} different logs answer there: a client misses what others emit",
            "HYBRID_URL=redis://…, the same for all workers and machines; or one worker",
        )
    else:
        yield Finding("ok", "one log", f"{POLLS} polls found the same")


def _stream(site: Site, settings: Settings, idle: bool) -> Iterator[Finding]:
    topic = DOCTOR + secrets.token_urlsafe(9)
    with Listener(site, topic) as listener:
        first = listener.next(FIRST_BYTE)
        answer = listener.answer
        if answer is not None and answer.status != 200:
            if first is None:
                listener.next(TIMEOUT)  # the rest of the answer
            yield _refused(answer.status, listener)
            return
        yield from _headers(answer)
        if first is None:
            yield Finding(
                "fail",
                "first byte",
                f"nothing within {FIRST_BYTE:g} s: something on the way buffers",
                f"{NGINX}; no compression of text/event-stream; clients poll until then",
            )
            return
        seconds, message = first
        while message is not None and message.type != "hybrid.hello" and message.retry is not None:
            seconds, message = listener.next(FIRST_BYTE) or (FIRST_BYTE, None)
        if message is None or message.type != "hybrid.hello":
            yield Finding(
                "fail", "first byte", f"no stream of ours: {listener.error or message}", NGINX
            )
            return
        yield Finding("ok", "first byte", f"hello after {seconds * 1000:.0f} ms")
        for finding in _arrivals(site, settings, topic, listener, message):
            yield finding
            if finding.verdict == "fail":
                return
        interval = float(message.data["heartbeat"]) / 1000
        if idle:
            yield _idle(listener, interval)
        else:
            yield Finding("skip", "idle timeout", "not waited for (--no-idle)")


def _refused(status: int, listener: Listener) -> Finding:
    said = listener.error[:300]
    fix = {
        401: "give a login: --header 'Cookie: …'",
        403: "give a login that may connect: --header 'Cookie: …'",
        429: "wait a minute: this address has opened too many streams",
        503: "gunicorn -k gevent" if "No streaming" in said else "the server is full or draining",
    }
    verdict = Finding("fail", "stream", f"{status}: {said}", fix.get(status, ""))
    if status in (401, 403, 429):
        return Finding("skip", verdict.subject, f"{verdict.says}; {verdict.fix}")
    return verdict


def _headers(answer: HTTPResponse | None) -> Iterator[Finding]:
    if answer is None:
        return
    encoding = answer.headers.get("Content-Encoding")
    if encoding:
        yield Finding(
            "fail",
            "compression",
            f"the stream comes as {encoding}, which holds events back",
            "leave text/event-stream out of gzip_types, COMPRESS_MIMETYPES and the like",
        )
    else:
        yield Finding("ok", "compression", "none on the stream")
    if "no-store" not in answer.headers.get("Cache-Control", ""):
        yield Finding(
            "look", "caching", "the Cache-Control header was replaced on the way", "let it through"
        )
    if answer.headers.get("Set-Cookie"):
        yield Finding("look", "cookies", "something on the way sets a cookie on the stream")


def _arrivals(
    site: Site, settings: Settings, topic: str, listener: Listener, hello: Message
) -> Iterator[Finding]:
    """Test events, one by one: does each arrive before the next is sent?"""
    waits: list[float] = []
    for number in range(EVENTS):
        door = _emit(site, settings, topic, number)
        if door is not None:
            yield Finding("skip", "test events", door)
            return
        sent = time.monotonic()
        while (arrival := listener.next(sent + ARRIVAL - time.monotonic())) is not None:
            if arrival[1] is None or arrival[1].type == "doctor":
                break
        if arrival is None or arrival[1] is None:
            yield _lost(site, topic, hello, number, ended=arrival is not None)
            return
        waits.append(max(0.0, arrival[0] + listener.began - sent))
        time.sleep(PACE)
    slowest = max(waits)
    yield Finding(
        "ok" if slowest < 1 else "look",
        "test events",
        f"{EVENTS} arrived one by one, within {slowest * 1000:.0f} ms",
        "something on the way holds small pieces back",
    )


def _lost(site: Site, topic: str, hello: Message, number: int, *, ended: bool) -> Finding:
    """Why a test event did not come: a poll that has it shows that the way is at fault."""
    if ended:
        said = f"the stream was cut before event {number + 1}, a moment after the one before"
        return Finding("fail", "test events", said, LONGER)
    query = urlencode({"topic": topic, "since": hello.id or "0"})
    status, _, text = site.ask(f"/polling?{query}")
    if status == 200 and '"doctor"' in text:
        return Finding(
            "fail",
            "test events",
            f"hello came, event {number + 1} was held back: something on the way buffers",
            f"{NGINX}; no compression of text/event-stream",
        )
    return Finding(
        "fail",
        "test events",
        "an event that was stored here did not reach the server there",
        "HYBRID_URL and HYBRID_NAMESPACE have to be the same here and there",
    )


def _emit(site: Site, settings: Settings, topic: str, number: int) -> str | None:
    """Send a test event by whichever door is open; why not, if none is."""
    event = {"type": "doctor", "data": number, "topics": [topic]}
    if settings.url.partition("://")[0] in SCHEMES:
        from hybrid.publisher import Publisher

        publisher = Publisher(settings.url, namespace=settings.namespace)
        try:
            publisher.emit("doctor", number, topics=[topic])
            return None
        except HybridError as error:
            return f"Redis does not take them: {error}"
        finally:
            publisher.close()
    if settings.publish_key:
        bearer = {"Authorization": f"Bearer {settings.publish_key}"}
        status, _, text = site.ask(
            "/publish", method="POST", body=event, headers={**site.headers, **bearer}
        )
    else:
        status, _, text = site.ask("/test", method="POST", body=event)
    if status in (201, 202):
        return None
    return f"could not be sent ({status}, {text[:120]}); set HYBRID_PUBLISH_KEY here and there"


def _idle(listener: Listener, interval: float) -> Finding:
    """Whether the connection lasts from one heartbeat to the next, in silence."""
    beats: list[float] = []
    while len(beats) < 2:
        arrival = listener.next(interval * 1.3 + 3)
        if arrival is None:
            return Finding(
                "fail",
                "idle timeout",
                f"no heartbeat within {interval * 1.3 + 3:.0f} s: heartbeats are held back",
                NGINX,
            )
        seconds, message = arrival
        if message is None:
            return Finding(
                "fail",
                "idle timeout",
                f"cut after {seconds:.0f} s, and heartbeats are {interval:g} s apart",
                LONGER,
            )
        if message.text is None:
            beats.append(seconds)
    return Finding(
        "ok", "idle timeout", f"{beats[1] - beats[0]:.1f} s of silence are endured, one heartbeat"
    )
