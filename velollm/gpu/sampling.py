"""From logits to tokens on the GPU: the best, a draw, and what stands of a draft."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from velollm.gpu.arrays import Array
from velollm.gpu.executor import Executor, default_executor, returned
from velollm.gpu.kernels import SCALARS, kernel

__all__ = ["MAX_DRAFT", "argmax", "sample", "verify_greedy"]

Setting: TypeAlias = npt.ArrayLike | Array
MOST_THREADS, EACH = 1024, 4  # of a block; logits that a thread has at least
MAX_DRAFT = 31  # tokens: with the one that follows, a warp's


def argmax(logits: Any, *, on: Executor | None = None) -> Any:
    """The first of the largest of each row of `logits` [rows, width] (fp32, fp16, bf16): [rows] int32."""
    on = on or default_executor()
    made = _logits(on, logits)
    chosen = on.empty(made.shape[:1], "int32")
    on.launch(
        kernel("argmax", made.scalar),
        grid=(made.shape[0], 1, 1),
        block=_threads(made.shape[1]),
        shared=256,
        arguments=(chosen, made, made.shape[1]),
    )
    return returned(on, chosen, logits)


def sample(
    logits: Any,
    *,
    seeds: Setting,
    positions: Setting,
    temperature: Setting = 1.0,
    top_k: Setting = 0,
    top_p: Setting = 1.0,
    min_p: Setting = 0.0,
    on: Executor | None = None,
) -> Any:
    """A token drawn from each row of `logits` [rows, width]: [rows] int32.

    Top-k, then top-p, then min-p cut at temperature 1, then `temperature` flattens what is left: llama.cpp's order, and
    that of `velollm.engine`. Each is one number or one for each row; a temperature of 0 takes the best, a `top_k` of 0,
    a `top_p` of 1 and a `min_p` of 0 cut nothing. What ties with a cut stays. The same `seeds` (64 bits) and
    `positions` (32 bits) draw the same token, whatever else is in the batch: randomness is Philox4x32-10.
    """
    on = on or default_executor()
    made = _logits(on, logits)
    rows = made.shape[0]

    def of_rows(given: Any, dtype: npt.DTypeLike) -> Array:
        if isinstance(given, Array) or hasattr(given, "__cuda_array_interface__"):
            return on.array(given)
        return on.array(np.ascontiguousarray(np.broadcast_to(np.asarray(given, dtype), (rows,))))

    chosen = on.empty((rows,), "int32")
    on.launch(
        kernel("sample", made.scalar),
        grid=(rows, 1, 1),
        block=_threads(made.shape[1]),
        shared=2048,
        arguments=(
            chosen,
            made,
            of_rows(temperature, np.float32),
            of_rows(top_k, np.int32),
            of_rows(top_p, np.float32),
            of_rows(min_p, np.float32),
            of_rows(seeds, np.uint64),
            of_rows(positions, np.int32),
            made.shape[1],
        ),
    )
    return returned(on, chosen, logits)


def verify_greedy(drafts: Any, chosen: Any, starts: Any, *, on: Executor | None = None) -> tuple[Any, Any]:
    """What stands of drafted tokens at temperature 0: (kept [sequences], tokens [sequences, width + 1]), int32.

    drafts: [sequences, width] int32, width at most 31. chosen: [rows] int32, the model's choice after each row that it
    computed: `starts` [sequences + 1] says where those of a sequence begin, the one after its last known token, then
    those after each drafted token. tokens are the `kept` ones and the model's next, then -1.
    """
    on = on or default_executor()
    made = [on.array(one) for one in (drafts, chosen, starts)]
    if any(one.scalar != "int32" for one in made) or len(made[0].shape) != 2:
        raise TypeError("drafts, chosen and starts are int32, and drafts have a row for each sequence")
    sequences, width = made[0].shape
    if width > MAX_DRAFT or made[2].size != sequences + 1:
        raise ValueError(f"drafts {made[0].shape} with starts {made[2].shape}: at most {MAX_DRAFT} tokens each")
    kept, tokens = on.empty((sequences,), "int32"), on.empty((sequences, width + 1), "int32")
    on.launch(kernel("verify", "int32"), grid=(sequences, 1, 1), block=32, arguments=(kept, tokens, *made, width))
    return returned(on, kept, drafts), returned(on, tokens, drafts)


def _threads(width: int) -> int:
    return min(MOST_THREADS, -(-width // (32 * EACH)) * 32)


def _logits(on: Executor, given: Any) -> Array:
    made = on.array(given)
    if made.scalar not in SCALARS or len(made.shape) != 2 or made.shape[1] == 0:
        raise TypeError(f"logits are [rows, width] of numbers, not {made.scalar} {made.shape}")
    return made
