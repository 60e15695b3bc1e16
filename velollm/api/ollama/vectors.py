"""Embeddings as Ollama sends them. No I/O."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import orjson

from velollm.api.openai.vectors import shortened
from velollm.errors import BackendProtocolError
from velollm.messages import Embeddings, Timings

__all__ = ["decode_embeddings"]

JSON: TypeAlias = dict[str, Any]

SECOND = 1_000_000_000


def decode_embeddings(body: bytes, count: int, dimensions: int | None, backend: str) -> Embeddings:
    """The `count` vectors of an answer, of at most `dimensions` (older versions know no such field).

    Raises `BackendProtocolError` when `body` is no such answer.
    """
    try:
        answer = orjson.loads(body)
        vectors = [_vector(vector) for vector in answer["embeddings"] or ()]
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise BackendProtocolError(f"{backend} answered with malformed embeddings", backend=backend) from error
    if len(vectors) != count:
        problem = f"{backend} answered with {len(vectors)} embeddings for {count} inputs"
        raise BackendProtocolError(problem, backend=backend)
    if dimensions is not None:
        vectors = [shortened(vector, dimensions) for vector in vectors]
    total, load = answer.get("total_duration"), answer.get("load_duration")
    tokens = answer.get("prompt_eval_count")
    return Embeddings(
        vectors=vectors,
        model=answer["model"] if isinstance(answer.get("model"), str) else "",
        prompt_tokens=tokens if type(tokens) is int else 0,
        timings=Timings(
            total=total / SECOND if type(total) is int else None, load=load / SECOND if type(load) is int else None
        ),
    )


def _vector(value: Any) -> list[float]:
    if not isinstance(value, list) or not value:
        raise TypeError("embedding")
    if not all(type(number) in (float, int) and math.isfinite(number) for number in value):
        raise ValueError("embedding")
    return value
