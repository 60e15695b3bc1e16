"""How hard a request looks, and which model it gets."""

from __future__ import annotations

import pytest
from support.backend import ScriptedBackend

from velollm.messages import ChatRequest, Message, ModelInfo, Tool
from velollm.routing import BackendPool, Turns
from velollm.routing.complexity import choose, judge


def ask(text: str, **more: object) -> ChatRequest:
    return ChatRequest(messages=[Message(role="user", content=text)], **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "tier", "reason"),
    [
        (ask("What is the capital of France?"), "small", ""),
        (ask("Fix the bug in my code, please"), "medium", "code"),
        (ask("```python\nprint(1)\n```\nWhat does it print?"), "medium", "code"),
        (ask("Compare the two proposals"), "medium", "'compare'"),
        (ask("Hello", tools=[Tool(name="f")]), "medium", "1 tools"),
        (ask("word " * 800), "medium", "tokens"),
        (ask("word " * 6000 + "Prove it."), "large", "'prove'"),
        (ask("Prove it", think="high"), "large", "reasoning is asked for"),
        (ask("Hello", think="low"), "small", ""),
        (ask("Refactor this function step by step", tools=[Tool(name="f")]), "large", "'step by step'"),
    ],
)
def test_rules(request_: ChatRequest, tier: str, reason: str) -> None:
    verdict = judge(request_)
    assert verdict.tier == tier
    assert reason in str(verdict)


def test_models_by_size() -> None:
    models = [
        ModelInfo(id="llama-70b"),
        ModelInfo(id="embed", capabilities=["embedding"]),
        ModelInfo(id="smollm2", parameter_size="135M"),
        ModelInfo(id="qwen3:8b"),
    ]
    assert [choose(tier, models) for tier in ("small", "medium", "large")] == ["smollm2", "qwen3:8b", "llama-70b"]
    assert choose("large", models[:1]) == choose("small", models[:1]) == "llama-70b"
    assert choose("small", []) is None


class Two(ScriptedBackend):
    async def models(self) -> list[ModelInfo]:
        return [ModelInfo(id="tiny-1b"), ModelInfo(id="big-70b")]


@pytest.mark.anyio
async def test_the_pool_chooses_and_says_why() -> None:
    engine = Two()
    pool = BackendPool([engine], turns=Turns(policy="complexity"))
    for text, model in (("Hello", "tiny-1b"), ("Prove it step by step: " + "word " * 6000, "big-70b")):
        asked = ask(text, model="auto")
        assert [event async for event in pool.chat(asked)]
        assert engine.requests[-1].model == model
        assert asked.context.headers["x-velollm-routing"].startswith(f"model={model}; tier=")
    assert "auto" in [model.id for model in await pool.models()]
    named = ask("Hello", model="big-70b")
    assert [event async for event in pool.chat(named)]
    assert engine.requests[-1].model == "big-70b"
    assert "x-velollm-routing" not in named.context.headers
