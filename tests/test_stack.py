"""The layers around an engine: each is there once."""

from __future__ import annotations

from support.backend import ScriptedBackend

from velollm import VeloLLM
from velollm.backend import layers
from velollm.config import Settings
from velollm.stack import build
from velollm.truncation import TruncationLayer


def test_a_stack_that_is_mounted_keeps_the_layers_it_has() -> None:
    stack = build(ScriptedBackend(), Settings())
    assert VeloLLM(backend=stack, tool_calls=False).backend is stack


def test_an_engine_that_is_mounted_gets_them() -> None:
    names = [type(layer).__name__ for layer in layers(VeloLLM(backend=ScriptedBackend()).backend)]
    assert names == ["ToolCallLayer", "TruncationLayer", "BatchingLayer"]
    assert sum(isinstance(layer, TruncationLayer) for layer in layers(build(ScriptedBackend(), Settings()))) == 1
