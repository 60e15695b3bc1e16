# ruff: noqa: E501 -- the texts are as they come
"""Text of every kind as an argument: code, markup, quotes, what looks like a value or like a call."""

from __future__ import annotations

import pytest
from support.toolcall_formats import FORMATS, TOOLS

from velollm.toolcalls import fix

BODIES = {
    "python": 'def f(x: int) -> str:\n    """Doc \'quoted\'."""\n    if x < 3 and x > 1:\n        return f"{x!r}: {\'a\'}"  # ok\n    return json.dumps({"a": [1, 2], "b": None})\n',
    "jsx": "export const A = () => <div className=\"x\" onClick={() => go('y')}>{items.map(i => <li key={i}>{i}</li>)}</div>;",
    "html": '<!doctype html>\n<html><body><p class="a">Hi &amp; bye</p><script>if (a < b && c > d) { run("x"); }</script></body></html>',
    "bash": "cat <<'EOF' > /tmp/x\nline \"one\"\n$HOME `date` \\$ESC\nEOF\ngrep -E '^[a-z]+\\s*$' file | awk '{print $1}'",
    "sql": "SELECT * FROM \"t\" WHERE name = 'O''Brien' AND x >= 5; -- comment",
    "markdown": '# T\n\n```python\nprint("hi")\n```\n\n- item\n\n```json\n{"name": "read_sensor", "arguments": {"station": "x"}}\n```\nEnd.',
    "regex": "^(?:\\d{3}-)?\\w+@[\\w.]+\\.\\w{2,}$",
    "json": '{"name": "list_ports", "arguments": {}}',
    "json2": '[{"op": "add", "path": "/a", "value": "x\\ny"}]',
    "think": "He wrote <think>hm</think> there.",
    "mention": "Use <tool_call> to call a tool.",
    "toolcallquoted": 'Docs: <tool_call>{"name": "list_ports", "arguments": {}}</tool_call> is the format.',
    "diff": "--- a/x\n+++ b/x\n@@ -1,3 +1,3 @@\n-old \"line\"\n+new 'line'\n",
    "yaml": 'a:\n  - b: "c"\n    d: {e: f}\n',
    "csv": 'a,b\n"x, y",2\n',
    "emoji": "👩‍👩‍👧 ok “smart” ‘single’ — dash… «guillemets»",
    "latex": "\\frac{a}{b} \\begin{x} \\text{hi} \\n",
    "win": "C:\\Users\\bob\\new folder\\file.txt",
    "url": "https://e.com/a?b=c&d={x}#frag",
    "trail": "ends with backslash \\",
    "quotes": '"quoted"',
    "single": "'quoted'",
    "braces": "}}}{{{][",
    "comma": 'a", "b": "c',
    "colon": 'key: "value", other: 5',
    "spaces": "  indented\n\ttabbed  ",
    "newlines": "\n\nstart and end\n\n",
    "empty": "",
    "number": "12",
    "bool": "true",
    "null": "null",
    "python none": "None",
    "xmlparam": "a </parameter> b",
    "argval": "a </arg_value> b",
    "string tokens": '<escape> and <|"|>',
    "specials": "<|im_end|> and [TOOL_CALLS] and <|channel|>",
    "slashes": "// not a comment /* nor this */ # or this",
}
OWN_TOKENS = {"gemma4", "functiongemma"}  # cannot say their own string tokens in a string
BLOCKS = {"seed_oss", "minimax_m2", "invoke", "step3"}  # a newline at an end may be one of the markup


@pytest.mark.parametrize("kind", BODIES)
def test_text_arrives_as_it_was_written(kind: str) -> None:
    body = BODIES[kind]
    calls = [("write_note", {"path": "a.txt", "body": body})]
    for family, write in FORMATS.items():
        if (kind == "string tokens" and family in OWN_TOKENS) or (family in BLOCKS and body.endswith("\n")):
            continue
        result = fix(write(calls), TOOLS)
        assert [(call.name, call.arguments) for call in result.calls] == calls, family
