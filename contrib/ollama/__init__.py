"""Ollama, spoken to in its native API."""

from velollm.contrib.ollama.backend import OllamaBackend

__all__ = ["OllamaBackend"]
