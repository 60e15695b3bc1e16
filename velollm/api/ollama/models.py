"""Models as Ollama lists and shows them, for backends that are no Ollama themselves."""

from __future__ import annotations

import hashlib
from typing import Any, TypeAlias

from velollm.api.ollama.answer import rfc3339
from velollm.messages import ModelInfo

__all__ = ["API_VERSION", "render_ps", "render_show", "render_tags", "render_version"]

JSON: TypeAlias = dict[str, Any]

API_VERSION = "0.17.4"  # the Ollama whose API is spoken here: clients refuse to work with one they find too old
FOREVER = "2318-01-01T00:00:00.000000Z"  # a model that no clock unloads


def render_tags(models: list[ModelInfo]) -> JSON:
    """The answer of `GET /api/tags`. What an Ollama itself said of a model is told as it said it."""
    return {"models": [_listed(model) for model in models]}


def render_ps(models: list[ModelInfo]) -> JSON:
    """The answer of `GET /api/ps`: what is served is loaded."""
    return {
        "models": [
            {
                **_head(model),
                **_body(model),
                "expires_at": FOREVER,
                "size_vram": 0,
                "context_length": model.context_length or 0,
            }
            for model in models
        ]
    }


def render_show(model: ModelInfo) -> JSON:
    """The answer of `POST /api/show`; `model_info` has the keys that clients look for."""
    family = model.family or "unknown"
    info: JSON = {"general.architecture": family, "general.basename": model.id}
    if model.context_length is not None:
        info[f"{family}.context_length"] = model.context_length
    return {
        "modelfile": f"FROM {model.id}\n",
        "parameters": "",
        "template": "",
        "details": _details(model),
        "model_info": info,
        "capabilities": model.capabilities or ["completion"],
        "modified_at": rfc3339(model.created),
    }


def render_version() -> JSON:
    """The answer of `GET /api/version`."""
    return {"version": API_VERSION}


def _listed(model: ModelInfo) -> JSON:
    own = model.extra.get("ollama")
    if isinstance(own, dict):
        return {**own, **_head(model)}
    return {**_head(model), "modified_at": rfc3339(model.created), **_body(model)}


def _head(model: ModelInfo) -> JSON:
    return {"name": model.id, "model": model.id}


def _body(model: ModelInfo) -> JSON:
    digest = model.digest or hashlib.sha256(model.id.encode()).hexdigest()  # clients keep what they know of it by this
    return {"size": model.size, "digest": digest, "details": _details(model)}


def _details(model: ModelInfo) -> JSON:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family] if model.family else [],
        "parameter_size": model.parameter_size,
        "quantization_level": model.quantization,
    }
