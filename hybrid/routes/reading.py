"""GET /sse and GET /polling; POST, where there are more topics than an address can hold."""

from collections.abc import Sequence
from dataclasses import dataclass

from flask import Response, request

from hybrid import signals
from hybrid.bus import begin, settle_late
from hybrid.connection import Connection
from hybrid.errors import TooManyConnections
from hybrid.events import Cursor, random_id
from hybrid.instance import Instance, unix_ms
from hybrid.limits import of_address, of_user
from hybrid.log import Claim, Entry, Reading
from hybrid.routes.access import NotKept, credentials_of, identity_of, redeem, topics_of
from hybrid.routes.answers import (
    Held,
    Problem,
    StreamResponse,
    app_state,
    json_answer,
)
from hybrid.routes.bounds import (
    address_of,
    count,
    count_for_user,
    is_this_machine,
    patience,
    refusal,
)
from hybrid.routes.origins import require_same_origin
from hybrid.routes.parse import number, posted_topics
from hybrid.routes.server import (
    can_hold,
    notice_processes,
    only_takes_events,
    refuse_by_event,
    require_streaming,
)
from hybrid.stream import Stream, greeting
from hybrid.wire import to_json

MAX_WAIT = 25.0
"""Seconds a long poll may last: some platforms want the first byte within 30."""
MAX_LIMIT = 1000
POLL_BYTES = 1024 * 1024
POLLER = ("REMOTE_ADDR", "HTTP_USER_AGENT")
"""What tells anonymous clients apart when they are counted."""
POLL_WAIT_MS = 5000
"""The delay between two polls that the server suggests."""
JUST_NOW_MS = 1000
"""More than lies between an answer and the next poll of a client that asks again at once."""


def sse() -> Response:
    """GET /sse: the stream."""
    return answer_stream()


def answer_stream(*, topics: frozenset[str] | None = None, native: bool = False) -> Response:
    """A stream, of the topics that the request asks for or of granted ones.

    `native`: whoever calls is certainly a native EventSource.
    """
    try:
        require_same_origin()
        require_streaming()
        return _open_stream(topics)
    except Problem as problem:
        if problem.code in (429, 503) and (native or only_takes_events()):
            return refuse_by_event(problem)
        raise


def _open_stream(topics: frozenset[str] | None) -> Response:
    state = app_state()
    asked_ms = unix_ms()  # before the look at who it is, which may be out of date a moment later
    instance = state.instance()
    environ, args = request.environ, request.args
    is_head = environ["REQUEST_METHOD"] == "HEAD"
    since = environ.get("HTTP_LAST_EVENT_ID") or args.get("since")
    address = address_of(instance)
    ticket = args.get("ticket")
    # Who has a cursor or a ticket has it from a page that was served, or has been here before:
    # neither a page that is loaded again nor a deployment that sends all away is to lock them out.
    served = Cursor.parse(since or "") or (ticket and instance.tickets.is_valid(ticket))
    at_work = state.debug() and is_this_machine(address)
    kind = "returns" if served or at_work else "connections"
    count(instance, f"ip_{kind}", of_address(address))
    posted = posted_topics()
    if ticket is not None and not is_head:
        # Who it is was looked at when the ticket was issued.
        identity, topics, credentials, asked_ms = redeem(state, ticket)
    else:
        identity = identity_of(state)
        granted = topics is not None
        if topics is None:
            topics = topics_of(state, identity, posted)
        credentials = credentials_of(identity, topics, granted=granted)
    count_for_user(instance, f"user_{kind}", identity)
    if is_head:
        return StreamResponse(())
    notice_processes(instance)
    instance.hub.readers.expire()
    start, pending = begin(instance.bus, since, max_replay=state.settings.max_replay_events)
    connection = Connection(
        random_id(),
        identity,
        topics,
        position=start.cursor.offset,
        transport="sse",
        opened_at=instance.hub.clock(),
        opened_ms=asked_ms,
        credentials=credentials,
    )
    try:
        # Others run meanwhile: what follows goes by where it begins now.
        start = instance.admit(
            connection, address, Claim(since, certain=pending is None), patience()
        )
    except TooManyConnections as error:
        raise refusal(instance, error) from error
    opening = greeting(instance.hub, connection, start, instance.bus.state)
    stream = Stream(instance.hub, connection, opening)
    settle_late(instance.bus, instance.hub, start)
    if signals.connected.receivers:
        signals.connected.send(state.app(), connection=connection)
    return StreamResponse(stream)


def polling() -> Response:
    """GET /polling: what has come since the cursor, at once or within `wait` seconds."""
    state = app_state()
    require_same_origin()
    asked_ms = unix_ms()
    instance = state.instance()
    address = address_of(instance)
    identity = identity_of(state)
    user = identity.user
    count(instance, "polls", of_address(address) if user is None else of_user(user))
    topics = topics_of(state, identity, posted_topics())
    notice_processes(instance)
    instance.hub.readers.expire()
    wait = number("wait", 0.0, 0.0, MAX_WAIT)
    limit = int(number("limit", MAX_LIMIT, 1, MAX_LIMIT, whole=True))
    instance.polls += 1
    environ, since = request.environ, request.args.get("since")
    seen_by = (identity.user or "", *(environ.get(key) or "" for key in POLLER))
    instance.pollers.add(instance.hub.clock(), *seen_by)
    start, pending = begin(instance.bus, since, max_replay=state.settings.max_replay_events)
    if start.gap:
        return json_answer(_poll_body(instance, Reading((), start.cursor), start.gap))
    connection = Connection(
        random_id(),
        identity,
        topics,
        position=start.cursor.offset,
        transport="polling",
        opened_at=instance.hub.clock(),
        opened_ms=asked_ms,
    )
    if since is None or environ["REQUEST_METHOD"] == "HEAD" or not can_hold():
        wait = 0.0
    connection.pending = pending
    poll = Poll.begin(instance, connection, limit, wait)
    poll.look(connection)
    answer = poll(connection)
    if answer is None:
        connection.answer = poll
        try:
            connection.credentials = credentials_of(identity, topics)
            claim = Claim(since, certain=pending is None)
            begun = instance.admit(connection, address, claim, patience())
        except (TooManyConnections, NotKept):
            # Without a slot, or where who it is cannot be kept, it is answered without a wait.
            answer = poll(connection, True)
        else:
            # The log may have become another one while a slot was asked for.
            connection.lost = connection.lost or begun.gap
            settle_late(instance.bus, instance.hub, begun)
            instance.hub.wait(connection, poll.until)
            # JSON may begin with a space: so the headers leave, and the hub can take over.
            return Held(Stream(instance.hub, connection, b" "))
    assert answer is not None
    return json_answer(answer)


@dataclass(frozen=True, slots=True)
class Poll:
    """What a poll asks: at most `limit` events, waited for `until` a monotonic time in seconds.

    `came` is the newest place in the ring of provisional events as the poll came.
    """

    instance: Instance
    limit: int
    until: float
    came: int

    @classmethod
    def begin(cls, instance: Instance, connection: Connection, limit: int, wait: float) -> "Poll":
        """A poll that waits for so many seconds at most.

        Which provisional events a client has had it alone knows, and no cursor says. So those
        from before it came are told it again, but not at once, or it would ask four times a
        second for as long as Redis is away; sooner where they may have come since it last asked.
        """
        readers = instance.hub.readers
        came = readers.newest_provisional
        for known in readers.provisionals(connection, max_events=1):
            recent = known.event.at > connection.opened_ms - JUST_NOW_MS
            wait = min(wait, JUST_NOW_MS / 1000 if recent else POLL_WAIT_MS / 1000)
        return cls(instance, limit, instance.hub.clock() + wait, came)

    def look(self, connection: Connection) -> None:
        """Come past what is for others only, in steps between which others run."""
        while connection.pending is None:
            reading = self._read(connection)
            if reading.entries or not reading.paused:
                break
            connection.position = reading.cursor.offset
            self.instance.hub.pause()

    def __call__(self, connection: Connection, at_once: bool = False) -> bytes | None:
        """The body of the answer; None while there is nothing to say and time to wait."""
        instance, readers = self.instance, self.instance.hub.readers
        gap = connection.lost
        if gap is not None or connection.pending is not None:
            # Without a gap it is back with the same cursor, until somebody can say what has
            # happened since.
            reading = Reading((), instance.log.head)
        else:
            reading = self._read(connection)
            connection.position = reading.cursor.offset
            gap = "overflow" if reading.overflow else None
        if not (
            at_once
            or gap
            or reading.entries
            or instance.hub.clock() >= self.until
            or readers.provisionals(connection, max_events=1, after=self.came)
        ):
            return None
        also = readers.provisionals(connection, max_events=self.limit)
        return _poll_body(
            instance, reading, gap, connection, also, None if gap else connection.pending
        )

    def _read(self, connection: Connection) -> Reading:
        log = self.instance.log
        return log.read(
            connection.position,
            log.last,
            connection.sees,
            max_events=self.limit,
            max_bytes=POLL_BYTES,
        )


def _poll_body(
    instance: Instance,
    reading: Reading,
    gap: str | None = None,
    asker: Connection | None = None,
    provisional: Sequence[Entry] = (),
    cursor: str | None = None,
) -> bytes:
    if gap:
        instance.hub.count_gap(gap, asker)
    entries = [*reading.entries, *provisional]
    instance.hub.deliveries += len(entries)
    rest = {
        "cursor": cursor or str(reading.cursor),
        "more": reading.cursor.offset < instance.log.last,
        "gap": {"reason": gap} if gap else None,
        "wait": POLL_WAIT_MS,
        "bus": instance.bus.state,
    }
    # The events are JSON already, encoded once for all who poll them.
    events = ",".join([entry.poll_item for entry in entries])
    instance.hub.delivered_bytes += len(events)
    return f'{{"events":[{events}],{to_json(rest)[1:]}'.encode()
