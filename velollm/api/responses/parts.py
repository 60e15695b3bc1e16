"""Content parts of the Responses API, read into typed parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from velollm.api.openai.parts import split_data_url
from velollm.api.values import (
    at,
    expect_list,
    expect_object,
    fail,
    get_choice,
    get_str,
    need_object,
    need_str,
    unknown_value,
)
from velollm.errors import UnsupportedError
from velollm.messages import AudioPart, FilePart, ImagePart, Part, TextPart

__all__ = ["read_content"]

JSON: TypeAlias = dict[str, Any]

DETAILS = ("auto", "low", "high", "original")


def read_content(value: Any, path: str) -> str | list[Part]:
    """A string, or an array of parts; an array of one text is the same as that string."""
    if isinstance(value, str):
        return value
    if value is None:
        fail(path, "is required and must be a string or an array of content parts")
    parts = [_part(item, at(path, number)) for number, item in enumerate(expect_list(value, path))]
    if not parts:
        return ""
    first = parts[0]
    return first.text if len(parts) == 1 and isinstance(first, TextPart) else parts


def _part(value: Any, path: str) -> Part:
    part = expect_object(value, path)
    name = need_str(part, "type", path)
    reader = READERS.get(name)
    if reader is None:
        unknown_value(at(path, "type"), name, READERS)
    return reader(part, path)


def _text(part: JSON, path: str) -> Part:
    return TextPart(text=need_str(part, "text", path))


def _refusal(part: JSON, path: str) -> Part:
    return TextPart(text=need_str(part, "refusal", path))


def _image(part: JSON, path: str) -> Part:
    detail = get_choice(part, "detail", DETAILS, path)
    url = get_str(part, "image_url", path)
    if url is None:
        _no_file(part, "image_url", path)
    where = at(path, "image_url")
    if url.startswith("data:"):
        media_type, data = split_data_url(url, where)
        return ImagePart(data=data, media_type=media_type, detail=detail)
    if not url.startswith(("http://", "https://")):
        fail(where, "must be a base64 data URL (data:image/png;base64,…) or an http(s) URL")
    return ImagePart(url=url, detail=detail)


def _file(part: JSON, path: str) -> Part:
    data = get_str(part, "file_data", path)
    if data is None:
        _no_file(part, "file_data", path)
    media_type = None
    if data.startswith("data:"):
        media_type, data = split_data_url(data, at(path, "file_data"))
    return FilePart(data=data, media_type=media_type, filename=get_str(part, "filename", path))


def _audio(part: JSON, path: str) -> Part:
    audio = need_object(part, "input_audio", path)
    where = at(path, "input_audio")
    return AudioPart(data=need_str(audio, "data", where), format=need_str(audio, "format", where))


def _no_file(part: JSON, wanted: str, path: str) -> NoReturn:
    for key in ("file_id", "file_url"):
        if part.get(key) is not None:
            raise UnsupportedError(
                f"{at(path, key)} is not supported: nothing is uploaded to or fetched by VeloLLM; send the data itself "
                f"in {wanted}",
                param=at(path, key),
            )
    fail(at(path, wanted), "is required and must be a string")


READERS: dict[str, Callable[[JSON, str], Part]] = {
    "input_text": _text,
    "output_text": _text,
    "text": _text,
    "refusal": _refusal,
    "input_image": _image,
    "input_file": _file,
    "input_audio": _audio,
}
