"""What models write beside their own templates: lost tokens, other models' wrappers, every shape of object."""

from __future__ import annotations

from typing import Any

import pytest
from support.toolcall_formats import TOOLS, tool

from velollm.toolcalls import StreamFixer, fix

X: dict[str, Any] = {"station": "x"}
J = '{"station": "x"}'
Q = '<|"|>'
CALL = f'{{"name": "read_sensor", "arguments": {J}}}'

ONE_CALL = [
    # special tokens that the engine dropped
    f"read_sensor\n{J}",
    f"read_sensor{J}",
    f"read_sensor[ARGS]{J}",
    f"read_sensor<｜tool▁sep｜>{J}<｜tool▁call▁end｜>",
    f"function<｜tool▁sep｜>read_sensor\n```json\n{J}\n```",
    f"functions.read_sensor:0{J}",
    f"functions.read_sensor:0<|tool_call_argument_begin|>{J}<|tool_call_end|>",
    f"call:read_sensor{{station:{Q}x{Q}}}",
    f"<|channel>thought\nI need it.\n<channel|>call:read_sensor{{station:{Q}x{Q}}}",
    f"to=functions.read_sensor<|channel|>commentary<|message|>{J}",
    f"commentary to=functions.read_sensor json{J}",
    f"assistant\n{CALL}",
    f"tool_call: {CALL}",
    f"{CALL}\n</tool_call>",
    "<function=read_sensor>\n<parameter=station>\nx\n</parameter>",
    "<tool_call>\n<function=read_sensor>\n<parameter=station>\nx\n</parameter>\n</tool_call>",
    "<tool_call>\n<function=read_sensor\n<parameter=station>\nx\n</parameter>\n</function>\n</tool_call>",
    # tokens that leaked, and wrappers that are not the model's own
    f"<|tool_call>:call:read_sensor{{station:{Q}x{Q}}}",
    f"<|tool_call>call:read_sensor{{station:{Q}x{Q}}}<turn|>",
    f"<|tool_call>call:read_sensor{{station:{Q}x{Q}}}<tool_call|><|tool_response>",
    f"<call>read_sensor{{station:{Q}x{Q}}}",
    f"<|im_start|>assistant\n<tool_call>\n{CALL}\n</tool_call><|im_end|>\n",
    f"<tools>\n{CALL}\n</tools>",
    f"<tool_call>{CALL}<tool_call>",
    f"```xml\n<tool_call>\n{CALL}\n</tool_call>\n```",
    f"<tool_call>[{CALL}]</tool_call>",
    f"<|tool_call|>{CALL}<|/tool_call|>",
    f"<|tool_calls_section_begin|><|tool_call_begin|>read_sensor<|tool_call_argument_begin|>{J}<|tool_call_end|>",
    f"<|channel|>commentary to=read_sensor<|message|>{J}",
    f"<|channel|>analysis to=functions.read_sensor<|message|>{J}<|call|>",
    "<tool_call>read_sensor(station='x')</tool_call>",
    f"<tool_call>\n<name>read_sensor</name>\n<arguments>{J}</arguments>\n</tool_call>",
    '<functionname="read_sensor"><paramname="station">x</param></function>',
    '<|python_tag|>read_sensor.call(station="x")',
    '```python\nread_sensor(station="x")\n```',
    '```tool_code\nprint(default_api.read_sensor(station="x"))\n```',
    "print(read_sensor(station='x'))",
    f"<tool>\n  {CALL}\n</tool>",
    f"<response>\n  {CALL}\n</response>",
    f"```xml\n<response>\n    {CALL}\n</response>\n```",
    f"<json>\n  {CALL}\n</json>",
    f"<toolcall>{CALL}</toolcall>",
    f"<ToolCall>{CALL}</ToolCall>",
    f"<functioncall>{CALL}</functioncall>",
    f"<tool_call>{CALL}</toolcall>",
    f"<|message_sep|>\n\nfunction call<|role_sep|>\n{CALL}",
    f" -> tool/function_call\n[{CALL}]<|im_end|>",
    f"<|im_start|>assistant -> tool/function_call\n[{CALL}]<|im_end|>",
    f"[unused11][{CALL}][unused12]",
    f"Action: read_sensor[{J}]",
    "Action: read_sensor[x]",
    "Action: read_sensor\nAction Input: x",
    "<tool_call>\nread_sensor\n<parameter=station>\nx\n</parameter>\n</tool_call>",
    "<tool_call>\n<read_sensor>\n<station>x</station>\n</read_sensor>\n</tool_call>",
    "<read_sensor>\n<station>x</station>\n</read_sensor>",
    "<tool_call><name>read_sensor</name><parameters><station>x</station></parameters></tool_call>",
    "<tool_use>\n<tool_name>read_sensor</tool_name>\n<parameters>\n<station>x</station>\n</parameters>\n</tool_use>",
    "read_sensor\n<arg_key>station</arg_key>\n<arg_value>x</arg_value>\n</tool_call>",
    '<tool_code>\nprint(read_sensor(station="x"))\n</tool_code>',
    f"analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.read_sensor<|message|>{J}",
    f"assistantcommentary to=functions.read_sensorjson{J}",
    f"<|channel|>commentary to=functions.read_sensor json{J}<|call|>commentary",
    "<start_function_call>call:read_sensor{station:<escape>x<escape>}<end_function_call><start_function_response>",
    # a bracket too many, one too few, one of the wrong kind
    f"<tool_call>\n{CALL}}}\n</tool_call>",
    f"<tool_call>\n{CALL[:-1]}\n</tool_call>",
    f"<tool_call>\n{CALL[:-1]}]\n</tool_call>",
    f"[TOOL_CALLS] [{CALL}",
    # every shape of object
    '{"type": "function", "function": {"name": "read_sensor", "parameters": {"station": "x"}}}',
    '{"function": "read_sensor", "arguments": {"station":"x"}}',
    '{"tool": "read_sensor", "tool_input": {"station":"x"}}',
    '{"tool_calls": [{"name":"read_sensor","arguments":{"station":"x"}}]}',
    '{"tool_calls": [{"id":"a","function":{"name":"read_sensor","arguments":"{\\"station\\": \\"x\\"}"}}]}',
    '{"action": "read_sensor", "action_input": {"station":"x"}}',
    '{"name": "read_sensor", "arguments": "{\\"station\\": \\"x\\"}"}',
    '{"read_sensor": {"station": "x"}}',
    f'{{"call": {CALL}}}',
    f'{{"tool": {CALL}}}',
    '{"command": {"name": "read_sensor", "args": {"station": "x"}}}',
    '{"functionCall": {"name": "read_sensor", "args": {"station": "x"}}}',
    '{"recipient_name": "functions.read_sensor", "parameters": {"station": "x"}}',
    '{"name": "read_sensor", "arguments": null, "parameters": {"station": "x"}}',
    '{"name": "read_sensor", "arguments": {"station": {"value": "x"}}}',
    '{"name": "read_sensor", "arguments": [{"station": "x"}]}',
    '{"type": "tool_use", "id": "t", "name": "read_sensor", "input": {"station": "x"}}',
    '{"name": "read_sensor", "station": "x"}',
    '{"name": "read_sensor", "arguments": {"parameters": {"station": "x"}}}',
    '{"name": "read_sensor", "arguments": {"type": "object", "properties": {"station": "x"}}}',
    "{name: 'read_sensor', arguments: {station: 'x',},}",
    '"{\\"name\\": \\"read_sensor\\", \\"arguments\\": {\\"station\\": \\"x\\"}}"',
]


@pytest.mark.parametrize("text", ONE_CALL)
def test_one_call_and_nothing_else(text: str) -> None:
    result = fix(text, TOOLS)
    assert [tuple(call) for call in result.calls] == [("read_sensor", X)], result.errors
    assert result.content is None
    fixer = StreamFixer(TOOLS)
    events = [event for char in text for event in fixer.feed(char)] + fixer.finish()
    assert [event.name for event in events if event.name] == ["read_sensor"]
    assert not "".join(event.text or "" for event in events).strip()


TWO_CALLS = [
    f'read_sensor\n{J}\nplan_route\n{{"stops": ["a"]}}',
    f'>>>read_sensor\n{J}>>>plan_route\n{{"stops": ["a"]}}',
    f'<tool_call>\n{CALL}\n{{"name": "plan_route", "arguments": {{"stops": ["a"]}}}}\n</tool_call>',
    f'{CALL}\n{{"name": "plan_route", "arguments": {{"stops": ["a"]}}}}',
    f'{CALL}, {{"name": "plan_route", "arguments": {{"stops": ["a"]}}}}',
    f'```json\n{CALL}\n```\n```json\n{{"name": "plan_route", "arguments": {{"stops": ["a"]}}}}\n```',
    'read_sensor(station="x")\nplan_route(stops=["a"])',
    f'{{"read_sensor": {J}, "plan_route": {{"stops": ["a"]}}}}',
]


@pytest.mark.parametrize("text", TWO_CALLS)
def test_two_calls(text: str) -> None:
    result = fix(text, TOOLS)
    assert [tuple(call) for call in result.calls] == [("read_sensor", X), ("plan_route", {"stops": ["a"]})]
    assert result.content is None


CONTENT = [
    (f"Let me check that.\nread_sensor\n{J}", "Let me check that."),
    (f"Sure! {CALL}", "Sure!"),
    ('Sure! [read_sensor(station="x")]', "Sure!"),
    (f"What a day.>>>read_sensor\n{J}", "What a day."),
    (f">>>all\nOn it.\n>>>read_sensor\n{J}", "On it."),
    (
        f"<|channel|>commentary<|message|>On it.<|end|><|start|>assistant to=functions.read_sensor<|message|>{J}",
        "On it.",
    ),
    (f"<tool_call>\n{CALL}\n</tool_call>\nI have asked for it.", "I have asked for it."),
    (f"<think>hm</think>\nOn it.\n<tool_call>\n{CALL}\n</tool_call>", "On it."),
    (f"hm\n</think>\n\nOn it.\n<tool_call>\n{CALL}\n</tool_call>", "On it."),
]


@pytest.mark.parametrize(("text", "content"), CONTENT)
def test_the_text_beside_a_call_stays(text: str, content: str) -> None:
    result = fix(text, TOOLS)
    assert [tuple(call) for call in result.calls] == [("read_sensor", X)], result.errors
    assert (result.content or "").strip() == content


NO_CALL = [
    # prose about calls
    f"To call it, write `{CALL}` on a line of its own.",
    f"The format is:\n\n```json\n{CALL}\n```\n\nReplace x by the station.",
    f"For example:\n```json\n{CALL}\n```",
    f"You could send <tool_call>{CALL}</tool_call> to get it.",
    f'The log says "{CALL}".',
    f"He wrote '<tool_call>{CALL}</tool_call>' in the chat.",
    "`read_sensor(station='x')`",
    "Use read_sensor(station='x') to read it.",
    "Call [read_sensor(station='x')] when you need it.",
    "I would call read_sensor with station x. Shall I?",
    f"Should I run this?\n{CALL}",
    f"Yesterday the model answered\n{CALL}\nand nothing happened.",
    # rehearsed in reasoning
    f"<think>I could call <tool_call>{CALL}</tool_call> but need not.</think>It is 4 degrees.",
    f"Maybe\n<tool_call>{CALL}</tool_call>\n</think>\nIt is 4 degrees.",
    f"<|channel|>analysis<|message|>We might use {CALL}<|end|><|start|>assistant<|channel|>final<|message|>4 degrees.",
    # what is not a call
    '{"name": "read_sensor", "description": "Reads.", "parameters": {"type": "object", "properties": {}}}',
    '[{"type": "function", "function": {"name": "read_sensor", "description": "x", "parameters": {"type": "object"}}}]',
    '{"role": "tool", "name": "read_sensor", "content": "4 degrees"}',
    '{"type": "tool_result", "name": "read_sensor", "content": "4"}',
    '<tool_response>\n{"name": "read_sensor", "content": {"degrees": 4}}\n</tool_response>',
    '{"name": "read_sensor", "result": {"degrees": 4}}',
    '{"name": "Anna", "station": "x"}',
    '{"station": "x"}',
    "read_sensor",
    "list_ports",
    "{}",
    "[]",
    # what must not run
    '<tool_call>{"name": "write_sensor", "arguments": {"station": "x"}}</tool_call>',
    '<tool_call>{"name": "erase_sensor", "arguments": {"station": "x"}}</tool_call>',
    '<tool_call>{"name": "read_sensor", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "read_sensor", "arguments": {"depth": 4}}</tool_call>',
    '<tool_call>{"name": "read_sensor", "arguments": {"station": "x", "depth": "deep"}}</tool_call>',
    '<tool_call>{"name": "read_sensor", "arguments": {"station": "x", "depth": NaN}}</tool_call>',
    '<tool_call>{"name": "read_sensor", "arguments": {"station": "x", "depth": Infinity}}</tool_call>',
    '<tool_call>{"name": "read_sensor", "arguments": {"station": null}}</tool_call>',
    '<tool_call>{"name": "plan_route", "arguments": {"stops": ["a"], "options": {"limit_km": 0}}}</tool_call>',
    '<tool_call>{"name": "plan_route", "arguments": {"stops": ["a"], "options": {"avoid": ["roads"]}}}</tool_call>',
    '<tool_call>{"name": "write_note", "arguments": {"path": "a", "body": "b", "mode": "delete"}}</tool_call>',
    '<tool_call>{"name": "read_sensor", "arguments": ["x"]}</tool_call>',
    # cut off
    '<tool_call>{"name": "read_sensor", "arguments": {"station": "x',
    '<tool_call>{"name": "read_sensor", "arguments": {"station": "x", "depth": 4',
    '<tool_call>{"name": "read_sensor", "arguments": {"station": "x", "dep',
    '<tool_call>{"name": "read_sensor", "arguments": {"station": "x", "depth":',
    '<tool_call>{"name": "read_sensor", "argum',
    "<tool_call><function=read_sensor><parameter=station>x",
    "<tool_call>read_sensor<arg_key>station</arg_key><arg_value>x",
    "<tool_call>read_sensor<arg_key>station</arg_key>",
    "[read_sensor(station='x",
    "[read_sensor(station='x', depth=4",
    '[TOOL_CALLS]read_sensor[ARGS]{"station": "x',
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>read_sensor<｜tool▁sep｜>{"station": "',
    '<|channel|>commentary to=functions.read_sensor<|message|>{"station": "x',
    f"<|tool_call>call:read_sensor{{station:{Q}x",
]


COMMON = [
    tool("search", ["query"], query="string"),
    tool("read", ["path"], path="string"),
    tool("list"),
    tool("weather"),
]
SHOWN = [
    "Sure! Here's the code:\n```python\nsearch(query='x')\n```",
    "You can use it like this:\n\nsearch(query='x')\n\nIt returns a list.",
    "search(query='x') is how you call it.",
    "```python\nfrom x import search\nsearch(query='x')\n```",
    "```python\nresults = search(query='x')\nprint(results)\n```",
    "1. search(query='x')\n2. read(path='y')",
    '{"name": "weather", "value": 3}',
    '{"search": "x"}',
    '["search", "read"]',
    "list\nread",
    "search {query}",
    'weather: {"city": "Oslo", "temp": 3}',
    'Output:\n{"name": "search", "arguments": {"query": "x"}}',
    '> {"name": "search", "arguments": {"query": "x"}}',
    '    {"name": "search", "arguments": {"query": "x"}}\nis what I would send.',
    "<search>x</search>",
    "<list>\n<item>a</item>\n</list>",
    "I ran search(query='x') and found nothing.",
    'Try:\n\n    search(query="x")\n',
    "def search(query):\n    return 1",
    'The field looks like [{"name": "search", "arguments": {"query": "x"}}].',
    "Action: I will think.",
    "Thought: I know\nFinal Answer: 4",
    '<tool_response>{"name":"search","arguments":{"query":"x"}}</tool_response>',
    "[TOOL_CALLS] is a token of Mistral.",
    "The token <|tool_call|> starts a call.",
    'Hermes writes <tool_call>{"name": ..., "arguments": ...}</tool_call>.',
]


@pytest.mark.parametrize("text", SHOWN)
def test_words_that_happen_to_be_tools(text: str) -> None:
    result = fix(text, COMMON)
    assert result.calls == []
    assert result.content == text


@pytest.mark.parametrize("text", NO_CALL)
def test_no_call_and_the_text_untouched(text: str) -> None:
    for reason in ("stop", "length", None):
        result = fix(text, TOOLS, reason)
        assert result.calls == []
        assert result.content == text
    fixer = StreamFixer(TOOLS)
    events = [event for at in range(0, len(text), 3) for event in fixer.feed(text[at : at + 3])] + fixer.finish()
    assert "".join(event.text or "" for event in events) == text


@pytest.mark.parametrize("text", ONE_CALL)
def test_what_was_cut_by_the_limit_gets_no_bracket(text: str) -> None:
    cut = text.replace(CALL, CALL[:-1])
    if cut != text and CALL + "}" not in text:
        assert fix(cut, TOOLS, "length").calls == []
