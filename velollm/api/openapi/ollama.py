"""Schemas of Ollama's dialect: its main endpoints, and the bodies they answer with."""

from __future__ import annotations

from velollm.api.openapi.words import (
    ANY_OBJECT,
    BOOL,
    INT,
    JSON,
    STR,
    array,
    enum,
    integer,
    obj,
    one_of,
    ref,
    string,
)

__all__ = ["schemas"]

NAME = string(minLength=1)


def schemas() -> JSON:
    """By name."""
    return {**_requests(), **_answers(), **_models()}


def _requests() -> JSON:
    think = one_of(BOOL, enum("low", "medium", "high", "max"))
    shared = {
        "stream": BOOL,
        "format": one_of(enum("json"), ANY_OBJECT),
        "options": ANY_OBJECT,
        "keep_alive": one_of(STR, {"type": "number"}),
        "think": think,
    }
    call = obj({"function": obj({"name": STR}, {"arguments": ANY_OBJECT})})
    turn = obj(
        {"role": enum("system", "user", "assistant", "tool")},
        {"content": STR, "thinking": STR, "images": array(STR), "tool_calls": array(call), "tool_name": STR},
    )
    tool = obj({"function": obj({"name": NAME}, {"description": STR, "parameters": ANY_OBJECT})}, {"type": STR})
    embed = {"truncate": BOOL, "dimensions": integer(0), "options": ANY_OBJECT, "keep_alive": shared["keep_alive"]}
    return {
        "OllamaChatRequest": obj({"model": NAME}, {**shared, "messages": array(turn), "tools": array(tool)}),
        "OllamaGenerateRequest": obj(
            {"model": NAME},
            {**shared, "prompt": STR, "suffix": STR, "system": STR, "template": STR, "raw": BOOL, "images": array(STR)},
        ),
        "OllamaEmbedRequest": obj({"model": NAME, "input": one_of(STR, array(STR))}, embed),
        "OllamaEmbeddingsRequest": obj({"model": NAME, "prompt": STR}, embed),
        "OllamaShowRequest": obj(None, {"model": STR, "name": STR, "verbose": BOOL}),
    }


def _answers() -> JSON:
    times = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
    counts = dict.fromkeys((*times, "prompt_eval_count", "eval_count"), INT)
    more = {**counts, "done_reason": STR, "velollm": ANY_OBJECT}
    head = {"model": STR, "created_at": STR, "done": BOOL}
    message = obj(
        {"role": STR, "content": STR}, {"thinking": STR, "tool_calls": array(ANY_OBJECT), "images": array(STR)}
    )
    numbers = array({"type": "number"})
    return {
        "OllamaChat": obj({**head, "message": message}, more),
        "OllamaGenerate": obj({**head, "response": STR}, {**more, "thinking": STR, "context": array(INT)}),
        "OllamaEmbed": obj({"model": STR, "embeddings": array(numbers)}, counts),
        "OllamaEmbeddings": obj({"embedding": numbers}),
        "OllamaError": obj({"error": STR}),
    }


def _models() -> JSON:
    model = obj({"name": STR, "model": STR}, {"size": INT, "digest": STR, "details": ANY_OBJECT})
    return {
        "OllamaModels": obj({"models": array(ref("OllamaModel"))}),
        "OllamaModel": model,
        "OllamaShow": obj(
            None, {"details": ANY_OBJECT, "model_info": ANY_OBJECT, "capabilities": array(STR), "template": STR}
        ),
        "OllamaVersion": obj({"version": STR}),
    }
