"""What a llama-server tells of itself and its models. No I/O."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, TypeAlias

import attrs

from velollm.messages import ModelInfo
from velollm.models.gguf import parameter_size

__all__ = ["ServerProperties", "read_model", "read_properties"]

JSON: TypeAlias = dict[str, Any]


@attrs.frozen(kw_only=True)
class ServerProperties:
    """What `/props` tells: context of a slot in tokens, slots, and whether the chat template knows tools."""

    context: int | None = None
    slots: int | None = None
    template_tools: bool = True
    vision: bool = False
    audio: bool = False


def read_properties(answer: JSON) -> ServerProperties:
    """The answer of `/props`, as far as it has the right types."""
    defaults, caps, modes = (
        value if isinstance(value := answer.get(key), dict) else {}
        for key in ("default_generation_settings", "chat_template_caps", "modalities")
    )
    context, slots, template = defaults.get("n_ctx"), answer.get("total_slots"), answer.get("chat_template")
    tools = caps.get("supports_tools")
    if not isinstance(tools, bool):  # servers before 2026 do not say
        tools = not isinstance(template, str) or not template or "tools" in template
    return ServerProperties(
        context=context if type(context) is int else None,
        slots=slots if type(slots) is int else None,
        template_tools=tools,
        vision=modes.get("vision") is True,
        audio=modes.get("audio") is True,
    )


def read_model(item: JSON, properties: ServerProperties) -> ModelInfo:
    """One entry of `/v1/models`, whose `id` is a string."""
    found = item.get("meta")
    meta = found if isinstance(found, dict) else {}
    created = item.get("created")
    capabilities = ["completion", "tools"]
    capabilities += [word for word in ("vision", "audio") if getattr(properties, word)]
    return ModelInfo(
        id=_bare(item["id"]),
        created=created if type(created) is int else 0,
        owned_by="llamacpp",
        size=_count(meta, "size"),
        parameter_size=parameter_size(_count(meta, "n_params")),
        quantization=meta["ftype"] if isinstance(meta.get("ftype"), str) else "",
        context_length=_count(meta, "n_ctx") or properties.context or _count(meta, "n_ctx_train") or None,
        capabilities=capabilities,
    )


def _bare(name: str) -> str:
    """A server without `--alias` calls its model by its path: the name of the file is enough for a client."""
    if name.startswith("/"):
        return PurePosixPath(name).name
    return PureWindowsPath(name).name if "\\" in name else name


def _count(source: JSON, key: str) -> int:
    value = source.get(key)
    return value if type(value) is int and value > 0 else 0
