"""The reader's side of Server-Sent Events: bytes in any pieces to messages. Pure.

Ruled by the WHATWG HTML standard, section 9.2.6 (interpreting an event stream), with two of its
choices made otherwise: a block without data is a message too (heartbeats move the cursor that way),
and fields of our own (`eid`, `at`) are kept. For tests and `flask hybrid doctor`; browsers have
theirs.
"""

import codecs
import json
import re
from dataclasses import dataclass, field
from typing import Any

_LINE_END = re.compile("\r\n|\r|\n")


@dataclass(slots=True)
class Message:
    """One block of a stream."""

    type: str = "message"
    text: str | None = None
    """The lines of data, joined; None for a block without any, a heartbeat for instance."""
    id: str | None = None
    retry: int | None = None
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Any:
        """The data, read as JSON. Raises `ValueError` where it is none, or not there."""
        if self.text is None:
            raise ValueError("a block without data")
        return json.loads(self.text)


class Parser:
    """Feed it bytes; it gives the messages that they complete.

    Takes time linear in the bytes, however they are cut.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._partial: list[str] = []
        """Pieces of the line that has not ended."""
        self._after_cr = False
        self._lines: list[str] = []

    def feed(self, data: bytes) -> list[Message]:
        text = self._decoder.decode(data)
        if not text:
            return []
        messages = []
        # The CR ended a line already; the LF after it, if it comes, is the rest of that end.
        after_cr, self._after_cr = self._after_cr, text.endswith("\r")
        first, *others = _LINE_END.split(text.removeprefix("\n") if after_cr else text)
        self._partial.append(first)
        if not others:
            return []
        lines = ["".join(self._partial), *others[:-1]]
        self._partial = others[-1:]
        for line in lines:
            if line:
                self._lines.append(line)
            elif self._lines:
                if message := _message(self._lines):
                    messages.append(message)
                self._lines = []
        return messages


def _message(lines: list[str]) -> Message | None:
    """A block's message; None for one of comments only."""
    message = Message()
    data = []
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            message.type = value or "message"
        elif name == "id" and "\0" not in value:
            message.id = value
        elif name == "retry" and value.isascii() and value.isdecimal():
            message.retry = int(value)
        elif name:
            message.fields[name] = value
    if data:
        message.text = "\n".join(data)
    elif message == Message():
        return None
    return message
