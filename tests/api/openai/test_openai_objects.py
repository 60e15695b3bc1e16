"""Embeddings, models and errors."""

from __future__ import annotations

import base64
import struct

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CreateEmbeddingResponse, Model

from velollm.api.openai import Embeddings, render_error, render_model, render_models
from velollm.api.openai.embeddings import base64_floats
from velollm.api.openai.vectors import decode_embeddings
from velollm.errors import (
    BackendProtocolError,
    BackendRefused,
    BackendTimeout,
    ModelNotFound,
    RateLimited,
    RequestError,
)
from velollm.messages import Embeddings as Vectors
from velollm.messages import EmbedRequest, ModelInfo, RequestContext


def parse(**fields: object) -> EmbedRequest:
    return Embeddings().parse({"model": "e", **fields}, RequestContext())


@pytest.mark.parametrize(
    ("given_input", "inputs"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a", [1]], ["a", [1]]),
    ],
)
def test_inputs(given_input: object, inputs: list[object]) -> None:
    assert parse(input=given_input).inputs == inputs


def test_request_keeps_what_engines_may_know() -> None:
    request = parse(input="a", dimensions=8, encoding_format="base64", user="u", truncate=False, keep_alive=5, other=1)
    assert (request.model, request.dimensions, request.truncate, request.keep_alive) == ("e", 8, False, 5)
    assert request.extra == {"user": "u", "other": 1}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input[0]"),
        ({"input": [1, "a"]}, "input[1]"),
        ({"input": ["a", 1]}, "input[1]"),
        ({"input": [[1.5]]}, "input[0][0]"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
    ],
)
def test_wrong_fields_are_named(fields: dict[str, object], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    assert caught.value.param == param


def test_floats_and_base64() -> None:
    result = Vectors(vectors=[[0.5, -1.0], [1.0, 2.0]], prompt_tokens=3)
    plain = Embeddings().render(parse(input=["a", "b"]), {}, result)
    CreateEmbeddingResponse.model_validate(plain)
    assert [item["embedding"] for item in plain["data"]] == result.vectors
    assert [item["index"] for item in plain["data"]] == [0, 1]
    assert plain["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    packed = Embeddings().render(parse(input="a"), {"encoding_format": "base64"}, result)
    assert struct.unpack("<2f", base64.b64decode(packed["data"][0]["embedding"])) == (0.5, -1.0)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_base64_comes_back(vector: list[float]) -> None:
    body = orjson.dumps({"data": [{"index": 0, "embedding": base64_floats(vector)}]})
    assert decode_embeddings(body, 1, "b").vectors == [vector]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"data":[]}',
        b'{"data":[{"embedding":[]}]}',
        b'{"data":[{"embedding":["a"]}]}',
        b'{"data":[{"embedding":"###"}]}',
        b'{"data":[{"embedding":[1]},{"embedding":[1]}]}',
    ],
)
def test_malformed_embeddings(body: bytes) -> None:
    with pytest.raises(BackendProtocolError):
        decode_embeddings(body, 1, "b")


def test_embeddings_are_put_into_order() -> None:
    body = orjson.dumps(
        {
            "data": [{"index": 1, "embedding": [2]}, {"index": 0, "embedding": [1.0]}],
            "model": "e",
            "usage": {"prompt_tokens": 4},
        }
    )
    assert decode_embeddings(body, 2, "b") == Vectors(vectors=[[1.0], [2]], model="e", prompt_tokens=4)


def test_an_error_in_place_of_embeddings() -> None:
    with pytest.raises(BackendRefused, match="no such model"):
        decode_embeddings(b'{"error":{"message":"no such model"}}', 1, "b")


def test_models() -> None:
    listed = render_models([ModelInfo(id="a", created=5, owned_by="x", size=7), ModelInfo(id="b")])
    assert listed["object"] == "list"
    assert listed["data"][0] == {"id": "a", "object": "model", "created": 5, "owned_by": "x"}
    assert Model.model_validate(render_model(ModelInfo(id="b"))).owned_by == "velollm"


def test_errors() -> None:
    error = ModelNotFound("no model 'x'", param="model", details={"known": ["y"]})
    assert render_error(error, "r1") == {
        "error": {
            "known": ["y"],
            "message": "no model 'x'",
            "type": "not_found_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
    kinds = {
        RequestError("x"): "invalid_request_error",
        RateLimited("x"): "rate_limit_error",
        BackendTimeout("x"): "timeout_error",
        BackendProtocolError("x"): "server_error",
    }
    for raised, kind in kinds.items():
        assert render_error(raised, "")["error"]["type"] == kind
