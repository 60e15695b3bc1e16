"""What an Ollama tells of its models. No I/O."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeAlias

import attrs

from velollm.messages import ModelInfo

__all__ = ["ModelFacts", "full_name", "loaded_context", "read_facts", "read_model"]

JSON: TypeAlias = dict[str, Any]

LEVELS = frozenset({"gptoss", "gpt-oss"})  # families that think at different levels


@attrs.frozen(kw_only=True)
class ModelFacts:
    """What `/api/show` says of one model; `levels` that it thinks at levels, not only at all; `blind` that it does not
    see images, which it then leaves out without a word."""

    capabilities: tuple[str, ...] = ()
    context_length: int | None = None
    levels: bool = False
    blind: bool = False


def full_name(name: str) -> str:
    """A model's name with its tag."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def read_facts(answer: JSON) -> ModelFacts:
    """The answer of `/api/show`. Versions before 0.6.4 do not say what a model can: its template does."""
    details, info = (value if isinstance(value := answer.get(key), dict) else {} for key in ("details", "model_info"))
    family = details.get("family")
    capabilities = answer.get("capabilities")
    if isinstance(capabilities, list):
        words = tuple(word for word in capabilities if isinstance(word, str))
    else:
        words = _from_template(answer.get("template"))
    architecture = info.get("general.architecture")
    context = info.get(f"{architecture}.context_length")
    return ModelFacts(
        capabilities=words,
        context_length=context if type(context) is int else None,
        levels=family in LEVELS,
        blind=isinstance(capabilities, list) and "vision" not in words,
    )


def _from_template(template: Any) -> tuple[str, ...]:
    if not isinstance(template, str):
        return ("completion",)
    return (
        "completion",
        *(("tools",) if ".Tools" in template else ()),
        *(("insert",) if ".Suffix" in template else ()),
    )


def read_model(item: JSON, facts: ModelFacts | None) -> ModelInfo:
    """One entry of `/api/tags` whose `name` is a string, with what is known of it already. The entry itself is kept."""
    found = item.get("details")
    details = found if isinstance(found, dict) else {}
    own = item.get("capabilities")
    capabilities = [word for word in own if isinstance(word, str)] if isinstance(own, list) else []
    return ModelInfo(
        id=item["name"],
        created=_unix(item.get("modified_at")),
        owned_by="ollama",
        size=size if type(size := item.get("size")) is int else 0,
        digest=_word(item.get("digest")),
        family=_word(details.get("family")),
        parameter_size=_word(details.get("parameter_size")),
        quantization=_word(details.get("quantization_level")),
        context_length=facts.context_length if facts is not None else None,
        capabilities=list(facts.capabilities) if facts is not None else capabilities,
        extra={"ollama": item},
    )


def loaded_context(answer: Any, model: str) -> int | None:
    """The context of `model` as `/api/ps` says it is loaded; None when it is not, or the version does not say."""
    items = answer.get("models") if isinstance(answer, dict) else None
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and full_name(_word(item.get("name"))) == full_name(model):
            context = item.get("context_length")
            return context if type(context) is int and context > 0 else None
    return None


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _unix(value: Any) -> int:
    try:
        return max(0, int(datetime.fromisoformat(value).timestamp()))
    except (TypeError, ValueError, OverflowError, OSError):
        return 0
