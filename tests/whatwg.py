"""The client's end of Server-Sent Events, written from the WHATWG HTML standard, section 9.2.

Shares nothing with the package: what this reads is what any browser would. Quotes are the
standard's own sentences.
"""

import codecs
import re
from dataclasses import dataclass

_LINE_END = re.compile("\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Block:
    """One dispatched event."""

    id: str | None
    """The id that this block itself set; None if it set none. What a browser reports as
    `lastEventId` is `Parser.last_event_id`, which outlives the block."""
    type: str
    data: str
    fields: tuple[tuple[str, str], ...] = ()
    """The lines whose field name the standard does not know, which a browser ignores."""


class Parser:
    """Bytes in, events out; how the bytes are cut up makes no difference."""

    def __init__(self) -> None:
        self.last_event_id = ""
        """What a browser would send as Last-Event-ID if the connection broke now."""
        self.retry: int | None = None
        """The reconnection time in milliseconds, if the stream has set one."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._started = False
        self._after_cr = False
        self._partial: list[str] = []
        self._id_buffer = ""
        self._id: str | None = None
        self._type = ""
        self._data = ""
        self._fields: list[tuple[str, str]] = []

    def feed(self, data: bytes) -> list[Block]:
        """The events that these bytes complete."""
        text = self._decoder.decode(data)
        if text and not self._started:
            # "one leading U+FEFF BYTE ORDER MARK character must be ignored"
            self._started = True
            text = text.removeprefix("\ufeff")
        if text and self._after_cr:
            # A CR ended the line at once; an LF right after it belongs to the same line end.
            self._after_cr = False
            text = text.removeprefix("\n")
        if not text:
            return []
        self._after_cr = text.endswith("\r")
        *ended, rest = _LINE_END.split(text)
        if ended:
            ended[0] = "".join([*self._partial, ended[0]])
            self._partial.clear()
        self._partial.append(rest)
        blocks = []
        for line in ended:
            if line:
                self._process(line)
            elif (block := self._dispatch()) is not None:
                blocks.append(block)
        return blocks

    def _process(self, line: str) -> None:
        name, _, value = line.partition(":")
        # "If value starts with a U+0020 SPACE character, remove it from value."
        value = value.removeprefix(" ")
        if name == "event":
            self._type = value
        elif name == "data":
            self._data += value + "\n"
        elif name == "id":
            # "If the field value does not contain U+0000 NULL [...]. Otherwise, ignore the field."
            if "\0" not in value:
                self._id_buffer = self._id = value
        elif name == "retry":
            # "If the field value consists of only ASCII digits"
            if re.fullmatch("[0-9]+", value):
                self.retry = int(value)
        elif name:  # without a name it is a comment
            self._fields.append((name, value))

    def _dispatch(self) -> Block | None:
        self.last_event_id = self._id_buffer
        block = None
        # "If the data buffer is an empty string, set the data buffer and the event type buffer
        # to the empty string and return."
        if self._data:
            block = Block(
                self._id,
                self._type or "message",
                self._data.removesuffix("\n"),
                tuple(self._fields),
            )
        self._id, self._type, self._data = None, "", ""
        self._fields.clear()
        return block
