"""Content parts of OpenAI messages, read into typed parts and written back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from velollm.api.values import at, expect_list, expect_object, expect_str, fail, get_str, need_object, need_str, rest
from velollm.api.values import unknown_value as unknown
from velollm.messages import AudioPart, FilePart, ImagePart, Part, ReasoningPart, TextPart

__all__ = ["data_url", "encode_part", "parse_content", "split_data_url"]

JSON: TypeAlias = dict[str, Any]


def parse_content(value: Any, path: str) -> str | list[Part]:
    """The `content` of a message: a string, or an array of parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        expect_str(value, path) if value is None else fail(path, "must be a string or an array of content parts")
    return [_parse_part(part, at(path, number)) for number, part in enumerate(expect_list(value, path))]


def _parse_part(value: Any, path: str) -> Part:
    if isinstance(value, str):
        return TextPart(text=value)
    part = expect_object(value, path)
    name = need_str(part, "type", path)
    reader = _READERS.get(name)
    if reader is None:
        unknown(at(path, "type"), name, _READERS)
    return reader(part, path)


def _text(part: JSON, path: str) -> Part:
    return TextPart(text=need_str(part, "text", path), extra=rest(part, ("type", "text")))


def _refusal(part: JSON, path: str) -> Part:
    return TextPart(text=need_str(part, "refusal", path), extra=rest(part, ("refusal",)))


def _image(part: JSON, path: str) -> Part:
    inner = part.get("image_url")
    where = at(path, "image_url")
    image = {"url": inner} if isinstance(inner, str) else expect_object(inner, where)
    if not isinstance(inner, str):
        where = at(where, "url")
    url = expect_str(image.get("url"), where, empty=False)
    known: JSON = {
        "detail": get_str(image, "detail", at(path, "image_url")),
        "extra": rest(part, ("type", "image_url")),
    }
    if more := rest(image, ("url", "detail")):
        known["extra"]["image_url"] = more
    if url.startswith("data:"):
        media_type, data = split_data_url(url, where)
        return ImagePart(data=data, media_type=media_type, **known)
    if not url.startswith(("http://", "https://")):
        fail(where, "must be a base64 data URL (data:image/png;base64,…) or an http(s) URL")
    return ImagePart(url=url, **known)


def _audio(part: JSON, path: str) -> Part:
    audio = need_object(part, "input_audio", path)
    where = at(path, "input_audio")
    return AudioPart(
        data=need_str(audio, "data", where),
        format=get_str(audio, "format", where) or "wav",
        extra=rest(part, ("type", "input_audio")),
    )


def _file(part: JSON, path: str) -> Part:
    file = need_object(part, "file", path)
    where = at(path, "file")
    data = get_str(file, "file_data", where)
    media_type = None
    if data is not None and data.startswith("data:"):
        media_type, data = split_data_url(data, at(where, "file_data"))
    file_id = get_str(file, "file_id", where)
    if data is None and file_id is None:
        fail(where, "needs file_data (base64) or file_id")
    extra = rest(part, ("type", "file"))
    if more := rest(file, ("file_data", "filename")):
        extra["file"] = more
    return FilePart(data=data, media_type=media_type, filename=get_str(file, "filename", where), extra=extra)


def _by_url(key: str) -> Callable[[JSON, str], Part]:
    """`video_url` and `audio_url`, as vLLM takes them: kept as they are, for only such engines fetch them."""

    def read(part: JSON, path: str) -> Part:
        need_object(part, key, path)
        return FilePart(extra=rest(part, ("type",)))

    return read


def _thinking(part: JSON, path: str) -> Part:
    key = "thinking" if "thinking" in part else "text"
    return ReasoningPart(
        text=need_str(part, key, path),
        signature=get_str(part, "signature", path),
        extra=rest(part, ("type", key, "signature")),
    )


_READERS: dict[str, Callable[[JSON, str], Part]] = {
    "text": _text,
    "image_url": _image,
    "input_audio": _audio,
    "file": _file,
    "refusal": _refusal,
    "video_url": _by_url("video_url"),
    "audio_url": _by_url("audio_url"),
    "thinking": _thinking,
    "reasoning": _thinking,
}


def split_data_url(url: str, path: str) -> tuple[str | None, str]:
    """Media type (None when the URL names none) and base64 text of a data URL."""
    head, comma, data = url[5:].partition(",")
    if not comma or not head.endswith(";base64"):
        fail(path, "must be a base64 data URL: data:<media type>;base64,<data>")
    return head[: -len(";base64")].partition(";")[0] or None, data


def data_url(data: str, media_type: str | None, default: str = "application/octet-stream") -> str:
    """The data URL of base64 text."""
    return f"data:{media_type or default};base64,{data}"


# ---- the way back ----------------------------------------------------------------------------------------------------


def encode_part(part: Part) -> JSON:
    """A typed part as OpenAI writes it."""
    if isinstance(part, TextPart):
        key = "refusal" if part.extra.get("type") == "refusal" else "text"
        return {"type": key, key: part.text, **part.extra}
    if isinstance(part, ImagePart):
        return _encode_image(part)
    if isinstance(part, AudioPart):
        return {"type": "input_audio", "input_audio": {"data": part.data, "format": part.format}, **part.extra}
    if isinstance(part, ReasoningPart):
        signed = {"signature": part.signature} if part.signature else {}
        return {"type": "thinking", "thinking": part.text, **signed, **part.extra}
    return _encode_file(part)


def _encode_image(part: ImagePart) -> JSON:
    url = part.url if part.data is None else data_url(part.data, part.media_type, "image/png")
    image: JSON = {"url": url, **part.extra.get("image_url", {})}
    if part.detail is not None:
        image["detail"] = part.detail
    return {**part.extra, "type": "image_url", "image_url": image}


def _encode_file(part: FilePart) -> JSON:
    for key in ("video_url", "audio_url"):
        if key in part.extra:
            return {"type": key, **part.extra}
    if part.text is not None:
        return {"type": "text", "text": part.text}
    file: JSON = dict(part.extra.get("file", {}))
    if part.data is not None:
        file["file_data"] = data_url(part.data, part.media_type) if part.media_type else part.data
    if part.filename is not None:
        file["filename"] = part.filename
    return {**part.extra, "type": "file", "file": file}
