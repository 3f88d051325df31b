"""POST /test and POST /publish."""

import base64
import hashlib
from collections.abc import Sequence
from functools import partial

from flask import Response, request

from hybrid.audience import Audience
from hybrid.bus import Receipt
from hybrid.events import MAX_TOGETHER, Event, random_id
from hybrid.limits import of_address
from hybrid.routes.access import identity_of, may_test, not_permitted, require_key
from hybrid.routes.answers import Problem, app_state, json_answer
from hybrid.routes.bounds import address_of, count, count_for_user
from hybrid.routes.origins import require_same_origin
from hybrid.routes.parse import json_body, json_object
from hybrid.wire import to_json


def test() -> Response:
    """POST /test: send a test event."""
    state = app_state()
    require_same_origin()
    instance = state.instance()
    count(instance, "ip_events", of_address(address_of(instance)))
    identity = identity_of(state)
    count_for_user(instance, "user_events", identity)
    fields = json_object({"type", "data", "users", "roles", "topics"}, state)
    audience = Audience.of(fields.get("users"), fields.get("roles"), fields.get("topics"))
    if not may_test(state, identity, audience):
        raise not_permitted(state, "you may send test events to yourself only")
    event = state.event(fields.get("type", "test"), fields.get("data"), audience)
    (receipt,) = state.publish([event])
    return _receipts([receipt], alone=True)


def publish() -> Response:
    """POST /publish: events from other programs."""
    state = app_state()
    require_key(state)
    body = json_body(state, events=MAX_TOGETHER)
    wishes = body if isinstance(body, list) else [body]
    if not 0 < len(wishes) <= MAX_TOGETHER:
        raise Problem(400, "Bad request", f"send 1 to {MAX_TOGETHER} events")
    key = request.headers.get("Idempotency-Key")
    if (ack := request.args.get("ack")) not in (None, "replica"):
        raise Problem(400, "Bad request", "ack can be replica, and nothing else")
    # All are made before the first is stored: of a list either all arrive or none.
    events = [
        state.wished(fields, new_id=random_id if key is None else partial(_derived, key, place))
        for place, fields in enumerate(wishes)
    ]
    if key is not None:
        _require_the_same(key, events)
    receipts = state.publish(events, replicas=1 if ack else 0)
    if key is not None and any(map(_is_another, events, receipts)):
        raise another()  # somebody else was as fast with the same key
    return _receipts(receipts, alone=not isinstance(body, list))


def _derived(key: str, place: int) -> str:
    """The id of an event that was sent with a key: the same whenever it is sent again."""
    digest = hashlib.sha256(f"{place}:{key}".encode()).digest()
    return base64.urlsafe_b64encode(digest)[:16].decode()


def _require_the_same(key: str, events: Sequence[Event]) -> None:
    """Refuse other events than those that came with the key earlier, before any is stored.

    A list was stored as a whole, and its beginning is dropped first: what is known of it is its
    end, and nothing comes after that.
    """
    bus = app_state().instance().bus
    bus.refresh()
    kept = [bus.held(event.id) for event in events]
    begun = False
    for event, held in zip(events, kept, strict=True):
        begun = begun or held is not None
        if begun and (held is None or _differ(held, event)):
            raise another()
    if bus.held(_derived(key, len(events))) is not None:
        raise another()


def another() -> Problem:
    """A new one each time: one that is raised again and again keeps all its tracebacks."""
    return Problem(422, "Key used before", "this Idempotency-Key came with other events earlier")


def _differ(one: Event, other: Event) -> bool:
    return (one.type, one.body, one.audience) != (other.type, other.body, other.audience)


def _is_another(event: Event, receipt: Receipt) -> bool:
    """Whether the log holds something else under the event's id."""
    bus = app_state().instance().bus
    if receipt.cursor and bus.log.event_at(receipt.cursor) is None:
        bus.refresh()  # another process has stored it just now
    kept = bus.held(event.id)
    return kept is not None and _differ(kept, event)


def _receipts(receipts: Sequence[Receipt], *, alone: bool) -> Response:
    """What became of the events: 201 if all are in the log, 202 if some wait for it."""
    connections = app_state().instance().hub.held()
    answers = [
        {
            "id": receipt.id,
            "cursor": str(receipt.cursor) if receipt.cursor else None,
            "stored": receipt.stored,
            "connections": connections,
        }
        | ({} if receipt.replicas is None else {"replicas": receipt.replicas})
        for receipt in receipts
    ]
    stored = all(receipt.stored == "log" for receipt in receipts)
    return json_answer(to_json(answers[0] if alone else answers), 201 if stored else 202)
