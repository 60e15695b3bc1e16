"""The layer as the stack hangs it in: switched by the settings, counted in the metrics."""

from __future__ import annotations

import pytest
from support.backend import ScriptedBackend

from velollm.collector import Collector
from velollm.config import Settings, ToolCallSettings
from velollm.messages import ChatRequest, Message, Tool
from velollm.observability import Metrics
from velollm.stack import build
from velollm.toolcalls.layer import ToolCallLayer

pytestmark = pytest.mark.anyio


async def ask(backend: ScriptedBackend, settings: Settings, metrics: Metrics) -> int:
    collector = Collector()
    tools = [Tool(name="ping", parameters={"type": "object", "properties": {"n": {"type": "integer"}}})]
    request = ChatRequest(model="tiny", messages=[Message(role="user", content="Go")], tools=tools)
    async for event in build(backend, settings, metrics).chat(request):
        collector.add(event)
    return len(collector.answer().choices[0].tool_calls)


async def test_calls_are_counted_by_what_became_of_them() -> None:
    metrics = Metrics()
    said = '<tool_call>{"name": "Ping", "arguments": {"n": "1"}}</tool_call>\n<tool_call>{"name": "pong"}</tool_call>'
    assert await ask(ScriptedBackend([said]), Settings(), metrics) == 1
    shown = metrics.expose().decode()
    assert 'velollm_tool_calls_total{kind="name_variant",outcome="repaired"} 1.0' in shown
    assert 'velollm_tool_calls_total{kind="type_coerced",outcome="repaired"} 1.0' in shown


async def test_off_is_not_there_at_all() -> None:
    settings = Settings(toolcalls=ToolCallSettings(mode="off"))
    found = build(ScriptedBackend(), settings)
    while hasattr(found, "inner"):
        assert not isinstance(found, ToolCallLayer)
        found = found.inner
    assert await ask(ScriptedBackend(['<tool_call>{"name": "ping"}</tool_call>']), settings, Metrics()) == 0
