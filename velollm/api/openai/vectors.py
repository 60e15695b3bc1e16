"""Embeddings as engines send them, floats or base64, as vectors in the order of the inputs. No I/O."""

from __future__ import annotations

import math
import sys
from array import array
from base64 import b64decode
from typing import Any, TypeAlias

from velollm.api.openai.engine_words import read_usage
from velollm.api.openai.whole import json_object
from velollm.errors import BackendProtocolError
from velollm.messages import Embeddings

__all__ = ["decode_embeddings", "shortened"]

JSON: TypeAlias = dict[str, Any]


def decode_embeddings(body: bytes, count: int, backend: str, dimensions: int | None = None) -> Embeddings:
    """The `count` vectors of an embeddings answer, of at most `dimensions` (llama-server knows no such field).

    Raises as `decode_answer` does.
    """
    answer = json_object(body, backend)
    vectors: list[list[float] | None] = [None] * count
    try:
        for number, item in enumerate(answer["data"]):
            vectors[item.get("index", number)] = _vector(item["embedding"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BackendProtocolError(f"{backend} answered with malformed embeddings", backend=backend) from error
    found = [vector for vector in vectors if vector is not None]
    if len(found) != count:
        problem = f"{backend} answered with {len(found)} embeddings for {count} inputs"
        raise BackendProtocolError(problem, backend=backend)
    usage = read_usage(answer)
    model = answer.get("model")
    return Embeddings(
        vectors=found if dimensions is None else [shortened(vector, dimensions) for vector in found],
        model=model if isinstance(model, str) else "",
        prompt_tokens=usage.prompt_tokens if usage else 0,
    )


def shortened(vector: list[float], dimensions: int) -> list[float]:
    """The leading dimensions, of length one again."""
    if len(vector) <= dimensions:
        return vector
    cut = vector[:dimensions]
    length = math.sqrt(sum(number * number for number in cut))
    return [number / length for number in cut] if length else cut


def _vector(value: Any) -> list[float]:
    if isinstance(value, str):
        packed = array("f", b64decode(value, validate=True))
        if sys.byteorder == "big":
            packed.byteswap()
        value = packed.tolist()
    if not isinstance(value, list) or not value:
        raise TypeError("embedding")
    if not all(type(number) in (float, int) and math.isfinite(number) for number in value):
        raise ValueError("embedding")
    return value
