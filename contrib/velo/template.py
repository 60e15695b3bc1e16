"""Chat templates: the Jinja text in a GGUF file, run in a sandbox. No I/O.

Templates come from strangers: the sandbox keeps them from anything but the conversation they are given.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, TypeAlias

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from velollm.errors import ConfigError, RequestError

__all__ = ["CHATML", "ChatTemplate"]

JSON: TypeAlias = dict[str, Any]

# What llama.cpp takes for models that bring no template.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class ChatTemplate:
    """The template `source` (None: ChatML) of a model whose text begins with `bos` and ends with `eos`.

    Raises `ConfigError` when it cannot be parsed.
    """

    def __init__(self, source: str | None, *, bos: str = "", eos: str = "") -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
        text = source or CHATML
        try:
            self._template = environment.from_string(text)
        except TemplateError as error:
            raise ConfigError(f"the model's chat template cannot be read: {error}") from error
        self._words = {"bos_token": bos, "eos_token": eos}
        self.knows_tools = "tools" in text
        self.thinks = "<think>" in text or "enable_thinking" in text

    def render(self, messages: list[JSON], tools: list[JSON] | None = None, **more: Any) -> str:
        """The prompt for `messages` (as OpenAI writes them) up to where the answer begins.

        Raises `RequestError` with the template's own words when it refuses the conversation.
        """
        given = [_as_templates_want(message) for message in messages]
        known = {**self._words, "tools": tools or None, "add_generation_prompt": True, **more}
        try:
            return self._template.render(messages=given, **known)
        except Exception as error:  # whatever a stranger's program can raise
            if given and given[0]["role"] == "system" and len(given) > 1:
                return self._without_system(given, known)
            raise _refusal(error) from error

    def _without_system(self, given: list[JSON], known: JSON) -> str:
        """Some templates have no system role: what it says goes before the first question."""
        first, second, *rest = given
        joined = {**second, "content": f"{first['content']}\n\n{second['content']}"}
        try:
            return self._template.render(messages=[joined, *rest], **known)
        except Exception as error:
            raise _refusal(error) from error


def _as_templates_want(message: JSON) -> JSON:
    """Text as one string, and the arguments of calls as objects."""
    wanted = {**message}
    content = message.get("content")
    if isinstance(content, list):
        wanted["content"] = "".join(part.get("text", "") for part in content)
    elif content is None:
        wanted["content"] = ""
    if message.get("tool_calls"):
        wanted["tool_calls"] = [_with_object(call) for call in message["tool_calls"]]
    return wanted


def _with_object(call: JSON) -> JSON:
    function = call["function"]
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError:
        arguments = function["arguments"]
    return {**call, "function": {**function, "arguments": arguments}}


def _refusal(error: Exception) -> RequestError:
    return RequestError(f"the model's chat template refuses this conversation: {error}"[:500], param="messages")


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **more: Any) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **more)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 (templates ask for the local date)
