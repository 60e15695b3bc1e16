"""OpenAI's dialect: chat completions, completions, embeddings, models and errors. No I/O."""

from __future__ import annotations

from velollm.api.openai.chat import ChatCompletions
from velollm.api.openai.completions import Completions
from velollm.api.openai.embeddings import Embeddings
from velollm.api.openai.errors import render_error
from velollm.api.openai.identity import Minter
from velollm.api.openai.models import render_model, render_models

__all__ = [
    "ChatCompletions",
    "Completions",
    "Embeddings",
    "Minter",
    "render_error",
    "render_model",
    "render_models",
]
