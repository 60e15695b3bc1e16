"""What may become of the tool calls in the answer to one request."""

from __future__ import annotations

from attrs import frozen

from velollm.messages import ChatRequest
from velollm.toolcalls.fixer import Mode
from velollm.toolcalls.tools import Tool, ToolSet, compile_tools

__all__ = ["Policy", "policy_of"]

_NO_TOOLS = ToolSet(())


@frozen(kw_only=True)
class Policy:
    """`tools` are those that may be called at all, of which `sole` is the one that must be, `required` that one must.

    `parallel` says that one answer may hold several calls, `dedupe` that of identical ones the first is enough.
    """

    tools: ToolSet
    mode: Mode = "repair"
    dedupe: bool = True
    parallel: bool = True
    required: bool = False
    sole: Tool | None = None


def policy_of(request: ChatRequest, mode: Mode, *, dedupe: bool = True) -> Policy:
    """The policy that `request` asks for.

    Raises:
        InvalidToolError: its tools are malformed, or two have the same name.
    """
    specs = [{"name": tool.name, "parameters": tool.parameters} for tool in request.tools]
    compiled = compile_tools(specs)
    compiled.check(specs)
    choice = request.tool_choice
    asked = "auto" if choice is None else choice.mode
    if asked == "none":
        compiled = _NO_TOOLS
    elif choice is not None and asked == "named":
        compiled = compile_tools([spec for spec in specs if spec["name"] == choice.name])
    required = asked in ("required", "named")
    tools = list(compiled.tools.values())
    return Policy(
        tools=compiled,
        mode=mode,
        dedupe=dedupe,
        parallel=request.parallel_tool_calls is not False,
        required=required,
        sole=tools[0] if required and len(tools) == 1 else None,
    )
