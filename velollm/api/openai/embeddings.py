"""`POST /v1/embeddings`: floats, or little-endian float32 in base64 (the Python SDK's default)."""

from __future__ import annotations

import sys
from array import array
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

from velollm.api.openai.sampling import ENGINE, parse_engine
from velollm.api.values import at, expect_list, fail, get_bool, get_choice, get_int, get_str, kind, rest
from velollm.messages import Embeddings as Vectors
from velollm.messages import EmbedRequest, RequestContext

__all__ = ["Embeddings", "base64_floats"]

JSON: TypeAlias = dict[str, Any]

KNOWN = ENGINE | {"model", "input", "dimensions", "encoding_format", "truncate"}


class Embeddings:
    """The embeddings endpoint."""

    dialect: ClassVar[str] = "openai"

    def parse(self, payload: JSON, context: RequestContext) -> EmbedRequest:
        """Read the request; `input` is a string, strings, token ids, or arrays of token ids."""
        get_choice(payload, "encoding_format", ("float", "base64"))
        get_str(payload, "user")
        shared = parse_engine(payload)
        return EmbedRequest(
            model=get_str(payload, "model") or "",
            inputs=_inputs(payload.get("input")),
            dimensions=get_int(payload, "dimensions", low=1),
            truncate=get_bool(payload, "truncate"),
            keep_alive=shared["keep_alive"],
            options=shared["options"],
            extra=rest(payload, KNOWN),
            context=context,
        )

    def render(self, request: EmbedRequest, payload: JSON, result: Vectors) -> JSON:
        """The answer, in the encoding that `payload` asked for."""
        packed = payload.get("encoding_format") == "base64"
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": base64_floats(vector) if packed else vector}
                for index, vector in enumerate(result.vectors)
            ],
            "model": result.model or request.model,
            "usage": {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens},
        }


def base64_floats(vector: Sequence[float]) -> str:
    """A vector as base64 of its little-endian float32 bytes."""
    packed = array("f", vector)
    if sys.byteorder == "big":
        packed.byteswap()
    return b64encode(packed).decode("ascii")


def _inputs(value: Any) -> list[str | list[int]]:
    if isinstance(value, str):
        return [value]
    items = expect_list(value, "input", min_length=1)
    if type(items[0]) is int:
        return [_tokens(items, "input")]
    return [item if isinstance(item, str) else _tokens(item, at("input", number)) for number, item in enumerate(items)]


def _tokens(value: Any, path: str) -> list[int]:
    if not isinstance(value, list):
        fail(path, f"must be a string or an array of token ids, not {kind(value)}")
    for number, token in enumerate(expect_list(value, path, min_length=1)):
        if type(token) is not int or token < 0:
            fail(at(path, number), "must be a token id, as all items beside it")
    return value
