"""Live updates for Flask: Server-Sent Events where they work, polling where they don't.

The names here are the public face. They load on first use, so that a process that only
publishes does not import Flask, and importing the package starts nothing at all.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hybrid.audience import Audience as Audience
    from hybrid.audience import Identity as Identity
    from hybrid.errors import ConfigError as ConfigError
    from hybrid.errors import EventTooLarge as EventTooLarge
    from hybrid.errors import HybridError as HybridError
    from hybrid.errors import InvalidEvent as InvalidEvent
    from hybrid.errors import NotReady as NotReady
    from hybrid.errors import NotStored as NotStored
    from hybrid.errors import OutboxFull as OutboxFull
    from hybrid.events import Cursor as Cursor
    from hybrid.events import Event as Event
    from hybrid.extension import Hybrid as Hybrid
    from hybrid.history import History as History
    from hybrid.publisher import Publisher as Publisher

_HOME = {
    "Audience": "audience",
    "ConfigError": "errors",
    "Cursor": "events",
    "Event": "events",
    "EventTooLarge": "errors",
    "History": "history",
    "Hybrid": "extension",
    "HybridError": "errors",
    "Identity": "audience",
    "InvalidEvent": "errors",
    "NotReady": "errors",
    "NotStored": "errors",
    "OutboxFull": "errors",
    "Publisher": "publisher",
}

__all__ = sorted(_HOME)  # noqa: PLE0605 - the table above is the one list of names


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"hybrid.{_HOME[name]}"), name)
