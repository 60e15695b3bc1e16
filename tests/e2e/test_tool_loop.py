"""An agent's loop over a model that breaks every call it makes."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from support.backend import ScriptedBackend

from velollm import VeloLLM
from velollm.errors import BackendRefused
from velollm.messages import ChatEvent, ChatRequest, ToolCallDelta

pydantic_ai = pytest.importorskip("pydantic_ai")

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


class Clumsy(ScriptedBackend):
    """Looks up two stocks and places an order, each call broken in another way; then says what it did."""

    def __init__(self, *steps: Any) -> None:
        super().__init__()
        self.steps = itertools.chain(steps)

    async def _events(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        step = next(self.steps)
        if isinstance(step, Exception):
            raise step
        if isinstance(step, str):
            for at in range(0, len(step), 5):
                yield ChatEvent(step[at : at + 5])
            yield ChatEvent(finish_reason="stop")
            return
        yield ChatEvent(tool_calls=step)
        yield ChatEvent(finish_reason="tool_calls")


STEPS: list[list[Any]] = [
    [
        "<tool_call>\n{'name': 'stockOf', 'arguments': {'Item': 'bolt', 'warehouse': '3',}}\n</tool_call>",
        [ToolCallDelta(0, "c2", "stock_of", '{"item": "nut", "warehouse": "3"')],
        '<function=place_order>\n<parameter=item>\nnut\n</parameter>\n<parameter=count>\n40.0\n</parameter>\n</function>',
        "Done: 40 nuts.",
    ],
    [
        "[stock_of(item='bolt', warehouse=3)]<|im_end|>",
        BackendRefused(
            'error parsing tool call: raw=\'{"name": "stock_of", "arguments": {"item": "nut", "warehouse": 3,}}\', '
            "err=invalid character '}'",
            status=500,
        ),
        [ToolCallDelta(0, "c3", "functions.place_order", '"{\\"item\\": \\"nut\\", \\"count\\": \\"40\\"}"')],
        "Done: 40 nuts.",
    ],
]  # fmt: skip


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_three_step_task_is_finished(steps: list[Any], stream: bool) -> None:
    import httpx
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    library: Any = pytest.importorskip(DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0])
    assert library is httpx or library.__name__ == "httpx2"
    transport = library.ASGITransport(app=VeloLLM(backend=Clumsy(*steps)))
    http = library.AsyncClient(transport=transport, base_url="http://velo")
    client = AsyncOpenAI(base_url="http://velo/v1", api_key="none", http_client=http, max_retries=0)
    agent = pydantic_ai.Agent(OpenAIChatModel("tiny", provider=OpenAIProvider(openai_client=client)))
    done: list[Any] = []

    @agent.tool_plain
    def stock_of(item: str, warehouse: int) -> int:
        """How many of an item a warehouse has."""
        done.append(("stock_of", item, warehouse))
        return 100 if item == "bolt" else 2

    @agent.tool_plain
    def place_order(item: str, count: int) -> str:
        """Order more of an item."""
        done.append(("place_order", item, count))
        return "ordered"

    task = "Order 40 of whatever runs low in warehouse 3: bolts or nuts."
    if stream:
        async with agent.run_stream(task) as run:
            said = await run.get_output()
    else:
        said = (await agent.run(task)).output
    assert done == [("stock_of", "bolt", 3), ("stock_of", "nut", 3), ("place_order", "nut", 40)]
    assert said == "Done: 40 nuts."
