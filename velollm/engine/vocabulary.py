"""The tokens of a model: text to ids and back, by llama.cpp's own tokenizer."""

from __future__ import annotations

import ctypes as c
import re
from collections.abc import Sequence
from typing import Any

from velollm.errors import RequestError

__all__ = ["Vocabulary"]

LONGEST_PIECE = 1024
# Control tokens that stand for markup which whoever reads the answer must see.
MARKUP = re.compile(rb"tool|call|func|think|python_tag|action", re.IGNORECASE)


class Vocabulary:
    """The vocabulary at `handle` of `library`. Methods may be called from any thread."""

    def __init__(self, library: Any, handle: int) -> None:
        self._library = library
        self.handle = handle
        self.size: int = library.llama_vocab_n_tokens(handle)
        self.bos: int = library.llama_vocab_bos(handle)
        self.eos: int = library.llama_vocab_eos(handle)
        self.eot: int = library.llama_vocab_eot(handle)
        self.adds_bos: bool = library.llama_vocab_get_add_bos(handle)
        self.fim: tuple[int, int, int] = tuple(  # prefix, suffix, middle; -1 where the model knows none
            getattr(library, f"llama_vocab_fim_{part}")(handle) for part in ("pre", "suf", "mid")
        )
        self.ends = frozenset(token for token in range(self.size) if library.llama_vocab_is_eog(handle, token))
        self._pieces = [self._spoken(token) for token in range(self.size)]

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none for control tokens, except for those that mark calls and reasoning."""
        return self._pieces[token]

    def name(self, token: int) -> bytes:
        """The bytes of a token, and the name of a control token."""
        return self._pieces[token] or self._piece(token, special=True) if 0 <= token < self.size else b""

    def is_end(self, token: int) -> bool:
        """Whether an answer ends with this token."""
        return token in self.ends

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """The ids of `text`. `parse_special` reads names of control tokens in it as these tokens."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            ids = (c.c_int32 * room)()
            count = self._library.llama_tokenize(
                self.handle, data, len(data), c.addressof(ids), room, add_special, parse_special
            )
            if count >= 0:
                return ids[:count]
            room = -count

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`. Raises `RequestError` for ids that are none."""
        if any(not 0 <= token < self.size for token in tokens):
            raise RequestError(f"token ids of this model lie between 0 and {self.size - 1}", param="tokens")
        ids = (c.c_int32 * len(tokens))(*tokens)
        room = 16 * len(tokens) + 16
        while True:
            text = c.create_string_buffer(room)
            count = self._library.llama_detokenize(self.handle, c.addressof(ids), len(tokens), text, room, False, False)
            if count >= 0:
                return text.raw[:count].decode("utf-8", "replace")
            room = -count

    def _spoken(self, token: int) -> bytes:
        data = self._piece(token, special=False)
        if data or token in self.ends:
            return data
        name = self._piece(token, special=True)
        return name if MARKUP.search(name) else b""

    def _piece(self, token: int, *, special: bool) -> bytes:
        text = c.create_string_buffer(LONGEST_PIECE)
        count = self._library.llama_token_to_piece(self.handle, token, text, LONGEST_PIECE, 0, special)
        return text.raw[: max(count, 0)]
