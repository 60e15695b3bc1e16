"""`/tokenize` and `/detokenize`: llama-server's and vLLM's shapes, read alike. No I/O."""

from __future__ import annotations

from typing import Any

import attrs

from velollm.errors import RequestError

__all__ = ["Detokenize", "Tokenize", "parse_detokenize", "parse_tokenize"]


@attrs.frozen(kw_only=True)
class Tokenize:
    """A text to be cut into tokens; `add_special` asks for the model's BOS and EOS."""

    model: str
    text: str
    add_special: bool


@attrs.frozen(kw_only=True)
class Detokenize:
    """Token ids to be turned into text."""

    model: str
    tokens: list[int]


def parse_tokenize(payload: dict[str, Any]) -> Tokenize:
    """The text is in `content` (llama-server), `prompt` (vLLM) or `text`."""
    for key in ("content", "prompt", "text"):
        if key in payload:
            text = payload[key]
            if not isinstance(text, str):
                raise RequestError(f"{key} must be a string", param=key)
            break
    else:
        raise RequestError("content is missing: send the text to tokenize as `content` or `prompt`", param="content")
    add_special = payload.get("add_special", payload.get("add_special_tokens", False))
    if not isinstance(add_special, bool):
        raise RequestError("add_special must be true or false", param="add_special")
    return Tokenize(model=_model(payload), text=text, add_special=add_special)


def parse_detokenize(payload: dict[str, Any]) -> Detokenize:
    """The ids are in `tokens`."""
    tokens = payload.get("tokens")
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < 2**31 for token in tokens):
        raise RequestError("tokens must be a list of token ids", param="tokens")
    return Detokenize(model=_model(payload), tokens=tokens)


def _model(payload: dict[str, Any]) -> str:
    model = payload.get("model") or ""
    if not isinstance(model, str):
        raise RequestError("model must be a string", param="model")
    return model
