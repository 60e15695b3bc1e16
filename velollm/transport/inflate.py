"""Undoing a compression that nobody asked for, a bounded piece at a time: a bomb is noticed before it has gone off."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

__all__ = ["ENCODINGS", "Inflater"]

ENCODINGS = frozenset({b"gzip", b"x-gzip", b"deflate"})
LARGEST_PART = 1 << 20
GZIP_OR_ZLIB = 47
RAW_DEFLATE = -15  # what some servers mean by `deflate` (RFC 9110, 8.4.1.2)


class Inflater:
    """Decompresses gzip, zlib and raw deflate. Raises `zlib.error` on anything else, also after the end."""

    __slots__ = ("_decompressor", "_encoding", "_known")

    def __init__(self, encoding: bytes) -> None:
        self._encoding = encoding
        self._decompressor = zlib.decompressobj(GZIP_OR_ZLIB)
        self._known = 0  # bytes that were taken

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The plain bytes, in parts of 1 MiB at most."""
        while piece:
            if self._decompressor.eof:
                raise zlib.error("more bytes after the end")
            try:
                part = self._decompressor.decompress(piece, LARGEST_PART)
            except zlib.error:
                if self._known or self._encoding != b"deflate":
                    raise
                self._decompressor = zlib.decompressobj(RAW_DEFLATE)
                part = self._decompressor.decompress(piece, LARGEST_PART)
            self._known += len(piece)
            if part:
                yield part
            piece = self._decompressor.unconsumed_tail or self._decompressor.unused_data

    def end(self) -> None:
        """No more will come; raises `zlib.error` when more was due. No bytes at all are an empty body."""
        if self._known and not self._decompressor.eof:
            raise zlib.error("broke off")
