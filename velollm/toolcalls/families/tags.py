"""Families whose calls stand between tags that prose could contain: Hermes and its many heirs."""

from __future__ import annotations

from velollm.toolcalls.families.base import Family

__all__ = ["FAMILIES"]

_THINK = ("<think>", "</think>")

FAMILIES = (
    Family(
        name="hermes",
        models=("hermes", "qwen25", "qwen3", "qwen2", "qwq", "granite4", "arcee", "ernie"),
        cues=("<tool_call>",),
        tags=(
            r"<tool_calls?>",
            r"<function_calls?>",
            r"<tool_request>",
            r"<tool_use>",
            r"<call>",
            r"<tools?>",
            r"<tool-?calls?>",
            r"<ToolCalls?>",
            r"<function-?calls?>",
            r"<FunctionCalls?>",
            r"<action>",
            r"<tool_code>",
            r"<(?:json|JSON|xml)>",
            r"<response>(?=\s*\{)",
        ),
        thinks=(_THINK, ("<thinking>", "</thinking>"), ("<thought>", "</thought>"), ("<reasoning>", "</reasoning>")),
    ),
    Family(
        name="qwen3-coder",
        models=("qwen3coder", "qwen35", "qwen36", "qwen38", "step35", "nemotron3", "nemotronnano3", "mimo"),
        cues=("<function=", "<parameter="),
        tags=(r"<function[ \t]*=", r"<function[\sĠ]*name[ \t]*="),
    ),
    Family(
        name="minicpm",
        models=("minicpm",),
        cues=("<param name=",),
        tags=(r"<tool_call name[ \t]*=",),
    ),
    Family(
        name="invoke",
        models=("claude",),
        cues=("<invoke name=",),
        tags=(r"<(?:antml:|atem:|steptml:)?invoke\b", r"<(?:antml:|atem:)?function_calls>"),
    ),
    Family(
        name="glm",
        models=("glm4", "glm5", "glm", "chatglm", "ling3", "poolside", "laguna", "malibu"),
        cues=("<arg_key>",),
        tags=(r"<tool_call:\w+>",),
    ),
    Family(
        name="hunyuan",
        models=("hunyuan", "hy3", "hyv3"),
        cues=("<tool_sep>",),
        tags=(r"<tool_calls:\w+>",),
    ),
    Family(
        name="seed-oss",
        models=("seedoss", "seed"),
        cues=("<seed:tool_call>",),
        special=(r"<seed:tool_call>",),
        thinks=(("<seed:think>", "</seed:think>"),),
    ),
    Family(
        name="longcat",
        models=("longcat",),
        cues=("<longcat_tool_call>",),
        special=(r"<longcat_tool_call>",),
        thinks=(("<longcat_think>", "</longcat_think>"),),
    ),
    Family(name="nemotron", models=("nemotron",), cues=("<TOOLCALL>",), tags=(r"<TOOLCALL>",)),
    Family(name="jamba", models=("jamba",), cues=("<tool_calls>[",)),
    Family(name="olmo3", models=("olmo",), cues=("<function_calls>",)),
    Family(name="ling", models=("ling", "ring", "bailing"), cues=()),
    Family(name="step3", models=("step3",), cues=("<steptml:invoke",), special=(r"<steptml:toolcall>",)),
)
