"""Questions of one's own: ShareGPT-style JSON, JSON lines, or plain text with a prompt a line. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import orjson

from velollm.bench.question import JSON, Question
from velollm.errors import ConfigError

__all__ = ["read_questions"]

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
            "system": "system"}  # fmt: skip
CHARACTERS_PER_TOKEN = 4
LONGEST_ANSWER = 1024
SHORTEST = 4  # tokens: shorter prompts and answers say nothing (vLLM's rule for ShareGPT)


def read_questions(text: str, name: str, *, count: int | None = None, seed: int = 0) -> list[Question]:
    """The questions in `text`, which came from the file `name`; with `count` so many of them, drawn by `seed`.

    Each item is a string, `{"prompt": ...}`, `{"messages": [...]}` (with `tools`, `max_tokens` or `output_len`), or a
    ShareGPT conversation, whose last answer says how long the answer may be. Raises `ConfigError` when nothing is
    found.
    """
    items, where = _items(text)
    found = [question for number, item in enumerate(items) for question in _read(item, where(number), name)]
    if not found:
        raise ConfigError(f"{name} holds no prompts: one a line, JSON lines, or ShareGPT's conversations are wanted")
    if count is None or count == len(found):
        return found
    random = Random(seed)  # noqa: S311 -- no secret
    if count < len(found):
        return random.sample(found, count)
    return [*found, *(random.choice(found) for _ in range(count - len(found)))]


def _items(text: str) -> tuple[list[Any], Callable[[int], str]]:
    """What the file lists, and how to say where an item stands."""
    stripped = text.lstrip("\ufeff \t\r\n")
    if stripped[:1] in ("[", "{"):
        try:
            value = orjson.loads(stripped)
        except orjson.JSONDecodeError:
            value = None
        if isinstance(value, list):
            return value, lambda number: f"[{number}]"
        if isinstance(value, dict):
            return [value], lambda number: ""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    items = [_line(line) for _, line in lines]
    return items, lambda number: f":{lines[number][0]}"


def _line(line: str) -> Any:
    if line.lstrip()[:1] in ("{", "["):
        try:
            return orjson.loads(line)
        except orjson.JSONDecodeError:
            pass  # a prompt may look like anything
    return line.strip()


def _read(item: Any, where: str, name: str) -> list[Question]:
    if isinstance(item, str):
        return [Question(messages=({"role": "user", "content": item},))] if item.strip() else []
    if not isinstance(item, dict):
        raise ConfigError(f"{name}{where} is neither a prompt nor an object")
    length = item.get("max_tokens", item.get("output_len", item.get("output_tokens")))
    if length is not None and (type(length) is not int or length < 1):
        raise ConfigError(f"{name}{where}: max_tokens must be a number of tokens, not {length!r}")
    turns = item.get("conversations", item.get("conversation"))
    if isinstance(turns, list):
        return _conversation(turns, length)
    messages, prompt = item.get("messages"), item.get("prompt", item.get("text"))
    if isinstance(messages, list) and messages and all(_is_message(message) for message in messages):
        tools = item.get("tools") or ()
        return [Question(messages=tuple(messages), tools=tuple(tools), max_tokens=length)]
    if isinstance(prompt, str) and prompt.strip():
        return [Question(messages=({"role": "user", "content": prompt},), max_tokens=length)]
    raise ConfigError(f"{name}{where} has neither `prompt`, `messages` nor `conversations`")


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("role"), str)


def _conversation(turns: list[Any], length: int | None) -> list[Question]:
    """Everything up to the last question of a ShareGPT conversation; none of one that is no conversation."""
    messages: list[JSON] = []
    for turn in turns:
        if not isinstance(turn, dict):
            return []
        role = SPEAKERS.get(str(turn.get("from", turn.get("role", ""))).lower())
        said = turn.get("value", turn.get("content"))
        if role is None or not isinstance(said, str):
            return []
        messages.append({"role": role, "content": said})
    answer = ""
    while messages and messages[-1]["role"] == "assistant":
        answer = messages.pop()["content"]
    size = len(answer) // CHARACTERS_PER_TOKEN
    if not messages or messages[-1]["role"] != "user" or size < SHORTEST:
        return []
    if len(messages[-1]["content"]) // CHARACTERS_PER_TOKEN < SHORTEST:
        return []
    return [Question(messages=tuple(messages), max_tokens=length or min(size, LONGEST_ANSWER))]
