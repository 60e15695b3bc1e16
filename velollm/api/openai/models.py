"""The list of models, in exactly the four fields that OpenAI gives: some clients refuse others."""

from __future__ import annotations

from typing import Any

from velollm.messages import ModelInfo

__all__ = ["render_model", "render_models"]


def render_model(model: ModelInfo) -> dict[str, Any]:
    """One model, as `GET /v1/models/{id}` answers it."""
    return {"id": model.id, "object": "model", "created": model.created, "owned_by": model.owned_by or "velollm"}


def render_models(models: list[ModelInfo]) -> dict[str, Any]:
    """All models, as `GET /v1/models` answers them."""
    return {"object": "list", "data": [render_model(model) for model in models]}
