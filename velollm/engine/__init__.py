"""The in-process engine: paged KV cache, continuous batching and prefix sharing for a GGUF file.

    Scheduler (which tokens next) ─▶ BlockManager (which blocks)     pure bookkeeping
        │ Step: events, chunks
        ▼
    Runner: LlamaCppRunner · NumpyRunner                             computes, and gives logits

`Engine` drives both on a thread of its own and hands tokens to asyncio.
"""

from __future__ import annotations

from velollm.engine.blocks import BlockManager
from velollm.engine.scheduler import Scheduler
from velollm.engine.sequence import Sequence

__all__ = ["BlockManager", "Scheduler", "Sequence"]
