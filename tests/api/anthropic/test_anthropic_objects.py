"""Errors and models in Anthropic's shapes."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import ModelInfo as SDKModel
from anthropic.types.shared import ErrorResponse

from velollm.api.anthropic import render_error, render_model, render_models
from velollm.errors import ModelNotFound, VeloError
from velollm.messages import ModelInfo


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (408, "timeout_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_error_types(status: int, kind: str) -> None:
    body = render_error(VeloError("what was wrong", status=status), "req_1")
    if kind != "request_too_large":  # not among the SDK's types, but what the API says
        ErrorResponse.model_validate(body)
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert body["error"]["message"] == "what was wrong"
    assert body["request_id"] == "req_1"


def test_details_name_code_and_field_and_may_be_given() -> None:
    error = ModelNotFound("no", param="model")
    assert render_error(error, "")["error"]["details"] == {"error_code": "model_not_found", "param": "model"}
    own = VeloError("no", details={"error_code": "x", "unsupported": []})
    assert render_error(own, "")["error"]["details"] == {"error_code": "x", "unsupported": []}


def test_models() -> None:
    body = render_models([ModelInfo(id="a", created=1_700_000_000, context_length=4096), ModelInfo(id="b")])
    for model in body["data"]:
        SDKModel.model_validate(model)
    first: dict[str, Any] = body["data"][0]
    assert (first["type"], first["id"], first["created_at"]) == ("model", "a", "2023-11-14T22:13:20Z")
    assert first["max_input_tokens"] == 4096
    assert (body["has_more"], body["first_id"], body["last_id"]) == (False, "a", "b")
    assert render_models([]) == {"data": [], "has_more": False, "first_id": None, "last_id": None}


@pytest.mark.parametrize("created", [-5, 0, 10**18])
def test_absurd_creation_times(created: int) -> None:
    assert render_model(ModelInfo(id="a", created=created))["created_at"] == "1970-01-01T00:00:00Z"
