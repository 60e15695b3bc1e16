"""Requests that a pool passes on as they are: which model they name, and what they change."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import orjson

from velollm.backend import HttpRequest, HttpResponse
from velollm.routing.member import Member

__all__ = ["model_of", "pass_on"]

CHANGING = frozenset({"/api/create", "/api/copy", "/api/delete", "/api/pull"})


def model_of(request: HttpRequest) -> str | None:
    """The model that a request names in its body, as far as that has been read."""
    body = request.body
    if not isinstance(body, bytes) or not body.startswith(b"{"):
        return None
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    name = payload.get("model") or payload.get("name")
    return name if isinstance(name, str) else None


async def pass_on(member: Member, request: HttpRequest) -> HttpResponse:
    """The answer of the member's backend; its list of models is asked for anew after what may have changed it."""
    response = await member.backend.forward(request)
    if request.target.partition("?")[0] in CHANGING:
        response.body = _followed(response.body, member)
    return response


async def _followed(body: AsyncGenerator[bytes, None], member: Member) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(body):
            async for piece in body:
                yield piece
    finally:
        member.forget()
