"""Everything this package raises on purpose, one sentence each."""


class HybridError(Exception):
    """The family: catch this to catch all that the package raises on purpose."""


class InvalidEvent(HybridError, ValueError):
    """An event was refused before anything was stored or sent."""


class EventTooLarge(InvalidEvent):
    """An event's encoded data is over `HYBRID_MAX_EVENT_BYTES`."""


class ConfigError(HybridError, ValueError):
    """A `HYBRID_` setting has a value that cannot be used."""


class NotReady(HybridError, RuntimeError):
    """The extension was used before `init_app`, or with no way to tell which app is meant."""


class OutboxFull(HybridError):
    """Redis is away, and as many events as are allowed wait for it: this one was not kept."""


class NotStored(HybridError):
    """Redis could not be reached in time; the events of `ids` may be stored or not."""

    def __init__(self, message: str, ids: list[str]) -> None:
        super().__init__(message)
        self.ids = ids


class TooManyConnections(HybridError):
    """This instance holds as many streams and long polls as it may."""


class Draining(TooManyConnections):
    """This instance is about to go: whoever comes now is to come again, to another one."""


class TooManyOfOne(TooManyConnections):
    """A user or an address holds as many streams as one may."""


class NoFigures(HybridError):
    """The figures of the deployment could not be had, and why."""
