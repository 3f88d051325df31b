"""Other extensions of the same application: Flask-Limiter, Flask-WTF and Flask-Login."""

import logging
import sys
import weakref
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from flask import Blueprint, Flask

from hybrid.errors import OutboxFull

logger = logging.getLogger("hybrid")


def keep_off(app: Flask, blueprint: Blueprint) -> None:
    """Keep the application's default limits and form tokens off our endpoints.

    "200 per day" for every route would end polling in minutes; our endpoints have limits of their
    own. A program that publishes has no token of Flask-WTF's `CSRFProtect`; what stops forged
    requests here is that they have to be JSON, and from the same origin or with a key. Looked at
    now, since theirs may come before ours at the first request, and with each request, since they
    may be set up after us.
    """
    exempted: weakref.WeakSet[Any] = weakref.WeakSet()

    def exempt() -> None:
        for guard in _guards(app):
            if guard not in exempted:
                exempted.add(guard)
                guard.exempt(blueprint)

    exempt()
    app.before_request(exempt)


def _guards(app: Flask) -> Iterator[Any]:
    yield from app.extensions.get("limiter", ())
    forms = sys.modules.get("flask_wtf.csrf")
    guard = app.extensions.get("csrf")
    if forms is not None and isinstance(guard, forms.CSRFProtect):
        yield guard


def follow_logouts(app: Flask, revoke: Callable[[str], object]) -> Callable[..., None] | None:
    """Call `revoke` with each user who logs out; None where there is no Flask-Login.

    Its signal keeps receivers weakly: what is returned is to live as long as the app.
    """
    if not find_spec("flask_login"):
        return None
    from flask_login import user_logged_out

    def logged_out(_app: Flask, user: Any = None, **_: Any) -> None:
        if user is None or not getattr(user, "is_authenticated", False):
            return
        try:
            revoke(str(user.get_id()))
        except OutboxFull:
            # Its streams here have ended; elsewhere the next look at who is connected does it.
            # The logout itself is not to fail for that.
            logger.exception("a logout could not be told to the other instances")

    user_logged_out.connect(logged_out, app)
    return logged_out
