"""Which paths are meant by those that a client's base URL spoils, and which are left alone."""

from __future__ import annotations

import pytest

from velollm.door import ROUTES
from velollm.spelling import as_served


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("//v1/models", "/v1/models"),
        ("/v1//models", "/v1/models"),
        ("/v1/models/", "/v1/models"),
        ("/v1/v1/messages", "/v1/messages"),
        ("/v1/v1/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/api/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/api/chat", "/api/chat"),
        ("/api/api/tags/", "/api/tags"),
        ("/api/tags/", "/api/tags"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_spoilt_paths(path: str, meant: str, alone: bool) -> None:
    assert as_served(path, ROUTES, alone=alone) == meant


@pytest.mark.parametrize("path", ["/chat/completions", "/models", "/embeddings/", "/messages", "/responses"])
def test_paths_without_their_version_only_where_no_app_may_own_them(path: str) -> None:
    assert as_served(path, ROUTES, alone=True) == "/v1" + path.rstrip("/")
    assert as_served(path, ROUTES, alone=False) == path


@pytest.mark.parametrize(
    "path",
    [
        *ROUTES, "/", "/v1", "/v1/", "/api/", "/v1/v1", "/own/", "/v1/models/a//b", "/v1/models/a/", "/v1/files/",
        "/api/delete/", "//api/delete", "/api//pull", "/v1/api/create", "/api/blobs/sha256:a/", "/v1/./models",
    ],
)  # fmt: skip
def test_what_is_left_alone(path: str) -> None:
    assert as_served(path, ROUTES, alone=True) == path
