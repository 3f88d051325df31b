"""emit_on_commit: events go out with the commit of their transaction, and with nothing else."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import StaticPool

from hybrid import Event, Hybrid, InvalidEvent
from hybrid.testing import capture_events

realtime = Hybrid()


@pytest.fixture
def app() -> Flask:
    app = Flask("commit")
    Hybrid.init_app(realtime, app)
    return app


@pytest.fixture
def events(app: Flask) -> Iterator[list[Event]]:
    with app.app_context(), capture_events(app) as captured:
        yield captured


@pytest.fixture
def engine() -> Iterator[Engine]:
    """SQLite that knows savepoints: the driver's own handling of BEGIN is switched off."""
    engine = create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def plain(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE n (n INTEGER)"))
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session


def told(events: list[Event]) -> list[int]:
    return [event.data for event in events]


def insert(session: Session, number: int) -> None:
    session.execute(text("INSERT INTO n VALUES (:n)"), {"n": number})
    realtime.emit_on_commit(session, "n", number)


def test_a_commit_sends_and_nothing_before_it(session: Session, events: list[Event]) -> None:
    """Together and in order, in front of whatever is emitted after the commit."""
    insert(session, 1)
    id = realtime.emit_on_commit(session, "n", 2, users=["al"])
    session.flush()
    assert events == []
    session.commit()
    realtime.emit("n", 3)
    assert told(events) == [1, 2, 3]
    assert (events[1].id, events[1].audience.users) == (id, frozenset({"al"}))
    session.commit()
    assert len(events) == 3


@pytest.mark.parametrize("how", ["rollback", "close", "error", "without work"])
def test_without_a_commit_nothing_is_sent(session: Session, events: list[Event], how: str) -> None:
    """Not now, and not with the next commit of the same session."""
    if how == "error":
        with contextlib.suppress(ZeroDivisionError), session.begin():
            insert(session, 1)
            _ = 1 / 0
    elif how == "without work":
        realtime.emit_on_commit(session, "n", 1)
        session.close()
    else:
        insert(session, 1)
        getattr(session, how)()
    insert(session, 2)
    session.commit()
    assert told(events) == [2]


def test_a_savepoint_rolled_back_takes_its_events_along(
    session: Session, events: list[Event]
) -> None:
    """Also those of savepoints inside of it that had been released; the rest is sent."""
    insert(session, 1)
    with session.begin_nested():
        insert(session, 2)
        outer = session.begin_nested()
        with session.begin_nested():
            insert(session, 3)
        outer.rollback()
        insert(session, 4)
    assert events == []
    insert(session, 5)
    session.commit()
    assert told(events) == [1, 2, 4, 5]


def test_what_is_sent_is_what_was_stored(
    engine: Engine, session: Session, events: list[Event], seed: int
) -> None:
    """Random transactions with savepoints three deep: the events are the rows."""
    dice = random.Random(seed)
    numbers = iter(range(100_000))

    def work(depth: int) -> None:
        for _ in range(dice.randrange(4)):
            if depth < 3 and dice.random() < 0.4:
                savepoint = session.begin_nested()
                work(depth + 1)
                savepoint.commit() if dice.random() < 0.5 else savepoint.rollback()
            else:
                insert(session, next(numbers))

    for _ in range(150):
        work(0)
        session.commit() if dice.random() < 0.7 else session.rollback()
    with engine.connect() as connection:
        rows = [row.n for row in connection.execute(text("SELECT n FROM n ORDER BY n"))]
    assert told(events) == rows
    assert rows
    assert "hybrid.commit" not in session.info


def test_a_registry_of_sessions_is_taken_too(engine: Engine, events: list[Event]) -> None:
    """What Flask-SQLAlchemy gives as `db.session`."""
    registry = scoped_session(sessionmaker(engine))
    realtime.emit_on_commit(registry, "n", 1)
    registry.rollback()
    realtime.emit_on_commit(registry, "n", 2)
    registry.commit()
    registry.remove()
    assert told(events) == [2]


def test_a_session_of_asyncio_is_taken_too(engine: Engine, events: list[Event]) -> None:
    """Its work is done by an ordinary session inside of it."""
    from sqlalchemy.ext.asyncio import AsyncSession

    session = AsyncSession(sync_session_class=Session)
    session.sync_session.bind = engine
    insert(session.sync_session, 0)
    realtime.emit_on_commit(session, "n", 1)
    session.sync_session.commit()
    assert told(events) == [0, 1]


def test_two_apps_with_one_session_send_each_their_own(session: Session) -> None:
    """The app is that of the emit, not that of the commit."""
    apps = [Flask("a"), Flask("b")]
    hybrid = Hybrid()
    for app in apps:
        hybrid.init_app(app)
    with capture_events(apps[0]) as first, capture_events(apps[1]) as second:
        for number in range(4):
            with apps[number % 2].app_context():
                hybrid.emit_on_commit(session, "n", number)
        session.commit()
    assert (told(first), told(second)) == ([0, 2], [1, 3])


def test_what_cannot_be_sent_is_refused_at_once(session: Session, events: list[Event]) -> None:
    """A wrong argument is an error where it is made, not after the commit."""
    with pytest.raises(InvalidEvent):
        realtime.emit_on_commit(session, "hybrid.bye")
    with pytest.raises(TypeError, match="SQLAlchemy session"):
        realtime.emit_on_commit(object(), "n")
    session.commit()
    assert events == []
