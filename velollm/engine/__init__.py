"""The in-process engine: paged KV cache, continuous batching and prefix sharing for a GGUF file.

    Scheduler (which tokens next) ─▶ BlockManager (which blocks)     pure bookkeeping
        │ Step: events, chunks
        ▼
    Runner: LlamaCppRunner · NumpyRunner · CudaRunner                computes, and gives logits

`Engine` drives both on a thread of its own and hands tokens to asyncio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from velollm.engine.blocks import BlockManager
from velollm.engine.paged_kv import PagedKV
from velollm.engine.scheduler import Scheduler
from velollm.engine.sequence import Sequence

if TYPE_CHECKING:
    from velollm.engine.core import EngineCore, JobSpec, Update
    from velollm.engine.cuda_runner import CudaRunner
    from velollm.engine.engine import Engine
    from velollm.engine.llama_runner import LlamaCppRunner
    from velollm.engine.numpy_runner import NumpyRunner
    from velollm.engine.sampling import SamplingParams

__all__ = [
    "BlockManager",
    "CudaRunner",
    "Engine",
    "EngineCore",
    "JobSpec",
    "LlamaCppRunner",
    "NumpyRunner",
    "PagedKV",
    "SamplingParams",
    "Scheduler",
    "Sequence",
    "Update",
]

LAZY = {  # these need NumPy
    "CudaRunner": "cuda_runner",
    "Engine": "engine",
    "EngineCore": "core",
    "JobSpec": "core",
    "LlamaCppRunner": "llama_runner",
    "NumpyRunner": "numpy_runner",
    "SamplingParams": "sampling",
    "Update": "core",
}


def __getattr__(name: str) -> Any:
    module = LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
