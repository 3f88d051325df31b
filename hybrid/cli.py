"""`flask hybrid …`: sending and watching events from a shell."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
from flask import Blueprint, current_app

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
    blueprint.cli.help = "Live events."
    blueprint.cli.add_command(emit)
    blueprint.cli.add_command(tail)


@click.command()
@click.argument("type")
@click.argument("data", required=False)
@click.option("--text", help="Send this text in place of JSON data.")
@click.option("--user", "users", multiple=True, help="Address a user; repeatable.")
@click.option("--role", "roles", multiple=True, help="Address a role; repeatable.")
@click.option("--topic", "topics", multiple=True, help="Address a topic; repeatable.")
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
        publisher = Publisher(settings.url, namespace=settings.namespace)
        try:
            click.echo(publisher.emit(type, value, text=text, **addressed))
        finally:
            publisher.close()
    except HybridError as error:
        raise click.ClickException(str(error)) from error


@click.command()
@click.option("--since", help="Begin after this cursor; 0 is the oldest event that is kept.")
@click.option("--count", type=int, help="End after so many events.")
def tail(since: str | None, count: int | None) -> None:
    """Print events as they come: one JSON object a line."""
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
    finally:
        store.close()


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
            for offset, _, event in page.entries:
                assert page.head is not None
                position = Cursor(page.head.epoch, offset, event.id)
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


def _settings() -> "Settings":
    settings: Settings = current_app.extensions["hybrid"].settings
    return settings
