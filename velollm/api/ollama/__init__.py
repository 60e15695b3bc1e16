"""Ollama's dialect: chat, generate, embed, embeddings, models and errors. No I/O."""

from __future__ import annotations

from velollm.api.ollama.chat import Chat
from velollm.api.ollama.embeddings import Embed, LegacyEmbeddings
from velollm.api.ollama.errors import render_error
from velollm.api.ollama.generate import Generate
from velollm.api.ollama.models import render_ps, render_show, render_tags, render_version

__all__ = [
    "Chat",
    "Embed",
    "Generate",
    "LegacyEmbeddings",
    "render_error",
    "render_ps",
    "render_show",
    "render_tags",
    "render_version",
]
