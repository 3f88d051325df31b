"""Events that wait for a database transaction: sent when it is committed, else never.

Theory. An event belongs to the innermost transaction or savepoint in which it was emitted. When
that ends without a commit the event is dropped; when a savepoint is released, the event goes to the
transaction around it; when the outermost one has been committed and has given its connection
back, its events are published, in the order of their emits and in one step.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from hybrid.errors import HybridError
from hybrid.events import MAX_TOGETHER, Event

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, SessionTransaction

logger = logging.getLogger("hybrid")

Publish = Callable[[Sequence[Event]], object]

_KEY = "hybrid.commit"
_lock = threading.Lock()
_listening = False


class Waiting:
    """What waits for the end of one session's transaction, in `session.info`."""

    def __init__(self) -> None:
        self.entries: list[tuple[SessionTransaction, Event, Publish]] = []
        self.committed: set[SessionTransaction] = set()


def when_committed(session: Any, event: Event, publish: Publish) -> None:
    """Publish the event when the session's transaction is committed.

    `session` is a SQLAlchemy `Session`, a `scoped_session` (as Flask-SQLAlchemy's `db.session`) or
    an `AsyncSession`. Begins a transaction if there is none, as any work on a session does.
    """
    _listen()
    session = _plain(session)
    transaction = session.get_nested_transaction() or session.get_transaction()
    if transaction is None:
        transaction = session.begin()
    waiting = session.info.setdefault(_KEY, Waiting())
    waiting.entries.append((transaction, event, publish))


def _plain(session: Any) -> "Session":
    from sqlalchemy.orm import Session, scoped_session

    if isinstance(session, scoped_session):
        session = session()
    session = getattr(session, "sync_session", session)
    if not isinstance(session, Session):
        raise TypeError(f"emit_on_commit wants a SQLAlchemy session, not {session!r:.60}")
    return session


def _listen() -> None:
    """Hear of all sessions' transactions. Where nothing waits, that costs a look into a dict."""
    global _listening
    with _lock:
        if _listening:
            return
        from sqlalchemy import event
        from sqlalchemy.orm import Session

        event.listen(Session, "after_commit", _after_commit)
        event.listen(Session, "after_transaction_end", _after_end)
        _listening = True


def _after_commit(session: "Session") -> None:
    waiting = session.info.get(_KEY)
    if waiting is not None:
        waiting.committed.add(session.get_nested_transaction() or session.get_transaction())


def _after_end(session: "Session", transaction: "SessionTransaction") -> None:
    waiting: Waiting | None = session.info.get(_KEY)
    if waiting is None:
        return
    committed = transaction in waiting.committed
    waiting.committed.discard(transaction)
    if transaction.parent is not None:
        if transaction.nested:
            heir = session.get_nested_transaction() or session.get_transaction()
            assert heir is not None, "a savepoint is inside of a transaction"
            waiting.entries = [
                (heir if owner is transaction else owner, event, publish)
                for owner, event, publish in waiting.entries
                if committed or owner is not transaction
            ]
        return
    del session.info[_KEY]
    if committed:
        _publish(waiting)


def _publish(waiting: Waiting) -> None:
    """Several apps may share a session; each publishes its own, in one step."""
    batches: dict[Publish, list[Event]] = {}
    for _, event, publish in waiting.entries:
        batches.setdefault(publish, []).append(event)
    for publish, events in batches.items():
        try:
            for start in range(0, len(events), MAX_TOGETHER):
                publish(events[start : start + MAX_TOGETHER])
        except HybridError:
            # Committed is committed: an error now would say that it was not.
            logger.exception("%d events of a committed transaction were not sent", len(events))
