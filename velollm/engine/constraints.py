"""What grammars allow next: JSON schemas by llguidance (masks in microseconds), GBNF by llama.cpp. Needs NumPy.

The wheel has both inside. A constraint lives on the engine's thread.
"""

from __future__ import annotations

import ctypes as c
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from velollm.engine.llama_cpp import GrammarTokenizer, TokenDataArray
from velollm.engine.vocabulary import Vocabulary
from velollm.errors import RequestError

__all__ = ["Grammars"]

Floats = npt.NDArray[np.float32]

SPECIAL = b"\xff"  # marks tokens that are no text
INIT_BYTES = 1024  # struct LlgConstraintInit has less, and only the library looks into it
TOKEN = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
LARGEST_GRAMMAR = 1_000_000
DEEPEST_SCHEMA = DEEPEST_GRAMMAR = 200
VALUES = frozenset({"const", "enum", "default", "examples"})  # what stands there is no schema
# JSON as models write it, in one line: with white space at will, small ones go on with it for ever.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammars:
    """Makes constraints for one vocabulary. Methods raise `RequestError` for grammars that make no sense."""

    def __init__(self, library: Any, vocabulary: Vocabulary) -> None:
        self._library = library
        self._vocabulary = vocabulary
        self._init: Any = None

    def json_schema(self, schema: Any) -> Callable[[], SchemaConstraint]:
        """Any JSON that satisfies `schema`; keywords that cannot be enforced are left aside.

        An object whose properties are named has no others, unless the schema says so: models would go on inventing.
        """
        if not isinstance(schema, dict) and schema is not True:
            words = "no JSON satisfies the schema false" if schema is False else "a JSON schema is an object"
            raise RequestError(words, param="response_format")
        wanted = {} if schema is True else _closed(schema)
        style = {**JSON_STYLE, "lenient": True}
        text = json.dumps({**wanted, "x-guidance": style})
        return lambda: self._match(b"json_schema", text, "response_format")

    def lark(self, grammar: str) -> Callable[[], SchemaConstraint]:
        """A grammar in llguidance's dialect of Lark."""
        return lambda: self._match(b"lark", grammar, "grammar")

    def regex(self, pattern: str) -> Callable[[], SchemaConstraint]:
        """Text that matches `pattern` (Rust's regular expressions) as a whole."""
        return lambda: self._match(b"regex", pattern, "regex")

    def gbnf(self, grammar: str) -> Callable[[], GbnfConstraint]:
        """A grammar as llama.cpp writes them, with a rule `root`."""
        return lambda: self._gbnf(grammar)

    def _match(self, kind: bytes, text: str, param: str) -> SchemaConstraint:
        if len(text) > LARGEST_GRAMMAR:
            raise RequestError("the grammar is too large", param=param)
        library = self._library
        if self._init is None:
            self._init = self._tokenizer()
        matcher = library.llg_new_matcher(self._init, kind, text.encode("utf-8", "replace"))
        error = library.llg_matcher_get_error(matcher)
        if error:
            library.llg_free_matcher(matcher)
            raise RequestError(f"the grammar cannot be used: {error.decode('utf-8', 'replace')[:500]}", param=param)
        return SchemaConstraint(library, matcher, self._vocabulary)

    def _gbnf(self, grammar: str) -> GbnfConstraint:
        if len(grammar) > LARGEST_GRAMMAR or "\0" in grammar:
            raise RequestError("the grammar is too large, or no text", param="grammar")
        if _depth(grammar) > DEEPEST_GRAMMAR:  # llama.cpp's parser would run out of stack
            raise RequestError("the grammar is nested too deeply", param="grammar")
        handle = self._library.llama_sampler_init_grammar(
            self._vocabulary.handle, grammar.encode("utf-8", "replace"), b"root"
        )
        if not handle:
            raise RequestError("the grammar cannot be parsed, or has no rule `root`", param="grammar")
        return GbnfConstraint(self._library, handle, self._vocabulary)

    def _tokenizer(self) -> Any:
        vocabulary, library = self._vocabulary, self._library
        pieces = [vocabulary.piece(token) for token in range(vocabulary.size)]
        names = [
            piece or (SPECIAL + name if (name := vocabulary.name(token)) else b"") for token, piece in enumerate(pieces)
        ]
        lengths = np.array([len(name) for name in names], np.uint32)
        end = vocabulary.eot if vocabulary.eot >= 0 else vocabulary.eos
        given = GrammarTokenizer(
            vocab_size=vocabulary.size,
            tok_eos=max(end, 0),
            token_lens=lengths.ctypes.data,
            token_bytes=b"".join(names),
            use_approximate_greedy_tokenize_fn=True,
        )
        words = c.create_string_buffer(500)
        tokenizer = library.llg_new_tokenizer(c.byref(given), words, len(words))
        if not tokenizer:
            raise RequestError(f"this model's vocabulary knows no grammars: {words.value.decode('utf-8', 'replace')}")
        init = c.create_string_buffer(INIT_BYTES)
        library.llg_constraint_init_set_defaults(init, tokenizer)
        return init


class SchemaConstraint:
    """What llguidance allows: a mask over the vocabulary for each step."""

    def __init__(self, library: Any, matcher: int, vocabulary: Vocabulary) -> None:
        self._library = library
        self._matcher = matcher
        self._vocabulary = vocabulary
        self.done = False

    def restrict(self, logits: Floats) -> Floats:
        library, size = self._library, self._vocabulary.size
        if library.llg_matcher_compute_mask(self._matcher) != 0:
            error = library.llg_matcher_get_error(self._matcher) or b"no reason given"
            raise RequestError(f"the grammar became too costly: {error.decode('utf-8', 'replace')[:300]}")
        words = (c.c_uint32 * ((size + 31) // 32)).from_address(library.llg_matcher_get_mask(self._matcher))
        bits = np.frombuffer(memoryview(words), np.uint8)
        allowed = np.unpackbits(bits, count=size, bitorder="little").view(np.bool_)
        return np.where(allowed, logits, np.float32(-np.inf))

    def accept(self, token: int) -> None:
        if not self._vocabulary.is_end(token):
            self._library.llg_matcher_consume_token(self._matcher, token)
            self.done = self._library.llg_matcher_is_stopped(self._matcher)

    def copy(self) -> SchemaConstraint:
        return SchemaConstraint(self._library, self._library.llg_clone_matcher(self._matcher), self._vocabulary)

    def __del__(self) -> None:
        self._library.llg_free_matcher(self._matcher)


class GbnfConstraint:
    """What a GBNF grammar allows, by llama.cpp's own matcher."""

    def __init__(self, library: Any, handle: int, vocabulary: Vocabulary) -> None:
        self._library = library
        self._handle = handle
        self._vocabulary = vocabulary
        self._ids = np.arange(vocabulary.size, dtype=np.int32)
        self.done = False

    def restrict(self, logits: Floats) -> Floats:
        return self._apply(self._ids, logits)

    def accept(self, token: int) -> None:
        if not self._vocabulary.is_end(token):
            self._library.llama_sampler_accept(self._handle, token)

    def copy(self) -> GbnfConstraint:
        return GbnfConstraint(self._library, self._library.llama_sampler_clone(self._handle), self._vocabulary)

    def _apply(self, ids: npt.NDArray[np.int32], logits: Floats) -> Floats:
        data = np.empty(len(ids), TOKEN)
        data["id"], data["logit"], data["p"] = ids, logits, 0
        given = TokenDataArray(data.ctypes.data, len(ids), -1, False)
        self._library.llama_sampler_apply(self._handle, c.addressof(given))
        return np.ascontiguousarray(data["logit"])

    def __del__(self) -> None:
        self._library.llama_sampler_free(self._handle)


def _closed(node: Any, depth: int = 0) -> Any:
    """The schema with every object closed that names its properties; parts of an `allOf` must stay open."""
    if depth > DEEPEST_SCHEMA:
        raise RequestError("the JSON schema is nested too deeply", param="response_format")
    if isinstance(node, list):
        return [_closed(item, depth + 1) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: value if key in VALUES else _closed(value, depth + 1) for key, value in node.items()}
    named = isinstance(node.get("properties"), dict)
    if named and not node.keys() & {"additionalProperties", "patternProperties", "allOf", "$ref"}:
        made["additionalProperties"] = False
    if "allOf" in node:
        made["allOf"] = node["allOf"]
    return made


def _depth(grammar: str) -> int:
    """How deep its parentheses are nested, those in strings counted too."""
    depth = deepest = 0
    for letter in grammar:
        if letter == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif letter == ")":
            depth = max(depth - 1, 0)
    return deepest
