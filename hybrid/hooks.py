"""What an application decides, and what holds where it decides nothing."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from flask import current_app, session

from hybrid.audience import Identity

Identify = Callable[[], Identity | Awaitable[Identity | None] | None]
Authorize = Callable[[Identity, str], bool | Awaitable[bool]]
Permit = Callable[[Identity], bool | Awaitable[bool]]


def session_identity() -> Identity:
    """The default `identify`: Flask-Login's user, else the session's, else anonymous."""
    login = getattr(current_app, "login_manager", None)
    if login is not None:
        from flask_login import current_user

        return Identity(str(current_user.get_id())) if current_user.is_authenticated else Identity()
    user = session.get("user_id", session.get("user"))
    # True says that somebody is logged in, not who: it would make one user of all of them.
    known = isinstance(user, (str, int)) and not isinstance(user, bool) and user != ""
    return Identity(str(user)) if known else Identity()


def refuse_topic(_identity: Identity, _topic: str) -> bool:
    """The default `authorize`: a topic is closed until the application opens it."""
    return False


@dataclass(slots=True)
class Hooks:
    """One `Hybrid`'s; all its apps have the same. No `Permit` is: in debug mode alone."""

    identify: Identify = session_identity
    authorize: Authorize = refuse_topic
    can_test: Permit | None = None
    can_monitor: Permit | None = None
    can_operate: Permit | None = None
