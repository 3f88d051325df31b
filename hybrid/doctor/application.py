"""What the application's own settings say."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hybrid.doctor.finding import Finding

if TYPE_CHECKING:
    from flask import Flask

    from hybrid.application import AppState

SHORTEST_SECRET = 16
KNOWN_SECRETS = {
    "dev",
    "secret",
    "changeme",
    "change me",
    "password",
    "my-secret-key",
    "secret-key",
}
NEW_SECRET = "python -c 'import secrets; print(secrets.token_hex(32))'"


def look_at_application(app: "Flask") -> Iterator[Finding]:
    state: AppState = app.extensions["hybrid"]
    yield _secret(app)
    if app.debug:
        yield Finding(
            "look",
            "debug mode",
            "on: the monitor and test events are open to everybody",
            "unset FLASK_DEBUG in production",
        )
    else:
        yield Finding("ok", "debug mode", "off")
    if state.hooks.can_monitor is None:
        yield Finding(
            "look" if app.debug else "ok",
            "monitor access",
            "no can_monitor hook: nobody outside of debug mode, everybody in it",
            "decide in @realtime.can_monitor who may read it",
        )
    else:
        yield Finding("ok", "monitor access", "decided by the can_monitor hook")


def _secret(app: "Flask") -> Finding:
    secret = app.config["SECRET_KEY"]
    fix = f"set SECRET_KEY to the output of: {NEW_SECRET}"
    if secret is None:
        if hasattr(app, "login_manager"):
            return Finding("fail", "secret key", "none, and Flask-Login cannot do without", fix)
        return Finding("ok", "secret key", "none: needed as soon as there are sessions or tickets")
    if len(secret) < SHORTEST_SECRET or str(secret).lower() in KNOWN_SECRETS:
        return Finding(
            "look" if app.debug else "fail",
            "secret key",
            "can be guessed: whoever does can be anybody",
            fix,
        )
    return Finding("ok", "secret key", "set")
