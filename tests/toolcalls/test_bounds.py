"""Time and memory stay in proportion, whatever a model or a client sends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from velollm.toolcalls import InvalidToolError, StreamFixer, check_tools, fix

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "string"}, "n": {"type": "integer"}, "o": {"type": "object"}, "l": {"type": "array"},
                },
            },
        },
    }
]  # fmt: skip
CALL = '<tool_call>{"name":"f","arguments":{"a":"x"}}</tool_call>'

# What is repeated, and inside of what: every opening, closing and half-opening of every format.
UNITS = [
    "<", "[", "{", "}", "\n{", "\n[", '"', "'", "\\", "`", "`\n", "~~~", "```json\n", '```json\n{"a"\n', " ", "\n",
    "\t\n ", ",", "a=", "<|", "<a>", "{}",
    '{"a":1}}\n', "]}", '{"a":', '{"a":"x",', '"x", "y" ', '{"a":/*', '{"a"://', "{#",
    '{\\"a\\":', '"{\\"name\\":', "<tool_call>", "<tool_call>{", "</tool_call>", "<tool_call>f\n", "<think></think>",
    "</think>", "<arg_key>a</arg_key>", "<tool_call>f<arg_key>a</arg_key><arg_value>", "<function=f><parameter=a>",
    "<tool_call>\n<function=f>\n<parameter=a>\n", '<invoke name="f"><parameter name="a">', '<param name="a">',
    '<invoke name="f"><a>', '<invoke name="f"><parameter name="a"><![CDATA[', '<｜DSML｜invoke name="f">', "f(", "\nf(",
    '[f(a="', "[f(a=(", "print(", "\nprint(", "default_api.f(", "[TOOL_CALLS]", '[TOOL_CALLS]f[ARGS]{"a":"',
    "[TOOL_CALLS]f[CALL_ID]x", "functools[", ">>>f\n{", "Action: f\n", 'Action: f\nAction Input: {"a":\n',
    "<|tool_call_begin|>f:0<|tool_call_argument_begin|>", "<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>f\n```json\n",
    "<|channel|>commentary to=functions.f<|message|>", "<|channel|>analysis<|message|>",
    ']<]minimax[>[<invoke name="f">', '<|tool_call>call:f{a:<|"|>', "<start_function_call>call:f{a:<escape>",
    '<|open|>tools<|sep|><|open|>call tool="f"<|sep|><|open|>argument key="a" type="string"<|sep|>',
    CALL + "\n", CALL.replace("x", 'x"y'), '{"name":"f","arguments":{"a":"x"}}\n',
    '{"name":"f","arguments":{"a":"x"}} so\n', '{"name":"f","arguments":{"o":',
]  # fmt: skip
PLACES = [
    ("", ""),
    ('<tool_call>{"name": "f", "arguments": {"a": "', '"}}</tool_call>'),
    ("<function=f><parameter=a>", "</parameter></function>"),
    ('[f(a="', '")]'),
    ('{"name": "f", "arguments": {"n": 1, ', "}}"),
    ('{"n":1}', " x"),
    ("<think>", "</think>x"),
]


def seconds(work: Callable[[], Any], tries: int = 2) -> float:
    """Of this thread's own work: what else the machine does is left out."""
    best = 1e9
    for _ in range(tries):
        began = time.thread_time()
        work()
        best = min(best, time.thread_time() - began)
    return best


def stream(text: str, step: int = 6) -> None:
    fixer = StreamFixer(TOOLS)
    for at in range(0, len(text), step):
        fixer.feed(text[at : at + step])
    fixer.finish()


@pytest.mark.parametrize("number", range(len(UNITS)))
def test_time_is_linear_in_repetitions(number: int) -> None:
    """Four times the text may take eleven times as long, not sixteen."""
    unit = UNITS[number]
    for lead, tail in (PLACES[number % len(PLACES)], PLACES[0]):
        small = lead + unit * (1000 // len(unit) + 1) + tail
        large = lead + unit * (4000 // len(unit) + 4) + tail
        for work in (lambda text: fix(text, TOOLS), stream):
            once, more = (
                seconds(lambda work=work, text=small: work(text)),
                seconds(lambda work=work, text=large: work(text)),
            )
            assert more < 11 * once + 0.05


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" * 4500,
        "[" * 50_000,
        '{"name": "f", "arguments": {"a": "' + "\\" * 50_000,
        '{"name": "f", "arguments": {"a": "' + '", "' * 12_000,
        "<function=f><parameter=a>" + "</parameter " * 4_000,
        "[f(a='" + "', " * 16_000,
        "```json\n{" * 5_000,
        "Action: f\nAction Input: " + "{" * 50_000,
        "[TOOL_CALLS]f" + "[ARGS]{" * 7_000,
    ],
)
def test_no_text_of_50_kb_takes_long(text: str) -> None:
    """The shapes that make backtracking readers hang for minutes."""
    assert seconds(lambda: fix(text, TOOLS), 1) < 2
    assert seconds(lambda: stream(text, 50), 1) < 2


def test_100_kb_of_broken_argument() -> None:
    body = "He said \"no\", then {left}. It's 5 o'clock:\n" * 2300
    result = fix('<tool_call>{"name": "f", "arguments": {"a": "' + body + '"}}</tool_call>', TOOLS)
    assert result.calls[0].arguments == {"a": body}
    broken = '{"name": "f", "arguments": {\'a\': \'' + "x, y; " * 17_000 + "', n: '5',}}"
    result = fix(broken, TOOLS)
    assert result.calls[0].arguments["n"] == 5


def test_10_mb_of_arguments() -> None:
    body = "0123456789 \\n " * 750_000
    result = fix('<tool_call>{"name": "f", "arguments": {"a": "' + body + '"}}</tool_call>', TOOLS)
    assert len(result.calls[0].arguments["a"]) > 9_000_000


@pytest.mark.parametrize("opening", ["[", '{"o":', "[{"])
def test_100_000_levels_are_no_call(opening: str) -> None:
    deep = opening * 100_000
    for text in (
        '<tool_call>{"name": "f", "arguments": {"l": ' + deep + "}}</tool_call>",
        "[f(l=" + deep + ")]",
        deep,
    ):
        result = fix(text, TOOLS)
        assert result.calls == []
        assert result.content == text
    assert fix([{"function": {"name": "f", "arguments": '{"l": ' + deep}}], TOOLS).calls == []


def tool(parameters: Any, name: str = "f") -> list[Any]:
    return [{"type": "function", "function": {"name": name, "parameters": parameters}}]


def nested(levels: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


SELF = {"type": "object", "properties": {"a": {"$ref": "#"}, "n": {"type": "integer"}}}
MUTUAL = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/x"}},
    "$defs": {"x": {"$ref": "#/$defs/y"}, "y": {"$ref": "#/$defs/x"}},
}
WIDE = {"type": "object", "properties": {f"p{number}": {"type": "integer"} for number in range(5000)}}
FORKING = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/d0"}},
    "$defs": {
        **{
            f"d{level}": {
                "anyOf": [
                    {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{level + 1}"}}, "required": ["a"]},
                    {"$ref": f"#/$defs/d{level + 1}"},
                ]
            }
            for level in range(24)
        },
        "d24": {"type": "string"},
    },
}


def test_schemas_that_refer_to_themselves_end() -> None:
    value = '{"a": {"a": {"a": {"n": 3}}}}'
    call = f'<tool_call>{{"name": "f", "arguments": {value}}}</tool_call>'
    assert fix(call, tool(SELF)).calls[0].arguments == {"a": {"a": {"a": {"n": 3}}}}
    assert fix(call, tool(MUTUAL)).calls == []


def test_5_000_properties() -> None:
    call = '<tool_call>{"name": "f", "arguments": {"P-4999": "7"}}</tool_call>'
    assert fix(call, tool(WIDE)).calls[0].arguments == {"p4999": 7}


def test_a_schema_200_levels_deep() -> None:
    value = '{"a": ' * 200 + '"x"' + "}" * 200
    call = f'<tool_call>{{"name": "f", "arguments": {value}}}</tool_call>'
    assert len(fix(call, tool(nested(200))).calls) == 1


def test_a_schema_that_forks_at_every_level_ends() -> None:
    value = '{"a": ' * 24 + "1" + "}" * 24
    call = f'<tool_call>{{"name": "f", "arguments": {value}}}</tool_call>'
    assert seconds(lambda: fix(call, tool(FORKING)), 1) < 2


@pytest.mark.parametrize(
    "pattern", ["^(a+)+$", "(a|a)*$", "(a|aa)+$", "(.*a){25}", r"^(\w+\s?)*$", "(x+x+)+y", r"(a)\1+b"]
)
def test_catastrophic_patterns_are_not_tried(pattern: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}
    call = '<tool_call>{"name": "f", "arguments": {"a": "' + "a" * 5000 + '!"}}</tool_call>'
    assert seconds(lambda: fix(call, tool(schema)), 1) < 1


def test_a_remote_ref_is_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.getaddrinfo", connect)
    for address in ("http://127.0.0.1:9/x.json", "https://example.com/x", "file:///etc/passwd", "//host/x"):
        schema = {"type": "object", "properties": {"a": {"$ref": address}}}
        assert fix('<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', tool(schema)).calls == []


@pytest.mark.parametrize(
    "tools",
    [
        tool({"type": "object", "properties": {"a": {"type": 5}}}),
        tool({"type": "object", "properties": {"a": {"enum": "x"}}}),
        tool({"type": "object", "properties": {"a": 7}}),
        tool({"type": "array"}),
        tool([]),
        tool(nested(300)),
        tool({}, name=""),
        tool({}) + tool({}),
        [{"type": "function"}],
        ["f"],
        "f",
    ],
)
def test_a_tool_list_that_makes_no_sense_is_refused_and_harmless(tools: Any) -> None:
    with pytest.raises(InvalidToolError):
        check_tools(tools)
    fix('<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', tools)


@pytest.mark.parametrize("schema", [SELF, MUTUAL, WIDE, nested(200), FORKING])
def test_odd_but_legal_schemas_are_accepted(schema: Any) -> None:
    assert seconds(lambda: check_tools(tool(schema)), 1) < 2
