"""Cutting streams into frames: server-sent events (WHATWG HTML, §9.2) and newline-delimited JSON. No I/O.

Both decoders take bytes cut anywhere, give the same frames however they were cut, and look at each byte a bounded
number of times. A frame that is longer than `limit` and still not complete is an error.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from velollm.errors import BackendProtocolError

__all__ = ["LineDecoder", "SSEDecoder", "SSEFrame", "sse"]

LIMIT = 8 << 20  # an image in base64 fits; five copies of it, as decoding takes, still do no harm
BOM = b"\xef\xbb\xbf"
NEWLINE = 10
CARRIAGE = 13

# An empty line after a line, for any mixture of line ends. A \r that may yet turn out to be half a \r\n waits.
BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?=[^\n]))(?:\r\n|\n|\r(?=[^\n]))")
LONGEST_UNDECIDED = 3  # \r\n\r


class SSEFrame(NamedTuple):
    """One event: its type (empty: `message`), its data lines joined, its bytes as they came, blank line included."""

    event: str
    data: bytes
    raw: bytes


def sse(data: bytes, event: str | None = None) -> bytes:
    """The frame for `data`, which holds no line breaks."""
    if event is None:
        return b"data: " + data + b"\n\n"
    return b"event: " + event.encode() + b"\ndata: " + data + b"\n\n"


class SSEDecoder:
    """Server-sent events out of bytes: any line ends, comments, fields in any order.

    `feed` returns the frames that are complete; frames without data (comments, `retry`) are left out. The usual shape,
    `data: ...` and a blank line, takes a path of its own that never looks at single lines.
    """

    __slots__ = ("_carriage", "_limit", "_pieces", "_size", "_started", "_tail")

    def __init__(self, *, limit: int = LIMIT) -> None:
        self._pieces: list[bytes] = []  # the unfinished frame, as it came: no blank line in it
        self._size = 0
        self._tail = b""  # the last bytes of it
        self._limit = limit
        self._started = False
        self._carriage = False  # a \r has been seen

    def feed(self, piece: bytes) -> list[SSEFrame]:
        """Take bytes in; the frames that they complete."""
        if not self._started:
            piece = self._start(piece)
        if not self._carriage:
            if CARRIAGE not in piece:
                return self._feed_plain(piece)
            self._carriage = True
        return self._feed_any(piece)

    def _start(self, piece: bytes) -> bytes:
        """Skip the byte order mark, which may come in three pieces."""
        piece = self._take() + piece
        if len(piece) < len(BOM) and BOM.startswith(piece):
            self._keep(piece)
            return b""
        self._started = True
        return piece.removeprefix(BOM)

    def _feed_plain(self, piece: bytes) -> list[SSEFrame]:
        r"""No \r so far: a blank line is two newlines."""
        frames: list[SSEFrame] = []
        if self._size:
            end = self._end_of_unfinished(piece)
            if not end:
                self._keep(piece)
                return frames
            _add(frames, self._take() + piece[:end])
            piece = piece[end:]
        parts = piece.split(b"\n\n")
        rest = parts.pop()
        for part in parts:
            if NEWLINE not in part and part.startswith(b"data: "):
                frames.append(SSEFrame("", part[6:], part + b"\n\n"))
            else:
                _add(frames, part + b"\n\n")
        if rest:
            self._keep(rest)
        return frames

    def _end_of_unfinished(self, piece: bytes) -> int:
        if piece.startswith(b"\n") and self._tail.endswith(b"\n"):
            return 1
        end = piece.find(b"\n\n")
        return end + 2 if end >= 0 else 0

    def _feed_any(self, piece: bytes) -> list[SSEFrame]:
        """Any line ends. A blank line that began in the unfinished frame is found through its last bytes."""
        frames: list[SSEFrame] = []
        known = len(self._tail)
        start = 0
        for match in BLANK_LINE.finditer(self._tail + piece):
            end = match.end() - known
            _add(frames, self._take() + piece[start:end])
            start = end
        self._keep(piece[start:])
        return frames

    def _keep(self, piece: bytes) -> None:
        """Add to the unfinished frame."""
        self._size += len(piece)
        if self._size > self._limit:
            self._pieces.clear()
            raise BackendProtocolError(f"an event of the stream is longer than {self._limit} bytes")
        if piece:
            self._pieces.append(piece)
            self._tail = (self._tail + piece[-LONGEST_UNDECIDED:])[-LONGEST_UNDECIDED:]

    def _take(self) -> bytes:
        """The unfinished frame, which begins anew."""
        if not self._size:
            return b""
        taken = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        self._tail = b""
        return taken

    def end(self) -> list[SSEFrame]:
        """The stream is over: a last frame without its blank line still counts here (engines forget it)."""
        rest = self._take()
        frames: list[SSEFrame] = []
        if rest.strip():
            _add(frames, rest, closing=b"\n\n")
        return frames


def _add(frames: list[SSEFrame], raw: bytes, closing: bytes = b"") -> None:
    event = ""
    data: list[bytes] = []
    for line in raw.splitlines():
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            event = value.removeprefix(b" ").decode("utf-8", "replace")
    if data:
        frames.append(SSEFrame(event, b"\n".join(data), raw + closing))


class LineDecoder:
    """Lines out of bytes, as NDJSON has them: complete, not empty, without their end."""

    __slots__ = ("_limit", "_pieces", "_size")

    def __init__(self, *, limit: int = LIMIT) -> None:
        self._pieces: list[bytes] = []  # the unfinished line
        self._size = 0
        self._limit = limit

    def feed(self, piece: bytes) -> list[bytes]:
        """Take bytes in; the lines that they complete."""
        if b"\n" not in piece:
            self._keep(piece)
            return []
        if self._pieces:
            piece = self._take() + piece
        lines = piece.split(b"\n")
        self._keep(lines.pop())
        return [line.rstrip(b"\r") for line in lines if line and not line.isspace()]

    def _keep(self, piece: bytes) -> None:
        if piece:
            self._size += len(piece)
            if self._size > self._limit:
                self._pieces.clear()
                raise BackendProtocolError(f"a line of the stream is longer than {self._limit} bytes")
            self._pieces.append(piece)

    def _take(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        return taken

    def end(self) -> list[bytes]:
        """The stream is over: the last line, if it has no end."""
        rest = self._take().rstrip(b"\r")
        return [rest] if rest.strip() else []
