"""The list of models in Anthropic's shape. What is not known of a model (capabilities, retirement) is null."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from velollm.messages import ModelInfo

__all__ = ["render_model", "render_models"]


def render_model(model: ModelInfo) -> dict[str, Any]:
    """One model, as `GET /v1/models/{id}` answers it; an unknown creation time is the epoch, as Anthropic has it."""
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.id,
        "created_at": _rfc3339(model.created),
        "lifecycle": "active",
        "max_input_tokens": model.context_length,
        "max_tokens": model.context_length,
        "capabilities": None,
    }


def render_models(models: list[ModelInfo]) -> dict[str, Any]:
    """All models in one page, as `GET /v1/models` answers them."""
    data = [render_model(model) for model in models]
    return {
        "data": data,
        "has_more": False,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def _rfc3339(seconds: int) -> str:
    try:
        moment = datetime.fromtimestamp(max(seconds, 0), UTC)
    except (OverflowError, OSError, ValueError):  # an engine's clock is not to be trusted
        moment = datetime.fromtimestamp(0, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
