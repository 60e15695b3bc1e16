"""The OpenAPI description of everything that VeloLLM serves, as strict as its parsers are. No I/O."""

from __future__ import annotations

from typing import Any

from velollm.api.openapi import anthropic, ollama, openai, responses
from velollm.api.openapi.paths import paths, token_schemas

__all__ = ["openapi"]


def openapi(version: str) -> dict[str, Any]:
    """The document (OpenAPI 3.1); `version` is VeloLLM's."""
    schemas: dict[str, Any] = {}
    for part in (openai, responses, anthropic, ollama):
        schemas.update(part.schemas())
    schemas.update(token_schemas())
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "VeloLLM",
            "version": version,
            "summary": "Local LLM inference through the APIs of OpenAI, Anthropic and Ollama.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"bearer": []}, {"key": []}],
        "tags": [{"name": name} for name in ("openai", "anthropic", "ollama", "service")],
        "paths": paths(),
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }
