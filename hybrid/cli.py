"""`flask hybrid …`: sending and watching events from a shell."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from flask import Blueprint, current_app
from flask.cli import AppGroup, with_appcontext

from hybrid.errors import HybridError
from hybrid.events import CONTROL, Cursor, Event
from hybrid.wire import to_json

if TYPE_CHECKING:
    from hybrid.bus.store import Store
    from hybrid.config import Settings

PATIENCE = 5.0
"""Seconds between two readings when nothing is announced."""


def register(blueprint: Blueprint) -> None:
    """Give the blueprint its commands."""
    blueprint.cli.help = HELP
    for command in COMMANDS:
        blueprint.cli.add_command(command)


@click.command()
@click.argument("type")
@click.argument("data", required=False)
@click.option("--text", help="Send this text in place of JSON data.")
@click.option("--user", "users", multiple=True, help="Address a user; repeatable.")
@click.option("--role", "roles", multiple=True, help="Address a role; repeatable.")
@click.option("--topic", "topics", multiple=True, help="Address a topic; repeatable.")
@with_appcontext
def emit(
    type: str,
    data: str | None,
    text: str | None,
    users: tuple[str, ...],
    roles: tuple[str, ...],
    topics: tuple[str, ...],
) -> None:
    """Send an event of TYPE with DATA, which is JSON. To everyone, if nobody is addressed."""
    from hybrid.publisher import Publisher

    settings = _settings()
    try:
        value = None if data is None else json.loads(data)
    except ValueError as error:
        raise click.BadParameter(f"{data} is not JSON ({error}); give text as --text") from error
    addressed: dict[str, Any] = {"users": users, "roles": roles, "topics": topics}
    if not any(addressed.values()):
        addressed = {}
    try:
        publisher = Publisher(
            settings.url, namespace=settings.namespace, max_event_bytes=settings.max_event_bytes
        )
        try:
            click.echo(publisher.emit(type, value, text=text, **addressed))
        finally:
            publisher.close()
    except HybridError as error:
        raise click.ClickException(str(error)) from error


@click.command()
@click.option("--since", help="Begin after this cursor; 0 is the oldest event that is kept.")
@click.option("--count", type=int, help="End after so many events.")
@with_appcontext
def tail(since: str | None, count: int | None) -> None:
    """Print events as they come: one JSON object a line."""
    import redis

    from hybrid.bus.diagnosis import diagnose
    from hybrid.bus.store import Store

    settings = _settings()
    if settings.url == "memory://":
        raise click.ClickException(
            "HYBRID_URL is memory://: that log lives in the server's own process; set redis://…"
        )
    store = Store(settings.url, settings.namespace)
    try:
        for printed, (cursor, event) in enumerate(_follow(store, since), 1):
            click.echo(_line(cursor, event))
            if printed == count:
                return
    except KeyboardInterrupt:
        pass
    except (redis.RedisError, OSError) as error:
        raise click.ClickException(str(diagnose(error))) from error
    finally:
        store.close()


@click.command()
@click.option("--watch", is_flag=True, help="Look again every second, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="All figures, as JSON.")
@click.option("--url", help="Ask this GET /monitor in place of Redis; the only way on memory://.")
@click.option("--header", "headers", multiple=True, help="'Name: value' for --url; repeatable.")
@with_appcontext
def stats(watch: bool, as_json: bool, url: str | None, headers: tuple[str, ...]) -> None:
    """Print the figures of the deployment."""
    from hybrid.monitor.terminal import by_http, by_redis, table

    settings = _settings()
    if url is None and settings.url == "memory://":
        raise click.ClickException(
            "HYBRID_URL is memory://: the figures are in the server's own process. Ask it: --url"
            f" http://localhost:8000{settings.url_prefix}/monitor, with what logs you in as"
            " --header, or set redis://…"
        )
    try:
        look = by_redis(settings.url, settings.namespace) if url is None else by_http(url, headers)
        while True:
            picture = look()
            text = to_json(picture) if as_json else table(picture)
            if watch and not as_json:
                click.clear()
            click.echo(text)
            if not watch:
                return
            time.sleep(1)
    except HybridError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        pass


def _follow(store: "Store", since: str | None) -> Iterator[tuple[Cursor, Event]]:
    """The events after a place, for ever; begins at the end without one."""
    bell = store.subscribe()
    try:
        position = Cursor.parse(since) if since else store.read(None).head
        if since and since != "0" and position is None:
            raise click.ClickException(f"{since} is no cursor")
        if since == "0":
            position = None
        while True:
            page = store.read(position)
            if page.verdict not in ("ok", "empty"):
                raise click.ClickException(f"the log does not go on from there ({page.verdict})")
            for stored, event in page.entries:
                position = stored.cursor
                if not event.type.startswith(CONTROL):
                    yield position, event
            if not page.entries:
                bell.get_message(timeout=PATIENCE)
    finally:
        bell.close()


def _line(cursor: Cursor, event: Event) -> str:
    audience = event.audience
    addressed = {
        name: sorted(names)
        for name, names in (
            ("users", audience.users),
            ("roles", audience.roles),
            ("topics", audience.topics),
        )
        if names
    }
    return to_json(
        {
            "id": event.id,
            "cursor": str(cursor),
            "at": event.at,
            "type": event.type,
            "text" if event.is_text else "data": event.data,
            **addressed,
        }
    )


@click.command()
@click.argument("url", required=False)
@click.option("--gunicorn", help="gunicorn's arguments, as '-k gevent -w 2'; its file is read too.")
@click.option("--header", "headers", multiple=True, help="'Name: value', as for a login.")
@click.option("--idle/--no-idle", default=True, help="Wait for two heartbeats, to find cuts.")
@click.option("--insecure", is_flag=True, help="Take any certificate.")
@click.option("--strict", is_flag=True, help="What needs a look fails as well.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a finding.")
@with_appcontext
def doctor(
    url: str | None,
    gunicorn: str | None,
    headers: tuple[str, ...],
    idle: bool,
    insecure: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Look for what stands in the way of live events, and say how it is fixed.

    Looks at the settings of the application and of gunicorn, at Redis, and, with the public URL of
    the running site, at all that is on the way. Ends with 1 if something is to be fixed.
    """
    from hybrid.doctor import Visit, lines, look, summary

    _settings()
    sent = [(name.strip(), value.strip()) for name, _, value in (h.partition(":") for h in headers)]
    app = current_app._get_current_object()  # type: ignore[attr-defined] # behind the proxy
    findings = []
    for finding in look(Visit(app, url, gunicorn, tuple(sent), idle, not insecure)):
        findings.append(finding)
        for line in [to_json(asdict(finding))] if as_json else lines(finding):
            click.echo(line)
    if not as_json:
        click.echo(summary(findings))
    bad = ("fail", "look") if strict else ("fail",)
    if any(finding.verdict in bad for finding in findings):
        sys.exit(1)


HELP = "Live events."
COMMANDS = (emit, tail, stats, doctor)


@click.group(cls=AppGroup, name="hybrid", help=HELP)
def group() -> None:
    """The same commands for `[project.entry-points."flask.commands"]`.

    Flask finds that group before it loads the application, and prefers it to the blueprint's of
    the same name: so there is one `flask hybrid`, whether the package is installed or not.
    """


for _command in COMMANDS:
    group.add_command(_command)


def _settings() -> "Settings":
    if "hybrid" not in current_app.extensions:
        raise click.ClickException("this app has no Hybrid; call Hybrid(app) or init_app(app)")
    settings: Settings = current_app.extensions["hybrid"].settings
    return settings
