"""How each family of models writes a tool call, by its chat template or documentation: calls in, raw text out.

The writers here know nothing of the readers in `velollm.toolcalls`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

__all__ = ["FORMATS", "NESTING", "TOOLS", "Calls", "tool"]

Calls: TypeAlias = Sequence[tuple[str, dict[str, Any]]]


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def plain(value: Any) -> str:
    """Strings as they are, everything else as JSON."""
    return value if isinstance(value, str) else dump(value)


def hermes(calls: Calls) -> str:
    return "\n".join(
        f'<tool_call>\n{{"name": {dump(name)}, "arguments": {dump(given)}}}\n</tool_call>' for name, given in calls
    )


def qwen3_coder(calls: Calls) -> str:
    return "\n".join(f"<tool_call>\n{_function(name, given)}\n</tool_call>" for name, given in calls)


def _function(name: str, given: dict[str, Any]) -> str:
    lines = [f"<function={name}>"]
    for key, value in given.items():
        lines += [f"<parameter={key}>", plain(value), "</parameter>"]
    return "\n".join([*lines, "</function>"])


def bare_function(calls: Calls) -> str:
    return "\n".join(_function(name, given) for name, given in calls)


def llama3_json(calls: Calls) -> str:
    return "; ".join(f'{{"name": {dump(name)}, "parameters": {dump(given)}}}' for name, given in calls)


def llama3_tag(calls: Calls) -> str:
    return "<|python_tag|>" + llama3_json(calls)


def llama3_function(calls: Calls) -> str:
    return "".join(f"<function={name}>{dump(given)}</function>" for name, given in calls)


def _python(name: str, given: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})"


def pythonic(calls: Calls) -> str:
    return "[" + ", ".join(_python(name, given) for name, given in calls) + "]"


def llama4(calls: Calls) -> str:
    return f"<|python_start|>{pythonic(calls)}<|python_end|>"


def lfm2(calls: Calls) -> str:
    return f"<|tool_call_start|>{pythonic(calls)}<|tool_call_end|>"


def olmo3(calls: Calls) -> str:
    return "<function_calls>\n" + "\n".join(_python(name, given) for name, given in calls) + "\n</function_calls>"


def gemma3(calls: Calls) -> str:
    return "```tool_code\n" + "\n".join(_python(name, given) for name, given in calls) + "\n```"


def _list(calls: Calls, arguments: str = "arguments", name_key: str = "name") -> str:
    return dump([{name_key: name, arguments: given} for name, given in calls])


def mistral_list(calls: Calls) -> str:
    return "[TOOL_CALLS] " + _list(calls)


def mistral_args(calls: Calls) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{dump(given)}" for name, given in calls)


def mistral_bare(calls: Calls) -> str:
    return "".join(f"[TOOL_CALLS]{name}{dump(given)}" for name, given in calls)


def mistral_id(calls: Calls) -> str:
    return "".join(
        f"[TOOL_CALLS]{name}[CALL_ID]x{number:08d}[ARGS]{dump(given)}" for number, (name, given) in enumerate(calls)
    )


def deepseek_v3(calls: Calls) -> str:
    inner = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{dump(given)}\n```<｜tool▁call▁end｜>"
        for name, given in calls
    )
    return f"<｜tool▁calls▁begin｜>{inner}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"


def deepseek_v31(calls: Calls) -> str:
    inner = "".join(
        f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{dump(given)}<｜tool▁call▁end｜>" for name, given in calls
    )
    return f"<｜tool▁calls▁begin｜>{inner}<｜tool▁calls▁end｜>"


def _dsml(calls: Calls, word: str) -> str:
    lines = [f"<｜DSML｜{word}>"]
    for name, given in calls:
        lines.append(f'<｜DSML｜invoke name="{name}">')
        for key, value in given.items():
            text = "true" if isinstance(value, str) else "false"
            lines.append(f'<｜DSML｜parameter name="{key}" string="{text}">{plain(value)}</｜DSML｜parameter>')
        lines.append("</｜DSML｜invoke>")
    return "\n".join([*lines, f"</｜DSML｜{word}>"])


def deepseek_v32(calls: Calls) -> str:
    return _dsml(calls, "function_calls")


def deepseek_v4(calls: Calls) -> str:
    return _dsml(calls, "tool_calls")


def glm45(calls: Calls) -> str:
    made = []
    for name, given in calls:
        pairs = "".join(
            f"<arg_key>{key}</arg_key>\n<arg_value>{plain(value)}</arg_value>\n" for key, value in given.items()
        )
        made.append(f"<tool_call>{name}\n{pairs}</tool_call>")
    return "\n".join(made)


def glm47(calls: Calls) -> str:
    return "".join(
        f"<tool_call>{name}"
        + "".join(f"<arg_key>{key}</arg_key><arg_value>{plain(value)}</arg_value>" for key, value in given.items())
        + "</tool_call>"
        for name, given in calls
    )


def longcat(calls: Calls) -> str:
    made = []
    for name, given in calls:
        pairs = "".join(
            f"<longcat_arg_key>{key}</longcat_arg_key>\n<longcat_arg_value>{plain(value)}</longcat_arg_value>\n"
            for key, value in given.items()
        )
        made.append(f"<longcat_tool_call>{name}\n{pairs}</longcat_tool_call>")
    return "\n".join(made)


def longcat_json(calls: Calls) -> str:
    return "\n".join(
        f'<longcat_tool_call>{{"name": {dump(name)}, "arguments": {dump(given)}}}</longcat_tool_call>'
        for name, given in calls
    )


def hunyuan3(calls: Calls) -> str:
    inner = "".join(
        f"<tool_call>{name}<tool_sep>\n"
        + "".join(f"<arg_key>{key}</arg_key>\n<arg_value>{plain(value)}</arg_value>\n" for key, value in given.items())
        + "</tool_call>\n"
        for name, given in calls
    )
    return f"<tool_calls>\n{inner}</tool_calls>"


def kimi_k2(calls: Calls) -> str:
    inner = "".join(
        f"<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>{dump(given)}<|tool_call_end|>"
        for number, (name, given) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{inner}<|tool_calls_section_end|>"


def kimi_k3(calls: Calls) -> str:
    made = "<|open|>tools<|sep|>"
    for number, (name, given) in enumerate(calls):
        made += f'<|open|>call tool="{name}" index="{number}"<|sep|>'
        for key, value in given.items():
            kind = "string" if isinstance(value, str) else "json"
            made += f'<|open|>argument key="{key}" type="{kind}"<|sep|>{plain(value)}<|close|>argument<|sep|>'
        made += "<|close|>call<|sep|>"
    return made + "<|close|>tools<|sep|>"


def granite3(calls: Calls) -> str:
    return "<|tool_call|>" + _list(calls)


def granite_code(calls: Calls) -> str:
    return "".join(f'<function_call> {{"name": {dump(name)}, "arguments": {dump(given)}}}' for name, given in calls)


def command_r(calls: Calls) -> str:
    return f"Action: ```json\n{_list(calls, 'parameters', 'tool_name')}\n```"


def command_a(calls: Calls) -> str:
    inner = ",\n    ".join(
        f'{{"tool_call_id": "{number}", "tool_name": {dump(name)}, "parameters": {dump(given)}}}'
        for number, (name, given) in enumerate(calls)
    )
    return f"<|START_ACTION|>[\n    {inner}\n]<|END_ACTION|>"


def phi4_mini(calls: Calls) -> str:
    return f"<|tool_call|>{_list(calls)}<|/tool_call|>"


def functools(calls: Calls) -> str:
    return "functools" + _list(calls)


def functionary_v32(calls: Calls) -> str:
    return "".join(f">>>{name}\n{dump(given)}" for name, given in calls)


def functionary_v2(calls: Calls) -> str:
    return "".join(f"<|from|>assistant\n<|recipient|>{name}\n<|content|>{dump(given)}\n" for name, given in calls)


def _gemma_value(value: Any, quote: str) -> str:
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_gemma_value(item, quote)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_gemma_value(item, quote) for item in value) + "]"
    return dump(value)


def functiongemma(calls: Calls) -> str:
    return "".join(
        f"<start_function_call>call:{name}{_gemma_value(given, '<escape>')}<end_function_call>" for name, given in calls
    )


def gemma4(calls: Calls) -> str:
    quote = '<|"|>'
    return "".join(f"<|tool_call>call:{name}{_gemma_value(given, quote)}<tool_call|>" for name, given in calls)


def gpt_oss(calls: Calls) -> str:
    return "<|start|>assistant".join(
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{dump(given)}<|call|>"
        for name, given in calls
    )


def gpt_oss_recipient_first(calls: Calls) -> str:
    return "".join(
        f"<|start|>assistant to=functions.{name}<|channel|>commentary json<|message|>{dump(given)}<|call|>"
        for name, given in calls
    )


def minimax_m1(calls: Calls) -> str:
    lines = "\n".join(f'{{"name": {dump(name)}, "arguments": {dump(given)}}}' for name, given in calls)
    return f"<tool_calls>\n{lines}\n</tool_calls>"


def _invokes(calls: Calls, prefix: str = "") -> str:
    made = []
    for name, given in calls:
        made.append(f'<{prefix}invoke name="{name}">')
        made += [f'<{prefix}parameter name="{key}">{plain(value)}</{prefix}parameter>' for key, value in given.items()]
        made.append(f"</{prefix}invoke>")
    return "\n".join(made)


def minimax_m2(calls: Calls) -> str:
    return f"<minimax:tool_call>\n{_invokes(calls)}\n</minimax:tool_call>"


def invoke(calls: Calls) -> str:
    return f"<function_calls>\n{_invokes(calls)}\n</function_calls>"


TOKEN = "]<]minimax[>["


def _element(name: str, value: Any) -> str:
    if isinstance(value, dict):
        inner = "".join(_element(key, item) for key, item in value.items())
    elif isinstance(value, list):
        inner = "".join(_element("item", item) for item in value)
    else:
        inner = plain(value)
    return f"{TOKEN}<{name}>{inner}{TOKEN}</{name}>"


def minimax_m3(calls: Calls) -> str:
    inner = "\n".join(
        f'{TOKEN}<invoke name="{name}">'
        + "".join(_element(key, value) for key, value in given.items())
        + f"{TOKEN}</invoke>"
        for name, given in calls
    )
    return f"{TOKEN}<tool_call>\n{inner}\n{TOKEN}</tool_call>"


def nemotron(calls: Calls) -> str:
    return f"<TOOLCALL>{_list(calls)}</TOOLCALL>"


def internlm(calls: Calls) -> str:
    return "".join(
        f'<|action_start|><|plugin|>\n{{"name": {dump(name)}, "parameters": {dump(given)}}}<|action_end|>'
        for name, given in calls
    )


def jamba(calls: Calls) -> str:
    inner = ",\n    ".join(f'{{"name": {dump(name)}, "arguments": {dump(given)}}}' for name, given in calls)
    return f"<tool_calls>[\n    {inner}\n]</tool_calls>"


def seed_oss(calls: Calls) -> str:
    made = []
    for name, given in calls:
        pairs = "".join(f"<parameter={key}>{plain(value)}</parameter>\n" for key, value in given.items())
        made.append(f"<function={name}>\n{pairs}</function>")
    return "<seed:tool_call>\n" + "\n".join(made) + "\n</seed:tool_call>"


def minicpm(calls: Calls) -> str:
    return "\n".join(
        f'<function name="{name}">'
        + "".join(f'<param name="{key}">{plain(value)}</param>' for key, value in given.items())
        + "</function>"
        for name, given in calls
    )


def step3(calls: Calls) -> str:
    inner = "".join(
        f"<｜tool_call_begin｜>function<｜tool_sep｜>{_invokes([call], 'steptml:')}<｜tool_call_end｜>"
        for call in calls
    )
    return f"<｜tool_calls_begin｜>{inner}<｜tool_calls_end｜>"


def plamo(calls: Calls) -> str:
    inner = "".join(
        "<|plamo:begin_tool_request:plamo|>"
        f"<|plamo:begin_tool_name:plamo|>{name}<|plamo:end_tool_name:plamo|>"
        f"<|plamo:begin_tool_arguments:plamo|><|plamo:msg|>{dump(given)}<|plamo:end_tool_arguments:plamo|>"
        "<|plamo:end_tool_request:plamo|>"
        for name, given in calls
    )
    return f"<|plamo:begin_tool_requests:plamo|>{inner}<|plamo:end_tool_requests:plamo|>"


def apertus(calls: Calls) -> str:
    return f"<|tools_prefix|>{dump([{name: given} for name, given in calls])}<|tools_suffix|>"


def bare_list(calls: Calls) -> str:
    return _list(calls)


def fenced(calls: Calls) -> str:
    return f"```json\n{_list(calls)}\n```"


def react(calls: Calls) -> str:
    return "\n".join(f"Thought: I need it.\nAction: {name}\nAction Input: {dump(given)}" for name, given in calls)


def lm_studio(calls: Calls) -> str:
    return "\n".join(
        f'[TOOL_REQUEST]{{"name": {dump(name)}, "arguments": {dump(given)}}}[END_TOOL_REQUEST]' for name, given in calls
    )


FORMATS: dict[str, Callable[[Calls], str]] = {
    made.__name__: made
    for made in (
        hermes, qwen3_coder, bare_function, llama3_json, llama3_tag, llama3_function, pythonic, llama4, lfm2, olmo3,
        gemma3, mistral_list, mistral_args, mistral_bare, mistral_id, deepseek_v3, deepseek_v31, deepseek_v32,
        deepseek_v4, glm45, glm47, longcat, longcat_json, hunyuan3, kimi_k2, kimi_k3, granite3, granite_code, command_r,
        command_a, phi4_mini, functools, functionary_v32, functionary_v2, functiongemma, gemma4, gpt_oss,
        gpt_oss_recipient_first, minimax_m1, minimax_m2, minimax_m3, invoke, nemotron, internlm, jamba, seed_oss,
        minicpm, step3, plamo, apertus, bare_list, fenced, lm_studio, react,
    )
}  # fmt: skip

# Formats whose values are text between tags: what stands in them is not quoted, so `</parameter>` cannot be said.
NESTING = frozenset(
    {"qwen3_coder", "bare_function", "glm45", "glm47", "longcat", "hunyuan3", "kimi_k3", "minimax_m2", "minimax_m3",
     "invoke", "seed_oss", "minicpm", "step3", "deepseek_v32", "deepseek_v4"}
)  # fmt: skip


def tool(tool_name: str, /, required: Sequence[str] = (), **properties: Any) -> dict[str, Any]:
    """A tool in OpenAI's shape; a property is a type's name or a schema."""
    return {
        "type": "function",
        "function": {
            "name": tool_name,
            "description": f"What {tool_name} does",
            "parameters": {
                "type": "object",
                "properties": {
                    key: {"type": kind} if isinstance(kind, str) else kind for key, kind in properties.items()
                },
                "required": list(required),
            },
        },
    }


TOOLS = [
    tool("read_sensor", ["station"], station="string", depth="number", raw="boolean"),
    tool(
        "plan_route",
        ["stops"],
        stops={"type": "array", "items": {"type": "string"}},
        options={
            "type": "object",
            "properties": {
                "avoid": {"type": "array", "items": {"type": "string", "enum": ["tolls", "ferries", "unpaved"]}},
                "limit_km": {"type": "integer", "minimum": 1},
                "depart": {"type": ["string", "null"]},
            },
        },
    ),
    tool("write_note", ["path", "body"], path="string", body="string", mode={"type": "string", "enum": ["new", "add"]}),
    tool("list_ports"),
]
