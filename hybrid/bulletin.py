"""What every stream is told once, outside of the log's order: how the bus is.

Only the newest counts. Who is live is told by the pump, who reads finds it by itself.
"""

from hybrid.connection import Connection
from hybrid.wire import control_frame


class Bulletin:
    """See the module's docstring. `version` counts; a connection keeps the one it was told."""

    def __init__(self) -> None:
        self.version = 0
        self.frame = b""

    def post(self, state: str, since: int) -> None:
        """`since` is Unix milliseconds."""
        self.frame = control_frame("status", {"bus": state, "since": since})
        self.version += 1

    def is_news(self, connection: Connection) -> bool:
        return connection.told != self.version

    def tell(self, connection: Connection) -> bytes:
        """The frame, for a connection that is sent it now."""
        connection.told = self.version
        return self.frame
