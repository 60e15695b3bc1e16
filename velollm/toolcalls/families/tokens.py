"""Families whose calls stand between true special tokens, which no prose contains."""

from __future__ import annotations

from velollm.toolcalls.families.base import Family

__all__ = ["FAMILIES"]

_BAR = "[|｜]"
_LOW = "[▁_]"

FAMILIES = (
    Family(
        name="mistral",
        models=("mistral", "mixtral", "ministral", "magistral", "devstral", "codestral", "pixtral"),
        cues=("[TOOL_CALLS]",),
        special=(r"\[TOOL_CALLS?\]",),
        thinks=(("[THINK]", "[/THINK]"),),
    ),
    Family(
        name="deepseek",
        models=("deepseek", "cogito"),
        cues=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
        special=(rf"<{_BAR}tool{_LOW}calls?{_LOW}begin{_BAR}>",),
    ),
    Family(
        name="deepseek-v3.2",
        models=("deepseekv32", "deepseekv4", "deepseekv41"),
        cues=("｜DSML｜",),
        special=(rf"<{_BAR}DSML{_BAR}(?:function_calls|tool_calls|invoke)\b",),
    ),
    Family(
        name="llama3",
        models=("llama31", "llama32", "llama33", "llama3", "metallama"),
        cues=("<|python_tag|>",),
        special=(r"<\|python_tag\|>",),
    ),
    Family(
        name="llama4",
        models=("llama4",),
        cues=("<|python_start|>",),
        special=(r"<\|python_start\|>",),
    ),
    Family(
        name="granite",
        models=("granite3", "granite"),
        cues=("<|tool_call|>",),
        special=(r"<\|tool_call\|>", r"<function_call>(?=\s*\{)"),
    ),
    Family(
        name="phi4",
        models=("phi4", "phi"),
        cues=("<|tool_call|>[", "functools["),
        special=(r"functools(?=\[)",),
    ),
    Family(
        name="gemma4",
        models=("gemma4",),
        cues=('<|"|>', "<|tool_call>"),
        special=(r"<\|tool_call>",),
        thinks=(("<|channel>", "<channel|>"),),
    ),
    Family(
        name="functiongemma",
        models=("functiongemma",),
        cues=("<start_function_call>",),
        special=(r"<start_function_call>",),
    ),
    Family(name="gemma3", models=("gemma3", "gemma"), cues=("tool_code",)),
    Family(
        name="lfm2",
        models=("lfm2", "lfm"),
        cues=("<|tool_call_start|>",),
        special=(r"<\|tool_call_start\|>",),
    ),
    Family(
        name="internlm",
        models=("internlm", "interns1"),
        cues=("<|action_start|>",),
        special=(r"<\|action_start\|>",),
    ),
    Family(
        name="command-r",
        models=("commandr", "commanda", "cohere", "aya"),
        cues=("<|START_ACTION|>",),
        special=(r"<\|START_ACTION\|>",),
        thinks=(("<|START_THINKING|>", "<|END_THINKING|>"),),
    ),
    Family(
        name="functionary",
        models=("functionary",),
        cues=(">>>all", "<|recipient|>"),
        special=(r"<\|(?:recipient|from)\|>", r">>>[A-Za-z_][\w.\-]{0,80}\n\s*\{"),
        tags=(r">>>(?=[A-Za-z_])",),
    ),
    Family(
        name="plamo",
        models=("plamo",),
        cues=("<|plamo:begin_tool",),
        special=(r"<\|plamo:begin_tool_\w+:plamo\|>",),
        thinks=(("<|plamo:begin_think:plamo|>", "<|plamo:end_think:plamo|>"),),
    ),
    Family(
        name="apertus",
        models=("apertus",),
        cues=("<|tools_prefix|>",),
        special=(r"<\|tools_prefix\|>",),
        thinks=(("<|inner_prefix|>", "<|inner_suffix|>"),),
    ),
    Family(
        name="gigachat",
        models=("gigachat",),
        cues=("<|function_call|>", "function call<|role_sep|>"),
        special=(r"<\|function_call\|>", r"function call<\|role_sep\|>"),
    ),
    Family(name="pangu", models=("pangu",), cues=("[unused11]",), special=(r"\[unused11\]",)),
    Family(name="hyperclovax", models=("hyperclova",), cues=("-> tool/function_call",)),
    Family(name="lmstudio", models=(), cues=("[TOOL_REQUEST]",), special=(r"\[TOOL_REQUEST\]",)),
)
