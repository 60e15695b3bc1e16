"""The head of a request in bytes. What would break out of a line is refused here, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import httpx

__all__ = ["framing", "header_lines", "request_line", "tracing_headers"]

OWN = frozenset({b"content-length", b"transfer-encoding", b"connection"})  # these are the transport's to say
TRACING = frozenset({"traceparent", "tracestate"})  # of a client's headers, these go on to engines
BODYLESS = frozenset({"GET", "HEAD", "DELETE"})
CARRIAGE, NEWLINE = 13, 10


def request_line(method: str, target: bytes) -> bytes:
    """`POST /path HTTP/1.1` with its line end. Raises `httpx.LocalProtocolError`, as `header_lines` does."""
    if not method.isalpha() or CARRIAGE in target or NEWLINE in target or b" " in target:
        raise httpx.LocalProtocolError("the method or the path holds blanks or line breaks")
    return b"%b %b HTTP/1.1\r\n" % (method.encode(), target)


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The lines of all headers but those about framing and the connection."""
    lines = b""
    count = 0
    for name, value in headers:
        if name.lower() not in OWN:
            lines += b"%b: %b\r\n" % (name, value)
            count += 1
    if lines.count(b"\n") != count or lines.count(b"\r") != count:
        raise httpx.LocalProtocolError("a header holds a line break")
    return lines


def tracing_headers(known: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Those of a client's headers that engines get as well."""
    if TRACING.isdisjoint(known):
        return []
    return [(name.encode(), known[name].encode("latin-1")) for name in sorted(TRACING) if name in known]


def framing(method: str, size: int | None) -> bytes:
    """The header that says where the body of `size` bytes ends (None: in chunks), and the blank line."""
    if size is None:
        return b"transfer-encoding: chunked\r\n\r\n"
    if size or method not in BODYLESS:
        return b"content-length: %d\r\n\r\n" % size
    return b"\r\n"
