"""Content blocks of Anthropic messages, read into typed parts.

`cache_control` and `citations` say nothing to a local engine and are left out. Blocks that only Anthropic's own servers
can make sense of (server tools, uploaded files) are refused by name.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Collection
from typing import Any, NoReturn, TypeAlias

from velollm.api.values import (
    at,
    expect_list,
    expect_object,
    expect_str,
    fail,
    get_str,
    need_list,
    need_object,
    need_str,
    unknown_value,
)
from velollm.errors import UnsupportedError
from velollm.messages import FilePart, ImagePart, Part, TextPart

__all__ = ["block_type", "flatten", "read_parts", "refuse_elsewhere"]

JSON: TypeAlias = dict[str, Any]

SERVER_SIDE = ("_tool_result", "server_tool_use", "mcp_tool_use", "container_upload", "tool_reference", "compaction")


def block_type(block: JSON, path: str, known: Collection[str]) -> str:
    """The type of a block, one of `known`; blocks of server tools get an error of their own."""
    name = need_str(block, "type", path)
    if name.endswith(SERVER_SIDE):
        raise UnsupportedError(
            f"{at(path, 'type')} is {name[:60]!r}: such blocks belong to tools and files on Anthropic's servers, which "
            "do not exist here; leave them out",
            param=at(path, "type"),
        )
    if name not in known:
        unknown_value(at(path, "type"), name, sorted(known))
    return name


def refuse_elsewhere(name: str, role: str, path: str) -> NoReturn:
    """The error for a block that stands in a turn of the wrong role."""
    fail(path, f"is a {name} block, which cannot stand in a message of role {role!r}")


def read_parts(block: JSON, name: str, path: str) -> list[Part]:
    """The parts of a block of one of the types in `READERS`."""
    return READERS[name](block, path)


def flatten(parts: list[Part]) -> str | list[Part]:
    """A single plain text as a string, so that both spellings of it are the same turn."""
    if not parts:
        return ""
    first = parts[0]
    return first.text if len(parts) == 1 and isinstance(first, TextPart) else parts


def _text(block: JSON, path: str) -> list[Part]:
    return [TextPart(text=need_str(block, "text", path))]


def _image(block: JSON, path: str) -> list[Part]:
    source = need_object(block, "source", path)
    where = at(path, "source")
    name = need_str(source, "type", where)
    if name == "base64":
        media_type = need_str(source, "media_type", where)
        if not media_type.startswith("image/"):
            fail(at(where, "media_type"), "must be image/jpeg, image/png, image/gif or image/webp")
        return [ImagePart(data=_base64(source, where), media_type=media_type)]
    if name != "url":
        _no_file(name, where, ("base64", "url"))
    url = need_str(source, "url", where)
    if not url.startswith(("http://", "https://")):
        fail(at(where, "url"), "must be an http(s) URL")
    return [ImagePart(url=url)]


def _document(block: JSON, path: str) -> list[Part]:
    source = need_object(block, "source", path)
    where = at(path, "source")
    name = need_str(source, "type", where)
    title = get_str(block, "title", path)
    context = get_str(block, "context", path)
    parts: list[Part] = [TextPart(text=context)] if context else []
    if name == "base64":
        media_type = need_str(source, "media_type", where)
        parts.append(FilePart(data=_base64(source, where), media_type=media_type, filename=title))
    elif name == "text":
        parts.append(FilePart(text=need_str(source, "data", where), media_type="text/plain", filename=title))
    elif name == "content":
        parts += _content(source.get("content"), at(where, "content"))
    else:
        _no_file(name, where, ("base64", "text", "content"))
    return parts


def _content(value: Any, path: str) -> list[Part]:
    if isinstance(value, str):
        return [TextPart(text=value)]
    parts: list[Part] = []
    for number, item in enumerate(expect_list(value, path)):
        where = at(path, number)
        block = expect_object(item, where)
        parts += read_parts(block, block_type(block, where, ("text", "image")), where)
    return parts


def _search_result(block: JSON, path: str) -> list[Part]:
    head = f"{need_str(block, 'title', path)}\n{need_str(block, 'source', path)}"
    texts = []
    for number, item in enumerate(need_list(block, "content", path)):
        where = at(at(path, "content"), number)
        texts.append(need_str(expect_object(item, where), "text", where))
    return [TextPart(text="\n\n".join([head, *texts]))]


def _base64(source: JSON, path: str) -> str:
    data = expect_str(source.get("data"), at(path, "data"), empty=False)
    try:
        binascii.a2b_base64(data, strict_mode=True)
    except ValueError:
        fail(at(path, "data"), "must be base64")
    return data


def _no_file(name: str, path: str, known: Collection[str]) -> NoReturn:
    if name in ("file", "url"):
        raise UnsupportedError(
            f"{at(path, 'type')} is {name!r}, but nothing is uploaded to or fetched by VeloLLM: send the data itself",
            param=at(path, "type"),
        )
    unknown_value(at(path, "type"), name, known)


READERS: dict[str, Callable[[JSON, str], list[Part]]] = {
    "text": _text,
    "image": _image,
    "document": _document,
    "search_result": _search_result,
}
